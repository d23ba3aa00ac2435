"""LimitedCase: what cgroups and variables allow a runner."""
import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Optional
from unittest import mock

import runmaker4
from tests.support.runs import RunCase


class LimitedCase(RunCase):
    """A test of what a runner may use."""

    @contextlib.contextmanager
    def limited(self, groups: str, limits: Optional[Mapping[str, str]],
                env: Optional[dict[str, str]]) -> Iterator[None]:
        """Have this text in /proc/self/cgroup, these files in /sys/fs/cgroup, and these variables."""
        root = self.dir / "cgroup"
        for name, text in (limits or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
        own = self.write(groups, "self")
        groups_of_ours = mock.patch.multiple(runmaker4, CGROUP_ROOT=str(root), PROC_CGROUP=str(own))
        with groups_of_ours, mock.patch.dict(os.environ, self.environ(env), clear=True):
            yield
        shutil.rmtree(root, ignore_errors=True)
