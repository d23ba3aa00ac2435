"""A client that knows the token comes back after its grace, and says that its job has a number of its choice.

    RUNMAKER4_TOKEN=TOKEN python3 -m tests.attacks.returning_client PORT NUMBER JOBS [FILE]

It is a `liar`, who takes a job, begins it, prints `one` and is away until its line in the file JOBS is `e`.
Then it names its job, with NUMBER for the line and the record; prints `two` and ends.  FILE: where the server
has written `one`; in its place a link to `precious` is put meanwhile, two directories above.  Prints `done`,
or `lost` if the server says so.
"""
import os
import pathlib
import sys
import time
from typing import Any

from tests.wire import BEGIN, END, Peer

Message = dict[str, Any]
ME = dict(name="liar", client="c" * 16)


def main() -> None:
    port, number, jobs, *link = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]), *sys.argv[4:]
    token = os.environ["RUNMAKER4_TOKEN"]
    with Peer.of(port, token) as peer:
        peer.hello(**ME).hear("welcome")
        job: Message = peer.say(dict(type="claim", request=1, want=1, last=False)).hear("jobs")["jobs"][0]
        output = dict(type="output", id=job["id"], stream="stdout")
        begin = dict(BEGIN, id=job["id"], mark="liar-1-1")
        peer.say({**begin, "n": 1}, dict(output, n=2, at=0, data="one\n"))
        while peer.hear("ack")["n"] < 2:
            pass
    while b"\ne" not in jobs.read_bytes():
        time.sleep(0.05)
    for path in link:
        os.unlink(path)
        os.symlink("../precious", path)
    with Peer.of(port, token) as peer:
        job.update(number=number, ordinal=number, run="liar-1-1")
        lost = peer.hello(job, **ME).hear("welcome")["lost"]
        peer.say({**begin, "n": 1, "again": True}, dict(output, n=2, at=4, data="two\n"),
                 dict(END, n=3, id=job["id"], stdout=8),
                 dict(type="finish", n=4, id=job["id"], state="d", how="exit 0", cause=""))
        while peer.hear("ack")["n"] < 4:
            pass
    print("lost" if lost else "done")


if __name__ == "__main__":
    main()
