#!/usr/bin/env bash
# GNU make 4.3 (Debian 12).  Guess: a recipe without `+` gets no jobserver, and a make that finds MAKEFLAGS without it says "jobserver
# unavailable: using -j1".  Seen: MAKEFLAGS names the descriptors 3 and 4 all the same, and an inner make that finds any files there
# takes them for the pipes, without a word: it reads bytes of the one and writes "+" into the other.  So whoever starts programs from
# a recipe must take `--jobserver-auth=R,W` out of MAKEFLAGS.  (make 4.4 uses a named pipe: `fifo:PATH`.)
#   next byte of in.txt: 4 (three were read), out.txt: +++, exit status 0
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download make=4.3-4.1 2>apt.log || { cat apt.log; exit 2; }
dpkg -x make_*.deb . && export PATH=$dir/usr/bin:$PATH
unset MAKEFLAGS MFLAGS MAKELEVEL
printf 'all: a b c d\na b c d:\n\t@sleep 0.3\n' >inner.mk
printf 'run:\n\t@sh ./recipe.sh\n' >Makefile
printf '123456789' >in.txt
cat >recipe.sh <<'SH'
exec 3<in.txt 4>out.txt
make -s -f inner.mk
echo "next byte of in.txt: $(head -c1 <&3), out.txt: $(cat out.txt)"
SH
seen=$(make -s -j2 3>&- 4>&-)
echo "$seen, exit status $?"
grep -q 'auth=3,4' <(printf 'all:\n\t@echo $$MAKEFLAGS\n' | make -s -j2 -f - 3>&- 4>&-)
[[ $seen =~ ^"next byte of in.txt: "[2-9]", out.txt: +" ]]
