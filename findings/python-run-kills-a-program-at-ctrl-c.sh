#!/usr/bin/env bash
# CPython 3.11.2 (Debian 12; the same in 3.14.10 and 3.15.2).  A script starts a simulation that saves its state at Ctrl-C, which takes a
# second.  Guess: the terminal sends INT to both, subprocess.run() lets the program end and then raises KeyboardInterrupt, as os.system()
# and a shell wait for it; run() kills only at its timeout.  Seen: run() and call() wait for 0.25 s and then send KILL.  With stdout=PIPE,
# and so in check_output(), KILL comes at once.  The state is lost, or half a file is there.  After Popen(...).wait() the program is left
# running and saves it, behind the prompt.
#   state saved:  run no, call no, check_output no, Popen yes, os.system yes
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
export PYTHONHOME=$dir/root/usr
cat >program.py <<'PY'
import signal, sys, time

def save(*_):
    time.sleep(1)
    open("saved", "w").close()
    sys.exit()

signal.signal(signal.SIGINT, save)
open("ready", "w").close()
time.sleep(20)
PY
cat >script.py <<'PY'
import os, shlex, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
program = [sys.executable, "program.py"]
{"run": subprocess.run, "call": subprocess.call, "check_output": subprocess.check_output,
 "Popen": lambda command: subprocess.Popen(command).wait(),
 "os.system": lambda command: os.system(shlex.join(command))}[sys.argv[1]](program)
PY
cat >terminal.py <<'PY'
import os, signal, subprocess, sys, time
seen = {}
for way in "run", "call", "check_output", "Popen", "os.system":
    script = subprocess.Popen([sys.executable, "script.py", way], stderr=subprocess.DEVNULL, start_new_session=True)
    while not os.path.exists("ready"):
        time.sleep(0.01)
    time.sleep(0.2)                     # until the script waits
    os.killpg(script.pid, signal.SIGINT)
    script.wait()
    time.sleep(3)
    seen[way] = os.path.exists("saved")
    for name in "ready", "saved":
        if os.path.exists(name):
            os.remove(name)
print(sys.version.split()[0], seen)
sys.exit(seen != {"run": False, "call": False, "check_output": False, "Popen": True, "os.system": True})
PY
root/usr/bin/python3.11 terminal.py
