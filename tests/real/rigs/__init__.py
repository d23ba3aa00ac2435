"""Real components on one machine, for the tests in tests/real and the benchmarks."""
import contextlib
import fcntl
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Sequence

REAL = bool(os.environ.get("RUNMAKER4_TEST_REAL"))      # the tests that bring them up are on
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
NO_SERVICES = pathlib.Path("/usr/sbin/policy-rc.d")     # asked when a package wants to start its services
ONE_AT_A_TIME = "/var/tmp/runmaker4-install.lock"

MAKE_ROOT = """
root=$1 suite=$2 packages=$3
exec 9>"$root.lock"
flock 9
[ ! -e "$root/complete" ] || exit 0
exec 8>&2 >"$root.log" 2>&1
trap '[ -e "$root/complete" ] || tail -n 1 "$root.log" >&8' EXIT
rm -rf --one-file-system "$root"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
debootstrap --variant=minbase --include=python3,procps "$suite" "$root" "$mirror" \\
    /usr/share/debootstrap/scripts/sid
cp /etc/resolv.conf "$root/etc/"
cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
BEFORE
chroot "$root" apt-get -qq -o Acquire::Check-Valid-Until=false update
DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq -y --no-install-recommends install $packages
chroot "$root" useradd -u 3001 -s /bin/bash ann
touch "$root/complete"
"""


def lacking(what: str, tools: dict[str, str], probe: Sequence[str], timeout: float = 300) -> str:
    """What `what` lacks here, as a sentence; empty if it can be had.  Installs packages where it may.

    tools: programs, or paths of other files, and the Debian package of each.  probe: a command that must
    succeed, within so many seconds.
    """
    if platform.system() != "Linux" or os.geteuid() != 0:
        return f"{what} needs Linux and root"
    packages = sorted({package for tool, package in tools.items() if not is_here(tool)})
    if packages and not shutil.which("apt-get"):
        return f"{what} needs {' and '.join(packages)} (Debian's packages)"
    try:
        if packages:
            install(packages)
        subprocess.run(probe, check=True, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True,
                       env={**os.environ, "PATH": PATH})
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        return f"{what} cannot be had here: {' '.join([str(error), *said])}"
    return ""


def is_here(tool: str) -> bool:
    return os.path.exists(tool) if "/" in tool else bool(shutil.which(tool, path=PATH))


def install(packages: Sequence[str]) -> None:
    """Install Debian packages, and start none of their services."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(open(ONE_AT_A_TIME, "w"))
        fcntl.flock(lock, fcntl.LOCK_EX)        # modules that run side by side
        if not NO_SERVICES.exists():
            NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
            NO_SERVICES.chmod(0o755)
            stack.callback(NO_SERVICES.unlink)
        for words in ["update"], ["install", "-y", "--no-install-recommends", *packages]:
            subprocess.run(["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", *words], check=True,
                           timeout=600, stdin=subprocess.DEVNULL, capture_output=True,
                           env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def root_command(root: str, suite: str, packages: str, before: str = "") -> list[str]:
    """Return a command that makes a root of Debian once, with these packages and a user ann (3001).

    before: shell text that runs before the packages are installed; the root is $root.
    """
    return ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
            "sh", "-euc", MAKE_ROOT.replace("BEFORE", before), "sh", root, suite, packages]
