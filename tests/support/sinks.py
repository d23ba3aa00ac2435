"""a_run(): a run of a job, as the sinks of a runner get it."""
import runmaker4

JOB = runmaker4.Job(runmaker4.Line(7, 0, b".", b" CMD"))
SHELL = runmaker4.Shell(601, b"")


def a_run(job: runmaker4.Job = JOB) -> runmaker4.Run:
    """A run of a job, as the sinks see it."""
    run = runmaker4.Run(job, ["1"], b"alice")
    run.shell = SHELL
    run.streams = runmaker4.Stream(b"stdout", 3), runmaker4.Stream(b"stderr", 4)
    return run
