#!/usr/bin/env bash
# CPython 3.11.2 (Debian 12; the same in 3.9.18 and 3.13.0).  A program keeps output in a tempfile.SpooledTemporaryFile, which moves
# from memory to a file above max_size, and goes on after an OSError of write(), such as ENOSPC: the rest is lost, the file stays.
# Guess: later writes raise OSError, too, or succeed once there is room; what was written before can be read; close() ends it.  Seen:
# if the move itself fails, it is half done for good: the next write() raises AttributeError, which `except OSError` lets through.
# If a later write fails, the buffer keeps what was refused, so seek(0) raises, and nothing of the file can be read; and close() raises.
# What stays usable: an unbuffered TemporaryFile behind a bytearray of one's own.  The full disk is a limit of 64 KiB a file here.
#   the move fails:          write OSError, write AttributeError, close OSError
#   a later write fails:     write 60000, write 8000, write 4, seek OSError, close OSError
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' \
    2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
export PYTHONHOME=$dir/root/usr
cat >spooled.py <<'PY'
import resource, signal, tempfile
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def try_all(title, *calls):
    file = tempfile.SpooledTemporaryFile(1000)
    seen = []
    for name, *arguments in calls:
        try:
            seen.append(f"{name} {getattr(file, name)(*arguments)}")
        except (OSError, AttributeError) as error:
            seen.append(f"{name} {type(error).__name__}")
    print(f"{title}: {', '.join(seen)}")

try_all("the move fails", ("write", b"x" * 100_000), ("write", b"more"), ("close",))
try_all("a later write fails", ("write", b"x" * 60_000), ("write", b"x" * 8000), ("write", b"more"), ("seek", 0), ("close",))
PY
seen=$(root/usr/bin/python3.11 spooled.py)
echo "$seen"
[ "$seen" = "the move fails: write OSError, write AttributeError, close OSError
a later write fails: write 60000, write 8000, write 4, seek OSError, close OSError" ]
