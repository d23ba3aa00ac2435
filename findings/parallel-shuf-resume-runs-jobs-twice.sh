#!/usr/bin/env bash
# GNU parallel 20221122 (Debian 12; the same in 20240222).  A sweep in random order (--shuf) is stopped in its middle, and started again
# with --resume.  Guess: the joblog has each command, so those that are missing there are run, or the two options exclude each other.
# Seen: a job is known by its number alone, the numbers are given after the shuffle, and each start shuffles anew.  So the
# second start leaves out the first numbers of another order: many jobs run twice, as many never.  The exit status is 0, and the
# joblog has each number once.
#   100 jobs, stopped after 50:  100 runs, exit status 0, 100 numbers in the joblog, some jobs run twice, some never
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download parallel=20221122+ds-2 2>apt.log || { cat apt.log; exit 2; }
dpkg -x parallel_*.deb .
export HOME=$dir
sweep() { seq 100 | usr/bin/parallel --will-cite -j1 --shuf --joblog log "$@" 2>/dev/null; }
# shellcheck disable=SC2016
sweep --halt now,fail=1 'echo {} >>ran; [ $(wc -l <ran) != 50 ]' || true
status=0
sweep --resume 'echo {} >>ran' || status=$?
numbers=$(awk 'NR > 1 {print $1}' log | sort -u | wc -l)
twice=$(sort ran | uniq -d | wc -l)
never=$((100 - $(sort -u ran | wc -l)))
echo "$(wc -l <ran) runs, exit status $status, $numbers numbers in the joblog, $twice jobs twice, $never never"
[ "$(wc -l <ran) $status $numbers" = "100 0 100" ] && [ "$twice" -gt 0 ] && [ "$twice" = "$never" ]
