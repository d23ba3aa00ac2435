#!/usr/bin/env bash
# CPython 3.11.2 (Debian 12; the same in 3.14.10 and 3.15.2).  A farm sets SIGCHLD to SIG_IGN, so that its children leave no zombies, and
# starts a script that runs programs with subprocess.run(..., check=True).  Guess: the script has the usual SIGCHLD after exec, or at
# least a failure stays one or raises an error.  Seen: "ignored" is inherited over exec, and the kernel then keeps no exit status.
# subprocess takes what it cannot read for 0: check=True passes, each program "went well".  asyncio says 255, and multiprocessing
# None, for all of them.  dash sees the status, and what it starts has the usual SIGCHLD, so the same script is right if a
# shell is in between.  Otherwise it needs signal.signal(SIGCHLD, SIG_DFL) before it starts anything.
#   status of a program that exits with 3:  run 0, getstatusoutput 0, asyncio 255, multiprocessing None; after SIG_DFL: 3, 3, 3, 3
#   dash, started in the same way: 3; the script started by dash: 3, 3, 3, 3
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' dash=0.5.12-2 \
    2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
export PYTHONHOME=$dir/root/usr
cat >farm.py <<'PY'
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
print(job.stdout.read().decode().strip())
PY
cat >script.py <<'PY'
import asyncio, multiprocessing, signal, subprocess, sys
if sys.argv[1:] == ["default"]:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
program = ["sh", "-c", "exit 3"]

async def by_asyncio():
    return await (await asyncio.create_subprocess_exec(*program)).wait()

statuses = [subprocess.run(program).returncode, subprocess.getstatusoutput("exit 3")[0], asyncio.run(by_asyncio())]
process = multiprocessing.get_context("fork").Process(target=sys.exit, args=[3])
process.start()
process.join()
print(*statuses, process.exitcode)
PY
python=root/usr/bin/python3.11
seen=$($python farm.py $python script.py; $python farm.py $python script.py default; $python farm.py root/bin/dash -c '(exit 3); echo $?'
    $python farm.py root/bin/dash -c "$python script.py; :")
echo "$seen"
[ "$(paste -sd';' <<<"$seen")" = "0 0 255 None;3 3 3 3;3;3 3 3 3" ]
