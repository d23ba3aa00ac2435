#!/usr/bin/env bash
# mksh 59c (Debian 12, on a 64-bit machine).  Guess: numbers in a shell have 64 bits there, as in dash, bash, ksh93, zsh and busybox: POSIX
# asks for at least a long.  Seen: mksh has 32 bits everywhere, in $(( )) and in [ ], and wraps without a word.  So 4 GB in bytes
# is 0 (and a limit of 0 means "none" to many programs), a result of 3 GB is "smaller" than 1 MB, and a loop that waits until a file is
# large enough never ends.  The package has the same shell with a long as `lksh`.
#   bytes of 4 GB   of 6 GB       is 3000000000 over 1000000?
#   mksh: 0         -2147483648   no
#   lksh: 4294967296 6442450944   yes      dash: 4294967296 6442450944 yes
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download mksh='59c-28*' dash=0.5.12-2 >/dev/null 2>&1 || exit 2
for package in *.deb; do dpkg -x "$package" .; done
truncate -s 3000000000 result
seen=
for shell in mksh lksh dash; do
    # shellcheck disable=SC2016
    seen="$seen$shell: $("bin/$shell" -c 'over=no; [ "$(stat -c %s result)" -gt 1000000 ] && over=yes
        echo $((4 << 30)) $((6 * 1024 * 1024 * 1024)) $over');"
done
echo "$seen"
[ "$seen" = "mksh: 0 -2147483648 no;lksh: 4294967296 6442450944 yes;dash: 4294967296 6442450944 yes;" ]
