#!/usr/bin/env bash
# gawk 5.2.1, mawk 1.3.4, original-awk 2022-09-12, busybox 1.35.0 (Debian 12).  The mean of a column, by awk, where one run diverged and
# printed nan.  Guess: the mean is nan, as in C, Python and R, and each awk gives the same.  Seen: gawk and original-awk add 0 for nan
# and count the row, so the mean is too small and looks right; but -nan (what printf of C gives on x86 for 0.0/0.0; Python
# prints nan for that) makes it nan there, too.  mawk, the awk of Debian, and busybox take nan, and also a text that begins so
# (nancy), inf (infra) and 0x10 for numbers.
#   mean of 1 and 5 with:  nan      -nan     nancy    infra    0x10
#   gawk, original-awk:    2        -nan     2        2        2
#   mawk, busybox:         nan      -nan     nan      inf      7.33333
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download gawk=1:5.2.1-2 mawk=1.3.4.20200120-3.1 original-awk=2022-09-12-1 busybox='1:1.35.0-4*' \
    libsigsegv2='2.14-*' libmpfr6='4.2.0-*' libgmp10='2:6.2.1*' libreadline8='8.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" .; done
libraries=$(echo usr/lib/*-linux-gnu*):$(echo lib/*-linux-gnu*)
means() {
    local word
    for word in nan -nan nancy infra 0x10; do
        # shellcheck disable=SC2016
        printf '1\n%s\n5\n' $word | LD_LIBRARY_PATH=$libraries "$@" '{sum += $1; n++} END {print sum / n}'
    done | paste -sd' '
}
zero="2 -nan 2 2 2" number="nan -nan nan inf 7.33333"
seen="$(means usr/bin/gawk);$(means usr/bin/original-awk);$(means usr/bin/mawk);$(means bin/busybox awk)"
echo "gawk;original-awk;mawk;busybox: $seen"
[ "$seen" = "$zero;$zero;$number;$number" ]
