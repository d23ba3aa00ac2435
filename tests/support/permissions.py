"""Settings with which root, too, is bound by permissions."""
import ctypes
import os
import subprocess
from typing import Any

from tests.support.case import Case

PR_CAPBSET_DROP, CAP_DAC = 24, (1, 2)       # of <linux/prctl.h>; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


def bound_by_permissions(case: Case) -> dict[str, Any]:
    """Settings for start() with which root, too, is bound by the permissions of a file (Linux)."""
    if os.geteuid() != 0:
        return {}
    libc = ctypes.CDLL(None)
    settings: dict[str, Any] = dict(preexec_fn=lambda: [libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
                                                        for number in CAP_DAC])
    case.write("", "probe").chmod(0)
    reading = ["cat", str(case.dir / "probe")]
    if subprocess.run(reading, stderr=subprocess.DEVNULL, check=False, **settings).returncode == 0:
        case.skipTest(
            "root's right to pass over permissions cannot be dropped here (prctl PR_CAPBSET_DROP)"
        )
    (case.dir / "probe").unlink()
    return settings
