"""A timeline, as a viewer of the Trace Event Format understands it."""
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trace:
    """A trace, as a viewer understands it: events by host and slot, both in the viewer's order."""
    hosts: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    @property
    def all(self) -> list[dict[str, Any]]:
        return [event for slots in self.hosts.values() for events in slots.values() for event in events]

    def host(self, name: str) -> dict[str, list[dict[str, Any]]]:
        return self.hosts[name]


def read_trace(data: bytes) -> Trace:
    """Read a trace in the Trace Event Format's JSON object form, with complete and metadata events only."""
    whole = json.loads(data.decode("utf-8"))
    # fails on half a surrogate pair, as many readers do, and on NaN, which is not JSON
    json.dumps(whole, ensure_ascii=False, allow_nan=False).encode("utf-8")
    told: dict[tuple[str, int], Any] = {}           # by name of the metadata and process or thread
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in whole["traceEvents"]:
        assert event["name"] and event["pid"] > 0 and event["tid"] > 0 and event["ts"] >= 0, event
        if event["ph"] == "M":
            key = event["name"], event["pid" if event["name"].startswith("process") else "tid"]
            assert key not in told, f"told twice: {key}"        # Perfetto goes by tid alone
            told[key], = event["args"].values()
        else:
            assert event["ph"] == "X" and event["dur"] >= 0, event
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    hosts = {pid for pid, _ in tracks}
    assert len(told) == 2 * len(hosts) + 2 * len(tracks), "a track without events or names"
    trace = Trace()
    for pid, tid in sorted(tracks, key=lambda track: (told["process_sort_index", track[0]],
                                                      told["thread_sort_index", track[1]])):
        slots = trace.hosts.setdefault(told["process_name", pid], {})
        assert told["thread_name", tid] not in slots, "two of one name"
        assert told["thread_sort_index", tid] == len(slots) + 1, "not from 1 on"
        slots[told["thread_name", tid]] = sorted(
            tracks[pid, tid], key=lambda event: (event["ts"], -event["dur"]))
    return trace
