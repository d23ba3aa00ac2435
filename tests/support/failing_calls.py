"""A script whose nth system call fails, for each n."""
from tests.support.scripts import SCRIPTS_AT

# Runs runset4.py with these words in a fork for each n; prints, as JSON, n, exit status and the call that
# failed, then the text of the file and what was said.  It ends once the script makes fewer calls
EACH_CALL = f"import sys\nsys.path[:0] = [{str(SCRIPTS_AT)!r}]\n" + """
import builtins, errno, fcntl, json, os, shutil
import runmaker4, runset4
FUNCTIONS = [(os, name) for name in (
    "open close read write pread preadv pwrite fsync fstat stat lstat readlink listdir rename unlink "
    "ftruncate fchmod fchown").split()] + [(fcntl, "fcntl"), (builtins, "open")]
error = OSError(errno.EIO, os.strerror(errno.EIO))
calls, failed = 0, ""

def failing(name, function, nth):
    def call(*args, **settings):
        global calls, failed
        calls += 1
        if calls != nth:
            return function(*args, **settings)
        failed = f"{name}{args[:2]}"
        if name == "close":
            function(*args)
        raise error
    return call

def attempt(nth):
    for module, name in FUNCTIONS:
        setattr(module, name, failing(name, getattr(module, name), nth))
    try:
        return runset4.run_command(sys.argv[1:])
    except runmaker4.UsageError as refusal:
        print(refusal, file=sys.stderr)
        return 2

shutil.copy("runs.txt", "before")
nth = 1
while True:
    shutil.copy("before", "runs.txt")
    pid = os.fork()
    if not pid:
        real_write, said = os.write, os.open("said", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 2)
        status = attempt(nth)
        sys.stderr.flush()
        real_write(1, json.dumps([nth, status, failed]).encode() + b"\\n")
        os._exit(not failed)
    _, ended = os.waitpid(pid, 0)
    if ended:
        break
    print(json.dumps([open("runs.txt").read(), open("said").read()]), flush=True)
    nth += 1
"""
