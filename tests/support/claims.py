"""What was claimed."""
from typing import Union

import runmaker4


def job_of(found: Union[runmaker4.Job, runmaker4.NoJob]) -> runmaker4.Job:
    """The job that was claimed, which must have been one."""
    if not isinstance(found, runmaker4.Job):
        raise AssertionError(f"no job was claimed: {found}")
    return found
