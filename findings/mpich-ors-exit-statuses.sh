#!/usr/bin/env bash
# MPICH 5.0.2 (PyPI: mpich).  Guess: mpiexec ends with the status of a failed rank, and with 128 + 9 if a rank is killed, as shells and Open
# MPI's mpirun do.  Seen: it ends with the bitwise OR of what waitpid gave, so ranks that exit with 4 and 3 give 7, and a rank that dies
# of KILL (of the kernel's OOM killer, for example) gives 9, the same as `exit 9`.  A scheduler that repeats what was killed for memory does
# not see it.
#   exit 4 and exit 3: 7        killed by 9: 9      exit 9: 9
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: mpich==5.0.2 || exit 2
export PATH=$dir/venv/bin:$PATH TMPDIR=$dir

status() { local code=0; timeout 60 mpiexec "$@" >/dev/null 2>&1 || code=$?; echo $code; }
# shellcheck disable=SC2016
seen="$(status -n 2 sh -c 'exit $((4 - PMI_RANK))') $(status -n 1 sh -c 'kill -KILL $$') $(status -n 1 sh -c 'exit 9')"
echo "exit 4 and exit 3, killed by 9, exit 9: $seen"
[ "$seen" = "7 9 9" ]
