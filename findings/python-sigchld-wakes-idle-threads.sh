#!/usr/bin/env bash
# CPython 3.9 to 3.13 (seen: 3.9.18, 3.11.2, 3.12.1, 3.13.0), glibc 2.36.  A program keeps two children running: when one has ended it
# starts the next, and it has a handler for SIGCHLD.  Another thread waits in SimpleQueue.get().  Guess: the manual says that handlers
# run in the main thread, so the other thread sleeps.  Seen: os.posix_spawn(), and subprocess since 3.10, block all signals of the
# thread that calls them until the child has called execve(2).  A SIGCHLD that comes meanwhile goes to the idle thread, which wakes up
# and waits for the GIL to look for handlers; each system call of the main thread wakes it once more.  A thread that blocks all signals
# sleeps.
#   300 children started by     times that the idle thread waited: without a mask     with signals blocked
#   os.posix_spawn()            some hundreds                                         0
#   subprocess.Popen()          some hundreds (3.9: 0)                                0
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
cat >idle.py <<'PY'
import os, queue, signal, subprocess, sys, threading

def spawn():
    os.posix_spawn("/bin/true", ["true"], os.environ)

kept = []
def popen():
    kept.append(subprocess.Popen(["/bin/true"]))        # a dropped one would be waited for

def switches(task):
    with open(f"/proc/self/task/{task}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary"))

def idle(blocks, todo):
    if blocks:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    todo.get()

signal.signal(signal.SIGCHLD, lambda *_: None)
seen = []
for start in spawn, popen:
    for blocks in False, True:
        todo = queue.SimpleQueue()
        thread = threading.Thread(target=idle, args=(blocks, todo))
        thread.start()
        start()
        start()
        before = switches(thread.native_id)
        for _ in range(300):
            os.wait()
            start()
        seen.append(switches(thread.native_id) - before)
        todo.put(None)
        os.wait()
        os.wait()
        thread.join()
print(sys.version.split()[0], seen)
sys.exit(not (min(seen[::2]) > 30 > 3 > max(seen[1::2])))
PY
PYTHONHOME=$dir/root/usr root/usr/bin/python3.11 idle.py
