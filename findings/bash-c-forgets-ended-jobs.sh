#!/usr/bin/env bash
# bash 5.2.15 (Debian 12).  A pool in one line: start jobs with &, and take each result by `wait -n`.  Guess: a job that has ended while the
# shell did something else is given by the next `wait -n`, and the same text does the same as a file and behind `bash -c`.  Seen: a file
# gives each status.  In `bash -c TEXT` (so also from ssh, xargs, make with SHELL=bash, and job runners) each program that ends in the
# foreground, such as date or mkdir, makes bash forget the jobs that have ended by then: `wait -n`, with the process ID or without, says
# 127 for a job that went well, or waits for another one.  `wait PID` still knows the status.  (5.3.15: 0 4 5 in both.)
#   three jobs exit with 0, 4, 5:   file 0 4 5      bash -c 127 127 127     bash -c, wait PID: 0 4 5
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download bash=5.2.15-2+b13 2>apt.log || { cat apt.log; exit 2; }
dpkg -x bash_*.deb .
cat >pool.sh <<'SH'
pids=
for status in 0 4 5; do (exit $status) & pids="$pids $!"; done
for pid in $pids; do while kill -0 $pid; do sleep 0.1; done; done
sleep 0.1
for pid in $pids; do wait $option ${1:+$pid}; echo $?; done
SH
seen() { "${@:2}" 2>/dev/null | paste -sd' ' | sed "s/^/$1 /"; }
export option=-n
seen=$(seen file bin/bash pool.sh; seen text bin/bash -c "$(cat pool.sh)"; seen "text, pid" bin/bash -c "$(cat pool.sh)" bash pid
    option=; seen "text, wait PID" bin/bash -c "$(cat pool.sh)" bash pid)
echo "$seen"
[ "$(paste -sd';' <<<"$seen")" = "file 0 4 5;text 127 127 127;text, pid 127 127 127;text, wait PID 0 4 5" ]
