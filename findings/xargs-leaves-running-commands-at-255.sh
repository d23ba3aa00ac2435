#!/usr/bin/env bash
# findutils 4.9.0 (Debian 12).  Guess: xargs -P ends after all commands that it has started; if one exits with 255 it "will stop
# immediately without reading any further input" (manual), and then waits for those that run, as it does at the end of the input.
# Seen: it exits with 124 at once, and the others run on as children of init.  So `xargs -P4 ssh ... || rm -r "$work"` removes files
# in use: 255 is what ssh gives for a connection that failed.  With any other status, such as 1, xargs waits.
#   exits with 255: status 124, the other command still runs      exits with 1: status 123, the other command has ended
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download findutils=4.9.0-4 2>apt.log || { cat apt.log; exit 2; }
dpkg -x findutils_*.deb .
seen() {    # seen STATUS: how xargs ends if one of two commands at once exits with it while the other one waits for a file
    local code=0
    rm -f go ended started
    # shellcheck disable=SC2016
    printf '%s\n' first second | usr/bin/xargs -P2 -I{} sh -c '
        if [ {} = second ]; then until [ -e started ]; do sleep 0.1; done; exit "$0"; fi
        : >started; for i in $(seq 20); do [ -e go ] && break; sleep 0.1; done; : >ended' "$1" 2>/dev/null || code=$?
    if [ -e ended ]; then echo "status $code, ended"; else echo "status $code, runs"; fi
    : >go
    until [ -e ended ]; do sleep 0.1; done
}
lost=$(seen 255) failed=$(seen 1)
echo "exits with 255: $lost; exits with 1: $failed"
[ "$lost; $failed" = "status 124, runs; status 123, ended" ]
