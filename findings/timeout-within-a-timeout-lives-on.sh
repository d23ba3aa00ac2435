#!/usr/bin/env bash
# timeout of coreutils 9.1 (Debian 12).  A pipeline is limited by `timeout 1h sh pipeline.sh`, and one of its steps by `timeout 2h prog`.
# Guess: the outer limit ends all of it, since timeout makes a process group and signals that group, and the inner timeout hands on a TERM.
# Seen: the inner timeout makes a process group, too, so no signal of the outer one comes to it, neither TERM nor KILL.  The shell
# is gone, the outer timeout gives 124, and the program runs on for the inner limit, beside the next try that writes the same
# files.  With `timeout --foreground` inside, it stays in the group and ends.
#   program after the outer limit:  no inner timeout: ended,  inner timeout: runs (TERM) runs (KILL),  inner --foreground: ended
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download coreutils=9.1-1 2>apt.log || { cat apt.log; exit 2; }
dpkg -x coreutils_*.deb .
export PATH=$dir/usr/bin:$PATH
# shellcheck disable=SC2016
echo 'echo $$ >"$1.part" && mv "$1.part" "$1"; exec sleep 30' >program.sh
after() {       # after NAME SIGNAL [INNER...]: whether the program runs on after the outer limit
    local status=0 state=ended pid
    timeout -s "$2" 3 sh -c '"$@"; echo next' sh "${@:3}" sh program.sh "$1" >/dev/null 2>&1 || status=$?
    sleep 0.5
    pid=$(cat "$1")
    if [[ $(ps -o stat=,comm= -p "$pid") =~ ^[^Z].*sleep ]]; then state=runs; kill "$pid"; fi
    echo "$1: $status $state"
}
seen=$(after none TERM; after TERM TERM timeout 20; after KILL KILL timeout 20; after foreground TERM timeout --foreground 20)
echo "$seen"
[ "$(paste -sd';' <<<"$seen")" = "none: 124 ended;TERM: 124 runs;KILL: 137 runs;foreground: 124 ended" ]
