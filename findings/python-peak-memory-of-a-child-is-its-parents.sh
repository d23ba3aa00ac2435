#!/usr/bin/env bash
# CPython 3.11.2, GNU time 1.9 (Debian 12), on Linux.  A notebook that holds a large table starts programs by subprocess and asks for their
# peak memory: os.wait4(), or getrusage(RUSAGE_CHILDREN).ru_maxrss.  Guess: that is what the program used, since exec gives it a new
# address space.  Seen: the peak of the process before exec counts, and that is the memory of the notebook, with vfork (subprocess) as
# with fork, and also if the table was freed long ago.  So each program seems to need at least as much as the notebook ever had, and batch
# jobs ask for that.  `time -f %M` in front of the program gives its own peak.
#   peak of `true`, started from 300 MB:  subprocess: over 300 MB,  fork: over 300 MB,  after the 300 MB are freed: over 300 MB
#   by time: under 50 MB
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' time=1.9-0.2 \
    2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
cat >peak.py <<'PY'
import os, subprocess, sys
table = bytearray(b"x") * (300 << 20)

def peak(pid):
    return os.wait4(pid, 0)[2].ru_maxrss >> 10      # in MB

def started():
    program = subprocess.Popen(["true"])            # a name keeps it: a Popen object that goes takes the status
    return peak(program.pid)

def forked():
    pid = os.fork()
    if not pid:
        os.execvp("true", ["true"])
    return peak(pid)

peaks = [started(), forked()]
del table
peaks.append(started())
own = int(subprocess.run(["root/usr/bin/time", "-f", "%M", "true"], stderr=subprocess.PIPE).stderr) >> 10
print(*peaks, own)
sys.exit(min(peaks) < 300 or own > 50)
PY
PYTHONHOME=$dir/root/usr root/usr/bin/python3.11 peak.py
