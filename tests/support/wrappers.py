"""What --runner runs in tests, and jobs that a wrapper must hand on as they are."""


# Jobs that a wrapper must hand on as they are: quotes, expansions, patterns, bytes, statuses
NASTY = [
    rb"""printf '%s\n' "a 'b' \"c\"" 'd "e" $HOME `echo f`' g\ h \$HOME""",
    rb"""printf '%s\n' "$JOB_ID" "$(echo "x  y")" `echo \`echo z\`` ${HOME:+set} """
    rb"""$((1+1)) '$SLAVE_IP' "$SLAVE_IP" """,
    rb"""set -- 'a  b' ""; printf '<%s>' "$#" "$@" '' "\\" '\' '\\'""",
    b"printf '%s\\n' 'caf\xe9' \"\xff\xfe\" \xc3\xa9 '\x01\x7f\t'",
    rb"""echo * ? [a-z] ~ {a,b} ! !! '!' # a comment 'that is not' closed""",
    rb"""echo out; echo err >&2; { echo more; } | cat; exit 3""",
    rb"""for i in 1 2 3; do case $i in (2) continue;; *) echo "$i;";; esac; done && [ "$i" = 3 ] || false""",
    rb"""(exit 41)""",
    rb"""echo 'unbalanced""",
    rb"""echo a ; ; echo b""",
    rb"""    	echo leading blanks and trailing ones  	  """,
    rb"""-n 2>/dev/null; echo "it's" 'a"b'"'"'c' ''\''' """,
    rb"""no-such-command-here 2>/dev/null""",
    rb"""exec sh -c 'echo "$0" "$1"' "a b" 'c d'""",
    b"printf %s '" + b"x" * 30000 + b"' | wc -c",
    b"printf %s \"" + b"'" * 5000 + b"\" | wc -c",
]
LOGGING_WRAPPER = """#!/bin/sh
for word; do printf '%s\\0' "$word"; done >>arguments.$JOB_ID
exec "$@"
"""
SSH = """#!/bin/sh
# As ssh does: options, a host, and the other words, joined by blanks, for a shell over there.
while [ "$1" = -o ]; do shift 2; done
echo "$1" >>hosts
shift
exec env -i PATH="$PATH" HOME="$HOME" JOB_ID="$JOB_ID" SLAVE_IP="$SLAVE_IP" sh -c "$*"
"""
