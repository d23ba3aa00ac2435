#!/usr/bin/env bash
# zsh 5.9, bash 5.2.15, dash 0.5.12 (Debian 12).  Guess: a signal that is ignored when a script starts (nohup: HUP; `trap '' TERM` in
# the caller; a background command: INT) stays ignored, since POSIX says that a non-interactive shell can neither trap nor reset it.
# Seen: bash and dash do that, without a word.  zsh sets the trap and runs it, and `trap - HUP` takes the caller's protection away,
# also from the programs that the script starts.  So a script that tidies up its traps survives the end of the login under
# nohup in bash, and its programs die in zsh.
#   trap for an ignored signal:  dash ignored, bash ignored, zsh ran       after `trap -`, a program:  dash lives, bash lives, zsh died
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download zsh=5.9-4+b15 bash=5.2.15-2+b13 dash=0.5.12-2 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" root; done
trap '' HUP
seen=
for shell in dash bash zsh; do
    path=root/bin/$shell
    # shellcheck disable=SC2016
    trapped=$("$path" -c 'word=ignored; trap "word=ran" HUP; kill -HUP $$; echo $word')
    # shellcheck disable=SC2016
    program=$("$path" -c 'trap - HUP; sh -c "kill -HUP \$\$; echo lives" || echo died')
    seen="$seen$shell $trapped $program;"
done
echo "$seen"
[ "$seen" = "dash ignored lives;bash ignored lives;zsh ran died;" ]
