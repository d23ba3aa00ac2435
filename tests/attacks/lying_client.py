"""A client that knows the token and says what cannot be, each lie on a connection of its own.

    RUNMAKER4_TOKEN=TOKEN python3 -m tests.attacks.lying_client PORT

The file that is served needs jobs below `#RUN host=liar`, and a group that is for `host=holder`.
Prints a line for each lie: its name, and `refused` if the server ended that connection, else `believed`.
"""
import contextlib
import os
import sys
from typing import Any, Callable

from tests.wire import BEGIN, END, HAVE, HELLO, Closed, Peer, new_key

Message = dict[str, Any]
Lie = Callable[["Liar"], list[Message]]
CLAIM = dict(type="claim", request=1, want=1, last=False)


class Liar:
    """A client that may claim a job, and then tells its events."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.events = 0
        self.key = ""                       # of its job

    def come(self, name: str = "liar") -> None:
        """Say hello as an honest client does."""
        self.peer.hello(name=name).hear("welcome")

    def claim(self, name: str = "liar") -> None:
        """Come, and get a job."""
        self.come(name)
        self.key = self.peer.say(CLAIM).hear("jobs")["jobs"][0]["id"]

    def event(self, **message: Any) -> Message:
        """The next thing that happens to its job."""
        self.events += 1
        return {**message, "n": self.events, "id": self.key}

    def begin(self, **changes: Any) -> Message:
        return self.event(**{**BEGIN, **changes})

    def output(self) -> Message:
        return self.event(type="output", stream="stdout", data="a lie\n")

    def end(self, **changes: Any) -> Message:
        return self.event(**{**END, "stdout": 6, **changes})


def of_a_job(lie: Lie, name: str = "liar") -> Lie:
    """A lie about a job that the liar has claimed by this name."""
    def told(liar: Liar) -> list[Message]:
        liar.claim(name)
        return lie(liar)
    return told


def after_hello(*messages: Message) -> Lie:
    """Messages that come too late, or unasked."""
    def told(liar: Liar) -> list[Message]:
        liar.come()
        return list(messages)
    return told


def before_hello(*messages: Message) -> Lie:
    """Messages that come too early."""
    def told(liar: Liar) -> list[Message]:
        liar.peer.prove()
        return list(messages)
    return told


LIES: dict[str, Lie] = {
    "output before the begin": of_a_job(lambda liar: [liar.output()]),
    "output of what could not be started": of_a_job(lambda liar: [liar.begin(pid=0), liar.output()]),
    "exit status of what could not be started": of_a_job(lambda liar: [liar.begin(pid=0), liar.end()]),
    "begin of what runs": of_a_job(lambda liar: [liar.begin(), liar.begin()]),
    "end before the begin": of_a_job(lambda liar: [liar.end()]),
    "end of what has ended": of_a_job(lambda liar: [liar.begin(), liar.output(), liar.end(), liar.end()]),
    "output of what has ended": of_a_job(lambda liar: [liar.begin(), liar.end(stdout=0), liar.output()]),
    "ready to begin what is not held": of_a_job(lambda liar: [dict(type="ready", id=liar.key)]),
    "a begin in a year that no clock shows": of_a_job(lambda liar: [liar.begin(time=1e308)]),
    "a begin before all clocks": of_a_job(lambda liar: [liar.begin(time=-1)]),
    "a process that cannot be": of_a_job(lambda liar: [liar.begin(pid=1 << 31)]),
    "a run of many lives": of_a_job(lambda liar: [liar.begin(), liar.end(stdout=0, seconds=1e308)]),
    "a limit of many lives": of_a_job(lambda liar: [liar.begin(), liar.end(cause="timeout", limit=1e308)]),
    "less than no CPU time": of_a_job(lambda liar: [liar.begin(), liar.end(cpu=-1e-9)]),
    "more memory than there is": of_a_job(lambda liar: [liar.begin(), liar.end(memory=1 << 63)]),
    "jobs after hello": after_hello(HAVE),
    "hello twice": after_hello({**HELLO, "client": new_key()}),
    "claim after bye": after_hello(dict(type="bye"), CLAIM),
    "hello after bye": after_hello(dict(type="bye"), {**HELLO, "client": new_key()}),
    "what only servers say": after_hello(dict(type="ack", n=1)),
    "claim before hello": before_hello(CLAIM),
    "event before hello": before_hello(dict(BEGIN, n=1, id="0" * 16)),
    "bye before hello": before_hello(dict(type="bye")),
    "one job twice": before_hello(HAVE, HAVE, HELLO),
    "begin of what is held": of_a_job(lambda liar: [liar.begin()], name="holder"),
}


def is_refused(port: int, token: str, lie: Lie) -> bool:
    """Whether the server ends the connection on which this lie is told."""
    with Peer.of(port, token) as peer, contextlib.suppress(Closed):
        peer.say(*lie(Liar(peer)), dict(type="ping", request=99)).hear("pong")
        return False
    return True


def main() -> None:
    port, token = int(sys.argv[1]), os.environ["RUNMAKER4_TOKEN"]
    for name, lie in LIES.items():
        print(f"{name}: {'refused' if is_refused(port, token, lie) else 'believed'}", flush=True)


if __name__ == "__main__":
    main()
