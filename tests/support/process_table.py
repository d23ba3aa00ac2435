"""All processes of this host: their states, their memory, and signals for them."""
import contextlib
import os
import pathlib
import re
import signal
from collections.abc import Iterable

from tests.support.processes import wait_until


def peak_memory(pid: int) -> float:
    """The most memory that a process of ours ever had, in MB; 0 once it has ended (Linux)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def process_table() -> dict[int, tuple[str, int]]:
    """All processes: pid -> (state letter, parent)."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text(errors="replace")
            except OSError:
                continue                                # it has ended meanwhile
            state, parent = stat.rpartition(")")[2].split()[:2]
            table[int(entry)] = (state, int(parent))
    return table


def send(number: int, processes: Iterable[int]) -> None:
    """Send a signal to processes, or to process groups (negative numbers), that may be gone."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(processes: list[int]) -> None:
    """Stop processes, and wait until they do nothing any more."""
    send(signal.SIGSTOP, processes)

    def still() -> bool:
        table = process_table()
        return all(table[pid][0] in "TZX" for pid in processes if pid in table)
    wait_until(still, what=f"{processes} are stopped")
