"""Install the programs that tests use beside Python, or make a root of newer releases and run a command
there; say what cannot be had.

    python3 -m tests.real.rigs tools
    python3 -m tests.real.rigs newer [COMMAND...]
"""
import sys

from tests.real.rigs import lacking, newer

if sys.argv[1:2] == ["newer"] and sys.argv[2:]:
    newer.enter(sys.argv[2:])

# not before: they compile the scripts, in a directory that is removed at the exit
from tests.real.rigs import condor, fs, gridengine, nfs, slurm, ssh

TOOLS = {
    **ssh.TOOLS,
    **slurm.TOOLS,
    **gridengine.TOOLS,
    **condor.TOOLS,
    **nfs.TOOLS,
    "ganesha.nfsd": "nfs-ganesha",
    "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so": "nfs-ganesha-vfs",
    "corosync": "corosync",
    "dlm_controld": "dlm-controld",
    "mkfs.gfs2": "gfs2-utils",
    "mkfs.ocfs2": "ocfs2-tools",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.f2fs": "f2fs-tools",
    **fs.TOOLS,
    **newer.TOOLS,
    **fs.VIEWS,
    "mpirun": "openmpi-bin",
    "rsync": "rsync",
    "parallel": "parallel",
    "chromium": "chromium",
    # readers of our tables; pandas and jsonlite have no program
    "jq": "jq",
    "mlr": "miller",
    "node": "nodejs",
    "sqlite3": "sqlite3",
    "mawk": "mawk",
    "gawk": "gawk",
    "localedef": "libc-bin",
    "Rscript": "r-cran-jsonlite",
    "pandas": "python3-pandas",
    "modulecmd": "environment-modules",
    "busybox": "busybox",
    "mksh": "mksh",
    "yash": "yash",
    "zsh": "zsh",
    "ksh": "ksh93u+m",
}

wants_newer = sys.argv[1:] == ["newer"]
found = newer.missing() if wants_newer else lacking("all that the tests use", TOOLS, ["true"])
if found:
    print(found)
