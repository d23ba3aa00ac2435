#!/usr/bin/env bash
# zsh 5.9 (Debian 12).  Guess: `echo x > =tool` makes a file =tool here, as in sh, bash, dash and ksh.  Seen: an unquoted word that begins
# with = stands for the path of that command on PATH, also behind > (option EQUALS), so the program `tool` is overwritten, and no file
# is made here.  A value such as =ls, put without quotes into a line for any shell, is text everywhere but in zsh.
#   sh made: =tool; zsh made: , tool is now: x
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download zsh=5.9-4+b15 >/dev/null 2>&1 || exit 2
dpkg -x zsh_*.deb root
mkdir commands in-sh in-zsh
printf '#!/bin/sh\necho a program\n' > commands/tool
chmod +x commands/tool
(cd in-sh; PATH=$dir/commands:$PATH sh -c 'echo x > =tool')
before=$(head -c 9 commands/tool)
(cd in-zsh; PATH=$dir/commands:$PATH "$dir/root/bin/zsh" -f -c 'echo x > =tool')
seen="sh made: $(ls in-sh); zsh made: $(ls in-zsh), tool is now: $(cat commands/tool)"
echo "$seen"
[ "$before" = '#!/bin/sh' ] && [ "$seen" = "sh made: =tool; zsh made: , tool is now: x" ]
