#!/usr/bin/env bash
# Linux 6.18, Python 3.11.2.  A parent holds N record locks, each on its own description of one file (F_OFD_SETLK), and starts
# children, which close what they have inherited, as exec does with O_CLOEXEC.  Guess: to close a descriptor costs the same
# however many locks the file has.  Seen: each close goes through all locks of the file, although none is the child's: N x N.
# With 4 x as many locks a child costs 9 to 16 x as much, without locks 4 x at most.
#   ms of CPU for a child that closes N descriptors of a file, with locks and without: 500 3.6 1.4, 2000 32.0 1.7
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
ulimit -n 3000 || exit 2
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
cat > model.py <<'PYTHON'
import fcntl, os, resource, struct, sys

def milliseconds(count, with_locks):
    """The CPU time of a child that closes `count` descriptors, the least of five."""
    fds = [os.open("locked" if with_locks else "plain", os.O_RDWR | os.O_CREAT, 0o600) for _ in range(count)]
    for number, fd in enumerate(fds if with_locks else ()):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2 * number, 1, 0))
    taken = []
    for _ in range(5):
        pid = os.fork()
        if not pid:
            os.closerange(fds[0], fds[-1] + 1)
            os._exit(0)
        used = os.wait4(pid, 0)[2]
        taken.append(1000 * (used.ru_utime + used.ru_stime))
    for fd in fds:
        os.close(fd)
    return min(taken)

few, many, many_plain = milliseconds(500, True), milliseconds(2000, True), milliseconds(2000, False)
few_plain = milliseconds(500, False)
print(f"ms of CPU for a child that closes N descriptors of a file, with locks and without: "
      f"500 {few:.1f} {few_plain:.1f}, 2000 {many:.1f} {many_plain:.1f}")
sys.exit(not (many > 6 * few and many > 6 * many_plain))
PYTHON
PYTHONHOME=root/usr root/usr/bin/python3.11 model.py
