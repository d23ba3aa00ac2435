#!/usr/bin/env bash
# CPython 3.11.2 (Debian 12; the same in 3.14.10 and 3.15.2, where "forkserver" is what a plain multiprocessing.Process uses on Linux).  A
# script gives each process its GPU and cores: it sets os.environ["CUDA_VISIBLE_DEVICES"] and sched_setaffinity(), then calls start().
# Guess: a child has what its parent has when it is started, as with "fork" and "spawn"; and so it seems, since it is in the
# parent's directory and has its sys.argv.  Seen: these two are handed over.  All else is what the parent had when its first child was
# started: environment, cores, umask, niceness.  So all processes share the first GPU, and later devices idle, without a
# word.  What a child needs goes into its arguments, and is set by the child before it imports what reads it.
#   second child:  fork, spawn: GPU 1, nice 1, umask 027, directory 1       forkserver: GPU 0, nice 0, umask 022, directory 1
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'sleep 1; rm -rf "$dir"' EXIT          # helpers of multiprocessing end after it
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
mkdir 0 1
cat >gpus.py <<'PY'
import multiprocessing, os, sys

def look(queue):
    queue.put([os.environ["CUDA_VISIBLE_DEVICES"], os.nice(0) - int(os.environ["BEFORE"]), os.umask(0), os.path.basename(os.getcwd())])

if __name__ == "__main__":
    os.environ["BEFORE"] = str(os.nice(0))
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    for gpu in "0", "1":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        os.nice(int(gpu))
        os.umask(0o027 if gpu == "1" else 0o022)
        os.chdir(os.path.join(os.path.dirname(__file__), gpu))
        process = context.Process(target=look, args=[queue])
        process.start()
        seen = queue.get()
        process.join()
    print(sys.version.split()[0], sys.argv[1], seen)
    sys.exit(seen != (["0", 0, 0o022, "1"] if sys.argv[1] == "forkserver" else ["1", 1, 0o027, "1"]))
PY
export PYTHONHOME=$dir/root/usr
for way in fork spawn forkserver; do root/usr/bin/python3.11 "$dir/gpus.py" $way; done
