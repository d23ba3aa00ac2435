#!/usr/bin/env bash
# parsl 2026.10.26 (PyPI), a bash_app with `walltime` (seconds) and retries=1.  Guess: a program that is over its walltime is killed, as
# by a batch system, and then tried again.  Seen: AppTimeout is raised, the program runs on, and the retry starts the second one beside it.
# Both write the same files, the slot counts as free, and programs that were reported as timed out change results until they end.
# A `timeout` in front of the command does end it.
#   starts and ends in the order in which they were written: start start end end
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: parsl==2026.10.26 || exit 2
cd "$dir"
cat >limited.py <<'PY'
import sys, time
import parsl
from parsl.app.errors import AppTimeout

@parsl.bash_app
def program(walltime=2):
    return "echo start >>events; for _ in {1..600}; do [ ! -e go ] || break; sleep 0.1; done; echo end >>events"

def events():
    return open("events").read().split()

parsl.load(parsl.Config(executors=[parsl.ThreadPoolExecutor(max_threads=1)], retries=1, run_dir="run"))
try:
    program().result()
except AppTimeout as error:
    print(error)
open("go", "w")
end = time.monotonic() + 30
while len(events()) < 4 and time.monotonic() < end:
    time.sleep(0.1)
print(*events())
parsl.clear()
sys.exit(events() != ["start", "start", "end", "end"])
PY
venv/bin/python limited.py
