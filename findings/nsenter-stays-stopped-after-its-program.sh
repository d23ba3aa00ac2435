#!/usr/bin/env bash
# nsenter and unshare of util-linux 2.38.1 (Debian 12).  A batch job runs its program in a container's PID namespace, by nsenter, and
# something suspends that program for a while (kill -STOP, later kill -CONT).  Guess: nsenter only waits for it, and ends with its exit
# status.  Seen: where nsenter forks (--pid), it stops itself when the program has stopped, so that Ctrl-Z works through it, and
# SIGCONT to the program does not wake it.  The program goes on and ends; it stays a zombie, nsenter stays stopped, and who waits for
# it waits until somebody continues nsenter: then the status is right.  unshare --fork, which looks the same, never stops.
#   program stopped:               nsenter T, unshare S
#   continued, and at its end:     nsenter T, unshare has ended with 7 (nsenter too, once it is continued)
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download util-linux='2.38.1-5*' 2>apt.log || { cat apt.log; exit 2; }
dpkg -x util-linux*.deb .
state() { sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null || echo -; }
child() { until pgrep -P "$1"; do [ -e "/proc/$1/exe" ] || return 1; sleep 0.05; done; }      # 1: it has ended without one
usr/bin/unshare --user --map-root-user --pid --fork sleep 30 &
inside=$(child $!) || { echo "no user namespaces here"; exit 2; }
seen=
for wrapper in "usr/bin/nsenter --target $inside --user --preserve-credentials --pid" \
               "usr/bin/unshare --user --map-root-user --pid --fork"; do
    $wrapper sh -c 'sleep 1; exit 7' &
    program=$(child $!)
    kill -STOP "$program"
    sleep 1
    seen="$seen $(state $!)"
    kill -CONT "$program"
    sleep 3
    seen="$seen $(state "$program")$(state $!)"
    kill -CONT $! 2>/dev/null || true
    wait $! || seen="$seen $?"
done
kill -KILL "$inside"          # the first process of a namespace ignores TERM
echo "nsenter, then unshare: wrapper while the program is stopped; program and wrapper at the end; exit status:$seen"
[ "$seen" = " T ZT 7 S -- 7" ]
