"""Install the programs that tests use beside Python, or build the image of the NFS machines; say what cannot
be had.

    python3 -m tests.rigs tools
    python3 -m tests.rigs image
"""
import sys

from tests.rigs import fs, lacking, nfs, slurm, ssh

TOOLS = {
    **ssh.TOOLS,
    **slurm.TOOLS,
    **nfs.TOOLS,
    **fs.TOOLS,
    "mpirun": "openmpi-bin",
    "rsync": "rsync",
    "parallel": "parallel",
    "chromium": "chromium",
    "modulecmd": "environment-modules",
}

found = nfs.missing() if sys.argv[1:] == ["image"] else lacking("all that the tests use", TOOLS, ["true"])
if found:
    print(found)
