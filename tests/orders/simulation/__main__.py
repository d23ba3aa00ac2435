"""Show one history, or how many histories find each planted defect."""
from __future__ import annotations

import argparse
import time

from tests.orders.simulation.histories import explore
from tests.orders.simulation.many import explore_on_all_cores, workers
from tests.orders.simulation.planted_defects import PLANTED, planted
from tests.orders.simulation.product import install
from tests.orders.simulation.system_calls import MACHINE


def history(seed: int, name: str = "") -> list[str]:
    """The system calls of one history, and at the end what it breaks."""
    MACHINE.trace = []
    try:
        with planted(name):
            explore(seed)
        return MACHINE.trace
    finally:
        MACHINE.trace = None
        install()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.orders.simulation", allow_abbrev=False)
    parser.add_argument("--seed", type=int, help="show this history, rather than a table of planted defects")
    parser.add_argument("--planted", choices=["", *PLANTED],
                        help="with this defect only, or without any ('')")
    parser.add_argument("--schedules", type=int, default=2000, help="for each line of the table [2000]")
    parser.add_argument("--first", type=int, default=0, help="the first seed of them [0]")
    options = parser.parse_args()
    if options.seed is not None:
        print("\n".join(history(options.seed, options.planted or "")))
        return
    begin, names = time.perf_counter(), ["", *PLANTED] if options.planted is None else [options.planted]
    with workers() as pool:
        for name in names:
            found = explore_on_all_cores(pool, options.schedules, options.first, name=name)
            seed, violation = next(iter(sorted(found.broken.items())), ("", ""))
            how_often = f"{len(found.broken):6} of {found.schedules}"
            last_line = violation.rstrip().rpartition("\n")[2]
            print(f"{name or 'as it is':30}{how_often}  {seed:>5} {last_line:.70}")
            for seed, violation in sorted(found.broken.items())[:20] if not name else ():
                print(f"  {seed}: {violation}")
    print(f"{len(names) * options.schedules / (time.perf_counter() - begin):.0f} schedules/second")


if __name__ == "__main__":
    main()
