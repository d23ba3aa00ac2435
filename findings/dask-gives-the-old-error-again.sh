#!/usr/bin/env bash
# distributed 2026.8.0 (PyPI), its scheduler and a worker in one process.  A call failed because a disk was full or a server busy, so
# a loop submits it again: future = client.submit(f, x), until future.result() gives something.  Guess: each submit() runs f.  Seen: calls
# with equal function and arguments are one task, also one that has failed, as long as anything holds its future, and in such a loop
# the variable does.  The same error comes back at once, f is not called, and nothing says so.  future.retry(), pure=False, or
# `del future` before submit() runs it again.
#   f was called, of three submits:  1      with pure=False: 3      with del: 3     with retry() instead of submit(): 3
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: distributed==2026.8.0 || exit 2
cd "$dir"
export TMPDIR=$dir          # dask makes a folder there when it is imported
cat >again.py <<'PY'
import sys
from distributed import Client, wait

def busy(way):
    with open("calls", "a") as calls:
        calls.write(way + "\n")
    raise OSError("busy")

def calls_of(way):
    for attempt in range(3):
        if way == "retry" and attempt:
            future.retry()
        else:
            future = client.submit(busy, way, **({"pure": False} if way == "pure=False" else {}))
        wait(future)
        assert isinstance(future.exception(), OSError)
        if way == "del":
            del future
            while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
                pass                    # until it is forgotten
    return open("calls").read().split().count(way)

with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
    seen = {way: calls_of(way) for way in ("submit", "pure=False", "del", "retry")}
print(seen)
sys.exit(seen != {"submit": 1, "pure=False": 3, "del": 3, "retry": 3})
PY
venv/bin/python again.py 2>/dev/null
