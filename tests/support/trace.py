"""A timeline, as a viewer of the Trace Event Format understands it."""
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trace:
    """A trace, as a viewer understands it."""
    processes: dict[int, str] = field(default_factory=dict)
    threads: dict[tuple[int, int], str] = field(default_factory=dict)
    # complete ones, by start
    events: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=dict)
    # by sort index: indexes, ids
    order: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def all(self) -> list[dict[str, Any]]:
        return [event for events in self.events.values() for event in events]

    def host(self, name: str) -> dict[str, list[dict[str, Any]]]:
        (number,) = [number for number, known in self.processes.items() if known == name]
        return {thread: self.events[pid, tid] for (pid, tid), thread in self.threads.items() if pid == number}


def read_trace(data: bytes) -> Trace:
    """Read a trace in the format's JSON object form, with complete and metadata events only."""
    whole = json.loads(data.decode("utf-8"))
    # fails on half a surrogate pair, as many readers do, and on NaN, which is not JSON
    json.dumps(whole, ensure_ascii=False, allow_nan=False).encode("utf-8")
    trace = Trace()
    for event in whole["traceEvents"]:
        assert event["name"] and event["pid"] > 0 and event["tid"] > 0 and event["ts"] >= 0, event
        if event["ph"] == "M":
            take_metadata(trace, event)
        else:
            assert event["ph"] == "X" and event["dur"] >= 0, event
            trace.events.setdefault((event["pid"], event["tid"]), []).append(event)
    for key, events in trace.events.items():
        assert key in trace.threads and key[0] in trace.processes, "a track without names"
        events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return trace


def take_metadata(trace: Trace, event: dict[str, Any]) -> None:
    """Note the name or the order of a process or of a thread."""
    pid, tid, args = event["pid"], event["tid"], event["args"]
    if event["name"] == "process_name":
        assert pid not in trace.processes, "named twice"
        trace.processes[pid] = args["name"]
    elif event["name"] == "thread_name":
        assert (pid, tid) not in trace.threads, "named twice"
        trace.threads[pid, tid] = args["name"]
    else:
        number = pid if event["name"] == "process_sort_index" else tid
        trace.order.setdefault(event["name"], []).append((args["sort_index"], number))
