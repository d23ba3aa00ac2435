#!/usr/bin/env bash
# GNU parallel 20221122 (Debian 12).  Guess: in a --joblog a job that was killed has an Exitval that is not 0.  Seen: Exitval 0, and 9 in
# the next column; so `awk '$7 != 0'` counts killed jobs as done.  (20240222 writes 137 and 9.)
#   Exitval and Signal: killed 0 9, failed 3 0
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download parallel=20221122+ds-2 2>apt.log || { cat apt.log; exit 2; }
dpkg -x parallel_*.deb .
# shellcheck disable=SC2016
HOME=$dir usr/bin/parallel --will-cite --joblog log -j1 ::: 'kill -KILL $$' 'exit 3' >/dev/null 2>&1 || true
seen=$(awk 'NR > 1 {printf "%s %s;", $7, $8}' log)
echo "Exitval and Signal: $seen"
[ "$seen" = "0 9;3 0;" ]
