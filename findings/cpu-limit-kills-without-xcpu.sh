#!/usr/bin/env bash
# bash 5.2.15, dash 0.5.12, mksh 59c, busybox 1.35.0, zsh 5.9, prlimit of util-linux 2.38.1 (Debian 12), on Linux.  A program saves its
# state at XCPU, and the job script gives it an hour by `ulimit -t 3600`.  Guess: XCPU comes at the limit, as getrlimit(2) says, and KILL
# later.  Seen: in all but zsh `ulimit -t` sets the hard limit, too, and so does `prlimit --cpu=3600`.  Linux looks at the hard limit
# first, so KILL comes at once and XCPU never; nothing is saved, and the status is 137, which looks like the OOM killer: the next try
# gets more memory, not more time.  zsh sets the soft one only, as `ulimit -S -t` does in each: the state is saved, in zsh and with -S.
#   after 1 s:  bash, dash, mksh, busybox, prlimit: 137      zsh: saved      -S in bash, dash, mksh, busybox; prlimit --cpu=1: (soft): saved
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download bash=5.2.15-2+b13 dash=0.5.12-2 mksh='59c-28*' busybox='1:1.35.0-4*' zsh=5.9-4+b15 \
    util-linux='2.38.1-5*' 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" root; done
cp root/bin/busybox root/bin/ash
cat >program.sh <<'SH'
trap 'echo saved; exit' XCPU
while :; do :; done
SH
end_of() { { "$@" || echo $?; } 2>/dev/null; }
seen=
for option in '' -S; do
    for path in bin/bash bin/dash bin/mksh bin/ash bin/zsh; do
        seen="$seen$(end_of "root/$path" -c "ulimit $option -t 1; exec root/bin/dash program.sh") "
    done
    seen="$seen$(end_of root/usr/bin/prlimit --cpu=1${option:+:} root/bin/dash program.sh) "
done
echo "bash dash mksh busybox zsh prlimit, hard and soft: $seen"
[ "$seen" = "137 137 137 137 saved 137 saved saved saved saved saved saved " ]
