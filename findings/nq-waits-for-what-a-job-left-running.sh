#!/usr/bin/env bash
# nq 0.3.1 (Debian 12).  A job starts something in the background that lives on: ccache, ssh-agent, a cluster of workers, a forgotten `&`.
# Guess: the next job starts when this one has ended; nq writes "exited with status 0" then.  Seen: a job's output file is also its lock,
# and every process that has inherited it as stdout or stderr holds the lock.  So the queue stands still after a job that is reported as
# ended, `nq -w` waits, and `nq -t` says that it runs; nothing names the process that holds it up.  With `>/dev/null 2>&1 &` the next job
# starts.
#   first job: "exited with status 0", second job while the background process lives: not begun, -t: 1; after its end: begun, -t: 0
#   with the output of the background process redirected, second job: begun
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'touch "$dir/end"; sleep 1; rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download nq=0.3.1-4 2>apt.log || { cat apt.log; exit 2; }
dpkg -x nq_*.deb .
nq() { usr/bin/nq "$@"; }
is() { for _ in $(seq "$1"); do "${@:2}" && return; sleep 0.1; done; return 1; }
begun() { if is "$1" test -e second; then echo begun; else echo "not begun"; fi; }
cat >daemon.sh <<'SH'
for _ in $(seq 600); do [ ! -e end ] || break; sleep 0.1; done
SH
export NQDIR=queue
first=$(nq sh -c 'sh daemon.sh & echo started')
nq -q touch second
is 100 grep -q 'exited with status 0' "queue/$first"
status=0; nq -t "$first" || status=$?
seen="$(begun 30) $status"
touch end
seen="$seen, $(begun 100)"
is 100 nq -t "$first" && seen="$seen 0"
rm end second
nq -q sh -c 'sh daemon.sh >/dev/null 2>&1 & echo started'
nq -q touch second
seen="$seen, $(begun 100)"
echo "$seen"
[ "$seen" = "not begun 1, begun 0, begun" ]
