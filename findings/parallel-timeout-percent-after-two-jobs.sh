#!/usr/bin/env bash
# GNU parallel 20221122 (Debian 12).  --timeout 300%: a limit of three times the median.  Guess: a median needs a fair number of jobs,
# and each job keeps the limit that it began with.  Seen: two ended jobs make a limit, and it holds for a job that began before them.  So
# a list whose first job is the long one loses it: 12 s of work are killed because two others took 0.2 s.  The joblog has -1 and 15, which
# neither `$7 > 0` nor `$7 > 128` finds.
#   first job: Exitval -1, Signal 15, under 12 s: yes; exit status 1
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download parallel=20221122+ds-2 2>apt.log || { cat apt.log; exit 2; }
dpkg -x parallel_*.deb .
status=0
HOME=$dir usr/bin/parallel --will-cite -j2 --timeout 300% --joblog log 'sleep {}' ::: 12 0.2 0.2 0.2 >/dev/null 2>&1 || status=$?
seen=$(awk '$1 == 1 {printf "Exitval %s, Signal %s, under 12 s: %s", $7, $8, ($4 < 12 ? "yes" : "no")}' log)
echo "first job: $seen; exit status $status"
[ "$seen; $status" = "Exitval -1, Signal 15, under 12 s: yes; 1" ]
