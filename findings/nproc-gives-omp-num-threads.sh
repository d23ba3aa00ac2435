#!/usr/bin/env bash
# nproc of coreutils 9.1, findutils 4.9.0, busybox 1.35.0 (Debian 12).  A sweep of programs with one thread each: the job script says
# `export OMP_NUM_THREADS=1`, so that the programs do not start a thread for each core, and then `xargs -P "$(nproc)"` (or make -j).
# Guess: nproc is the number of cores that this process may use, as in busybox, whatever programs do with OpenMP.  Seen: where
# OMP_NUM_THREADS is set, nproc prints it, and also if it is more than the machine has.  So the line that makes room for many jobs leaves
# one at a time, on a node of any size and without a word; and 64, left in a profile by another cluster, starts 64 on a laptop.
# `env -u OMP_NUM_THREADS nproc` counts cores.
#   OMP_NUM_THREADS=   unset    1    7    7,2    what xargs does with three jobs at 1: start end start end start end
#   nproc              cores    1    7    7                                 at 7: start start start end end end
#   nproc of busybox   cores, each time
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
apt-get -qq download coreutils=9.1-1 findutils=4.9.0-4 busybox='1:1.35.0-4*' 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" root; done
nproc=root/usr/bin/nproc cores=$(root/bin/busybox nproc)
seen="$([ "$($nproc)" != "$cores" ] || echo cores)"
expected="cores"
for threads in 1 7 7,2; do
    export OMP_NUM_THREADS=$threads
    seen="$seen, $($nproc) $([ "$(root/bin/busybox nproc)" != "$cores" ] || echo cores)"
    expected="$expected, ${threads%,*} cores"
done
for threads in 1 7; do
    export OMP_NUM_THREADS=$threads
    seen="$seen, $(seq 3 | root/usr/bin/xargs -n 1 -P "$($nproc)" sh -c 'echo start; sleep 1; echo end' | paste -sd' ')"
done
expected="$expected, start end start end start end, start start start end end end"
echo "$seen"
[ "$seen" = "$expected" ]
