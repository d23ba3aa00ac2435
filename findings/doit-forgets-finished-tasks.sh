#!/usr/bin/env bash
# doit 0.37.0 (PyPI), each of its three databases.  Guess: a task that has ended well is recorded then, since the database is SQLite or
# DBM, so a run that is stopped goes on where it was.  Seen: all results are written when doit itself ends; after a plain TERM (a batch
# system's time limit) all finished tasks of that run are run again.
#   dbm: 2 2 1    sqlite3: 2 2 1    json: 2 2 1     (how often tasks 0, 1 and 2 ran; TERM came while 2 had not begun)
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: doit==0.37.0 || exit 2
cd "$dir"
touch in
cat >dodo.py <<'PY'
def task_step():
    for n in range(3):
        yield {"name": str(n), "file_dep": ["in"], "targets": [f"out{n}"],
               "actions": [f"echo {n} >>ran; touch out{n}"] + (["sleep 5"] if n == 2 else [])}
def task_wait():
    return {"actions": ["touch waiting; while test ! -e again; do sleep 0.1; done"]}
DOIT_CONFIG = {"default_tasks": ["step:0", "step:1", "wait", "step:2"]}
PY
seen=''
for backend in dbm sqlite3 json; do
    rm -rf out? ran again waiting .doit*
    venv/bin/doit run --backend $backend >/dev/null 2>&1 &
    doit=$!
    for _ in $(seq 300); do [ -e waiting ] && break; sleep 0.1; done
    kill -TERM $doit
    wait $doit 2>/dev/null || true
    touch again
    venv/bin/doit run --backend $backend >/dev/null
    seen="$seen$backend: $(grep -c 0 ran) $(grep -c 1 ran) $(grep -c 2 ran)  "
done
echo "$seen"
[ "$seen" = "dbm: 2 2 1  sqlite3: 2 2 1  json: 2 2 1  " ]
