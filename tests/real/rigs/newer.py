"""A root of Debian unstable in a directory here: newer releases of Python, Slurm, OpenSSL and shells.

    python3 -m tests.real.rigs newer                                # make it: a minute, 500 MB
    python3 -m tests.real.rigs newer python3.15 -m unittest ...     # run a command there, in this directory

Commands there share the kernel, the network, /proc, /dev, /sys, /tmp and this directory with the machine.
Mounts are made in a mount namespace of the command, and end with its last process.
"""
import os
from collections.abc import Sequence
from typing import NoReturn

from tests.real.rigs import PATH, lacking

SUITE = "sid"
PACKAGES = ("python3.14,python3.15,procps,iproute2,openssl,git,parallel,slurm-wlm,munge,"
            "busybox,ksh93u+m,mksh,yash,zsh")
TOP = os.environ.get("RUNMAKER4_TEST_NEWER", "/var/tmp/runmaker4-newer")
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "flock": "util-linux"}
PRIVATE = ["unshare", "--mount", "--propagation", "private"]
# From this Debian's mirror; anew if it is for other packages, or was not completed
MAKE = """
root=$1 suite=$2 packages=$3
exec 9>"$root.lock"
flock 9
[ "$(cat "$root/complete" 2>&1)" != "$suite $packages" ] || exit 0
rm -rf --one-file-system "$root"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" \
    /usr/share/debootstrap/scripts/sid >"$root.log" 2>&1 || { tail -n 1 "$root.log" >&2; exit 1; }
rm -f "$root"/var/cache/apt/archives/*.deb
cp /etc/resolv.conf "$root/etc/"
echo "$suite $packages" >"$root/complete"
"""
# `/` has to be a mount point there: Slurm's rig makes mount namespaces of its own
ENTER = """
root=$1 here=$PWD
shift
mount --bind "$root" "$root"
mount --bind /etc/hosts "$root/etc/hosts"
for directory in /proc /dev /sys /tmp; do mount --rbind "$directory" "$root$directory"; done
case $here/ in /tmp/*) ;; *) mkdir -p "$root$here"; mount --rbind "$here" "$root$here" ;; esac
mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
cd "$here"
exec "$@"
"""


def missing() -> str:
    """Return what is missing for such a root, as a sentence; '' if it is there.  Makes it where it may."""
    make = [*PRIVATE, "sh", "-euc", MAKE, "sh", TOP, SUITE, PACKAGES]
    return lacking("a root of newer releases", TOOLS, make, timeout=1200)


def enter(command: Sequence[str]) -> NoReturn:
    """Become a command in the root.  Raises SystemExit if there can be no such root."""
    if found := missing():
        raise SystemExit(found)
    os.environ["PATH"] = PATH
    os.execvp(PRIVATE[0], [*PRIVATE, "sh", "-euc", ENTER, "sh", TOP, *command])
