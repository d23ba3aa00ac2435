#!/usr/bin/env bash
# csv of Python 3.9 to 3.12 and 3.13, pandas 2.2.3 (PyPI).  A cell has what a job printed: a progress bar, "10%", CR, "100%".  Guess: a
# writer quotes each field that a reader would split.  Seen: before 3.13 it quotes CR only if CR is part of its own lineterminator.  With
# lineterminator="\n", which many choose for awk and diff, the field is written bare, and pandas ends the row there: one row more, and
# the numbers behind the bar are in other columns, without any error.
#   before 3.13:  lineterminator LF: 2 rows, CR LF: 1 row        since 3.13: 1 and 1
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" -q install --only-binary :all: pandas==2.2.3 || exit 2
cd "$dir"
cat >rows.py <<'PY'
import csv, io, sys
import pandas
seen = []
for end in "\n", "\r\n":
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([["line", "printed", "seconds"], [1, "10%\r100%", 2.5]])
    table = pandas.read_csv(io.BytesIO(text.getvalue().encode()))
    seen.append(len(table))
    print(sys.version.split()[0], repr(text.getvalue()), table.values.tolist())
sys.exit(seen != ([1, 1] if sys.version_info >= (3, 13) else [2, 1]))
PY
venv/bin/python rows.py
