#!/usr/bin/env bash
# dash 0.5.12, busybox 1.35.0, zsh 5.9, mksh 59c, bash 5.2.15 (Debian 12).  A job script begins with
# `trap 'cp -r "$scratch" results' EXIT`, and works in bash, also at a time limit (TERM).  Guess: EXIT is each end of the shell but KILL, so
# it does the same under `#!/bin/sh`.  Seen: where a signal ends the shell, bash and mksh run it; in dash (sh of Debian and Ubuntu),
# busybox (Alpine) and zsh the results stay on the scratch disk and are deleted with it.  `trap 'exit 143' TERM` beside it makes all
# of them run it.
#   EXIT trap after TERM:     bash, mksh: ran    dash, busybox, zsh: not run      with a trap for TERM: ran, in each
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download dash=0.5.12-2 busybox='1:1.35.0-4*' zsh=5.9-4+b15 mksh='59c-28*' bash=5.2.15-2+b13 \
    2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" root; done
cp root/bin/busybox root/bin/ash
cat >script.sh <<'SH'
trap 'echo ran' EXIT
[ -z "$1" ] || trap 'exit 143' TERM
sh -c 'kill -TERM $PPID'
sleep 1
SH
seen=
for path in bin/bash bin/mksh bin/dash bin/ash bin/zsh; do
    for option in '' term; do
        ran=$("root/$path" script.sh "$option" 2>/dev/null || true)
        seen="$seen${ran:-no} "
    done
done
echo "bash mksh dash busybox zsh, each without and with a trap for TERM: $seen"
[ "$seen" = "ran ran ran ran no ran no ran no ran " ]
