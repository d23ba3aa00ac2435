"""Promise: after a power cut no line stays `d` whose work can be lost, unless it is named and runs again.

The power is cut by killing all processes of a test and giving the host another boot.  What the kernel had not
written by then is dropped in tests/orders/random_output.py, and here on a real file system.
"""
import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
from typing import Any, Callable, Optional
from unittest import mock

import runmaker4
from tests.support.processes import MARK, Ended, marked, wait_until
from tests.support.runs import HASTY, LOOKS, WAITING, RunCase
from tests.support.scripts import PYTHON, RUNMAKER, RUNSET, RUNWAIT, SCRIPTS_AT
from tests.support.tcp import TcpCase

BOOT = f'{HASTY}runmaker4.BOOT_ID = "boot"\n'
RENEWING = f"{BOOT}runmaker4.Program.RENEWAL_SECONDS, runmaker4.Program.GATHER_SECONDS = 0.01, 0.0\n"
MARK_SIZE = runmaker4.INODE_LINE_SIZE + runmaker4.BOOT_SIZE


class PowerCase(RunCase):
    """A test in which the power is cut."""

    def setUp(self) -> None:
        super().setUp()
        self.restart()
        # that of the machine would bring all to disk that others have written
        self.use_sync("echo $* >>synced")

    def use_sync(self, commands: str) -> None:
        self.script(f"#!/bin/sh\n{commands}\n", "bin/sync")

    def environ(self, extra: Any = None) -> dict[str, str]:
        return super().environ({"PATH": f"{self.dir}/bin:{os.environ['PATH']}", **(extra or {})})

    def restart(self) -> None:
        """The host is started again."""
        self.write(f"{random.getrandbits(128):032x}\n", "boot")

    def cut(self) -> None:
        """The power fails, and the host is started again."""
        for process in self.started:            # first, so that none sees that a job dies
            process.kill()
            process.wait()
        for pid in {*marked(f"{MARK}={self.mark}")} - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # a job that was just being started has the locks of its runner, and no mark, until it is a shell
        with open(self.dir / ".runs.txt.lock", "rb") as lock_file:
            wait_until(lambda: runmaker4.is_free(lock_file.fileno(), runmaker4.USE_BYTE), what="all are gone")
        self.restart()

    def start_booted(self, *options: str, statements: str = BOOT) -> subprocess.Popen[bytes]:
        return self.start_patched(statements, "-q", *options, "runs.txt")

    def run_booted(self, *options: str) -> Ended:
        return self.finish(self.start_booted(*options))

    def status(self) -> tuple[list[int], bytes]:
        """The lines in doubt, and all that --status says."""
        shown = [self.finish(self.start_patched(BOOT, "--status", *json_option, "runs.txt", script=RUNWAIT))
                 for json_option in (["--json"], [])]
        return json.loads(shown[0].out)["in_doubt"], shown[1].out

    def mark_in_file(self) -> bytes:
        return self.read(".runs.txt.lock")[runmaker4.INODE_LINE_SIZE:]

    def jobs_up_to_gate(self, *commands: str) -> None:
        """Make runs.txt of jobs that note that they ran, and a last one that waits."""
        self.jobs(*(f"echo {number} >>ran; {command}" for number, command in enumerate(commands, 1)), WAITING)

    def ran(self) -> str:
        return self.read("ran").decode().replace("\n", "")

    def assertNothingInDoubt(self, *options: str, states: str) -> None:
        self.assertEqual(self.status()[0], [])
        ended = self.run_booted(*options)
        self.assertNotIn(b"had just ended", ended.err)
        self.assertEqual(self.states(), states, ended.err)


class Cuts(PowerCase):

    def test_lines_that_had_just_ended_are_named_and_run_again(self) -> None:
        for records in [], ["--no-records"]:
            for resumes in False, True:
                with self.subTest(records=records, resumes=resumes):
                    self.write("", "ran")
                    self.jobs_up_to_gate("true", "false", "true")
                    self.start_booted(*records)
                    self.wait_states("d!dr")
                    self.cut()
                    in_doubt, shown = self.status()
                    self.assertEqual(in_doubt, [1, 3])
                    self.assertIn(b"lines 1, 3 had just ended when this host was switched off", shown)
                    self.assertEqual(self.states(), "d!dr")         # to look changes nothing
                    self.open_gate()
                    if not resumes:
                        ended = self.run_booted(*records)
                        self.assertIn(b"lines 1, 3 had just ended when this host was switched off", ended.err)
                        self.assertEndedAs(ended, 1, "e!ee", "123")
                        self.assertEqual(self.status()[0], [])
                    ended = self.run_booted(*records, "--resume")
                    self.assertEqual(b"had just ended" in ended.err, resumes)
                    self.assertEndedAs(ended, 1, "d!dd", "12313")
                    self.assertNothingInDoubt(states="d!dd")
                    os.unlink(self.dir / "go")

    def assertEndedAs(self, ended: Ended, code: int, states: str, ran: str) -> None:
        self.assertEqual((ended.code, self.states(), self.ran()), (code, states, ran), ended.err)

    def test_a_user_who_has_looked_sets_d(self) -> None:
        self.jobs_up_to_gate("true")
        self.start_booted()
        self.wait_states("dr")
        self.cut()
        self.open_gate()
        self.run_booted()
        self.run_script(RUNSET, "runs.txt", "--set=d", "1")
        self.assertNothingInDoubt("--resume", states="dd")
        self.assertEqual(self.ran(), "1")

    def test_lines_that_were_done_before_are_safe(self) -> None:
        """By hand, and by a runner that has ended."""
        self.jobs_up_to_gate("true", "true", "true")
        self.set_state(1, "d")
        self.set_state(3, "x")
        self.set_state(4, "x")
        self.assertEqual(self.run_booted().code, 0)
        self.set_state(3, ".")
        self.set_state(4, ".")
        self.start_booted()
        self.wait_states("dddr")
        self.cut()
        self.assertEqual(self.status()[0], [3])

    def test_a_runner_that_ends_in_order_leaves_nothing(self) -> None:
        for number in signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
            with self.subTest(number=number):
                self.jobs_up_to_gate("true")
                runner = self.start_booted()
                self.wait_states("dr")
                self.assertNotEqual(self.mark_in_file(), b"")
                runner.send_signal(number)
                self.open_gate()
                self.finish(runner)
                self.assertEqual(self.mark_in_file(), b"")
                self.assertEqual(self.read("synced").splitlines()[-2:],
                                 [b"-f -- runs.txt.out", b"-f -- runs.txt"])
                os.unlink(self.dir / "go")
                self.restart()
                self.assertEqual(self.status()[0], [])

    def test_without_a_sync_the_lines_stay_in_doubt(self) -> None:
        self.use_sync("exit 1")
        self.jobs("true")
        self.assertEqual(self.run_booted().code, 0)
        self.restart()
        self.assertEqual(self.status()[0], [1])

    def test_a_runner_that_waits_for_a_slow_sync_can_be_ended(self) -> None:
        os.mkfifo(self.dir / "fifo")
        self.use_sync("echo >>synced; read x <fifo")
        self.jobs("true")
        runner = self.start_booted(statements=f"{BOOT}runmaker4.Runner.MAX_RESULT_SECONDS = 0.1\n")
        self.wait_file("synced")
        self.assertEqual(self.stop(runner).code, 0)
        self.restart()
        self.assertEqual(self.status()[0], [1])

    def test_an_old_sync_brings_everything_to_disk(self) -> None:
        self.use_sync("[ $# = 0 ]")
        self.jobs("true")
        self.assertEqual(self.run_booted().code, 0)
        self.restart()
        self.assertEqual(self.status()[0], [])

    def test_who_has_nothing_to_do_syncs_nothing(self) -> None:
        self.jobs("true")
        self.run_booted()
        before = self.read("synced"), os.stat(self.dir / ".runs.txt.lock").st_mtime_ns
        self.assertEqual(self.run_booted("-r").code, 0)
        self.assertEqual((self.read("synced"), os.stat(self.dir / ".runs.txt.lock").st_mtime_ns), before)

    def test_after_a_kill_in_the_same_boot_the_next_runner_makes_all_safe(self) -> None:
        self.jobs_up_to_gate("true", "true")
        self.start_booted()
        self.wait_states("ddr")
        boot = self.read("boot")
        self.cut()
        self.write(boot, "boot")
        self.open_gate()
        self.assertNothingInDoubt("--resume", states="ddd")
        self.restart()
        self.assertNothingInDoubt(states="ddd")

    def test_the_last_of_several_runners_removes_the_mark(self) -> None:
        self.jobs("true", WAITING, "true", WAITING)
        first = self.start_booted()
        self.wait_states("dr..")
        second = self.start_booted()
        self.wait_states("drdr")
        self.stop(first, signal.SIGTERM)
        self.assertEqual(self.states(), "dedr")
        self.assertNotEqual(self.mark_in_file(), b"")
        self.open_gate()
        self.finish(second)
        self.assertEqual(self.mark_in_file(), b"")
        self.restart()
        self.assertNothingInDoubt(states="dedd")

    def test_a_container_with_a_boot_of_its_own_beside_a_runner_changes_nothing(self) -> None:
        self.jobs_up_to_gate("true")
        runner = self.start_booted()
        self.wait_states("dr")
        self.restart()                          # for all that start from now on
        self.append(". true")
        self.assertNothingInDoubt(states="drd")
        self.assertNotEqual(self.mark_in_file(), b"")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual(self.mark_in_file(), b"")

    def test_a_copied_directory_is_no_host_that_was_switched_off(self) -> None:
        self.jobs_up_to_gate("true")
        self.start_booted()
        self.wait_states("dr")
        for lock_file in True, False:
            copy = self.dir / f"copy{lock_file}"
            left_out = ["copy*"] if lock_file else ["copy*", ".*.lock"]
            shutil.copytree(self.dir, copy, ignore=shutil.ignore_patterns(*left_out))
            (copy / "runs.txt").write_bytes(self.read().splitlines(keepends=True)[0])
            (copy / "boot").write_text("another\n")
            shown = self.finish(self.start_patched(BOOT, "--status", "runs.txt", script=RUNWAIT, cwd=copy))
            ended = self.finish(self.start_patched(BOOT, "-q", "runs.txt", cwd=copy))
            self.assertNotIn(b"had just ended", shown.out + ended.err)
            self.assertEqual((ended.code, (copy / "runs.txt").read_bytes()[:1]), (0, b"d"))


class Renewals(PowerCase):
    """About once a minute all lines become safe that are `d`."""

    def run_until_safe(self, *commands: str) -> None:
        """Run these and a job that waits; return when these are safe."""
        self.jobs_up_to_gate(*commands)
        self.start_booted(statements=RENEWING)
        self.wait_states("d" * len(commands) + "r")
        wait_until(lambda: 0 not in self.safe_lines()[:len(commands)] and self.safe_lines(),
                   what="the lines are safe")

    def safe_lines(self) -> list[int]:
        numbers = self.mark_in_file()[runmaker4.BOOT_SIZE:]
        return [*memoryview(numbers[:len(numbers) // 4 * 4]).cast("I")]

    def finish_another(self, *commands: str) -> None:
        """Run more jobs beside, which do not become safe."""
        for command in commands:
            self.append(f". {command}")
        runner = self.start_booted("--max-failed=1000")
        self.addCleanup(runner.wait)
        wait_until(lambda: self.states().count("r") == 1 and "." not in self.states(), what="they have ended")

    def test_a_sync_makes_lines_safe_and_only_those_that_were_noted_before_it(self) -> None:
        self.use_sync(": >syncing; until [ -e on ]; do read x <fifo; done")
        os.mkfifo(self.dir / "fifo")
        self.jobs_up_to_gate("true", "until [ -e syncing ]; do :; done")
        self.start_booted("-j3", statements=RENEWING)
        self.wait_states("ddr")
        self.assertEqual(self.safe_lines()[1], 0)
        self.write("", "on")
        os.close(os.open(self.dir / "fifo", os.O_RDWR))
        wait_until(lambda: self.safe_lines()[1], what="the second line is safe")

    def test_a_renewal_that_fails_leaves_lines_in_doubt(self) -> None:
        self.use_sync("echo >>synced; exit 1")
        self.jobs_up_to_gate("true")
        self.start_booted(statements=RENEWING)
        self.wait_file("synced")
        self.cut()
        self.assertEqual(self.status()[0], [1])

    def test_lines_are_safe_once_the_mark_is_on_disk(self) -> None:
        """What a process syncs is all that is on disk at the next boot."""
        self.jobs_up_to_gate("true")
        self.start_booted(statements=RENEWING + """
import os, shutil
fsync = os.fsync
def fsync_and_copy(fd):
    fsync(fd)
    shutil.copyfile(".runs.txt.lock", "copy")
    os.rename("copy", "on_disk")
os.fsync = fsync_and_copy
""")
        self.wait_states("dr")
        wait_until(lambda: self.read("on_disk")[MARK_SIZE:MARK_SIZE + 4] not in (b"", bytes(4)),
                   what="the mark on disk has the line")

    def test_an_edit_that_moves_lines_leaves_them_safe(self) -> None:
        self.run_until_safe("true", "true", "true")
        self.use_sync("exit 1")
        mark = self.mark_in_file()
        first, second, third, last = self.read().splitlines(keepends=True)
        self.write(b"# a comment\n" + third + b". echo new >>ran\n" + first + second + last)
        self.wait_states("d.ddr")
        self.finish(self.start_booted("-1"))
        self.wait_states("ddddr")
        self.cut()
        self.assertEqual(self.mark_in_file(), mark)
        self.assertEqual(self.status()[0], [3])

    def test_of_equal_lines_only_those_are_in_doubt_that_were_not_safe(self) -> None:
        self.jobs(*["true"] * 5)
        for number in 1, 2, 3:
            self.set_state(number, "d")
        self.use_sync("exit 1")
        self.assertEqual(self.run_booted().code, 0)
        self.restart()
        self.assertEqual(self.status()[0], [4, 5])
        self.write(b"".join([b"# a comment\n", self.read()]))
        self.assertEqual(set(self.status()[0]) - {2, 3, 4, 5, 6}, set())
        self.assertLessEqual({5, 6}, set(self.status()[0]))

    def test_a_mark_of_which_only_parts_are_on_disk_leaves_more_lines_in_doubt(self) -> None:
        """Each of the new parts, and what was there before, can be on disk."""
        count = 3000
        self.write("".join(f"d true {number}\n" for number in range(count)))
        file = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.fail)
        runmaker4.check_lock_file(file)
        self.addCleanup(file.close_files)
        file.boot = b"one".ljust(runmaker4.BOOT_SIZE)

        def mark_of(safe: range) -> bytes:
            self.write(b"".join(b"%c true %d\n" % (b"d" if number in safe else b".", number)
                                for number in range(count)))
            file.open_files()
            file.write_mark(file.checksum_done_lines())
            return self.read(".runs.txt.lock")

        old, new = mark_of(range(1000)), mark_of(range(2000))
        self.write("".join(f"d true {number}\n" for number in range(count)))
        file.open_files()
        file.boot = b"two".ljust(runmaker4.BOOT_SIZE)
        chance = random.Random(1)
        for _ in range(20):
            parts = [chance.choice((old, new))[at:at + 512] for at in range(0, len(new), 512)]
            torn = b"".join(parts)[:chance.choice((len(new), chance.randrange(MARK_SIZE, len(new))))]
            with open(self.dir / ".runs.txt.lock", "r+b") as lock_file:
                lock_file.truncate(0)
                lock_file.write(torn)
            in_doubt = {line.number for line in file.find_lines_in_doubt() or ()}
            self.assertLessEqual({*range(2001, count + 1)}, in_doubt)
            if len(torn) == len(new):
                self.assertLessEqual(in_doubt, {*range(1001, count + 1)})

    def test_a_million_lines_are_noted_in_a_moment(self) -> None:
        """The event loop waits for it, and nothing is kept for each line but a number."""
        self.write("".join(f"d true {number}\n" for number in range(10_000)))
        file = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.fail)
        file.open_files()
        self.addCleanup(file.close_files)
        checksums = file.checksum_done_lines()
        self.assertEqual((checksums.itemsize, len(checksums) - 10_000), (4, 1))


class LostWrites(PowerCase):
    """A write error that the kernel reports, which it does once: the results of lines `d` can be gone."""
    # As GNU coreutils 9.1, for each path that is in the file `lost`
    SYNC = """echo $3 >>synced
if [ -e lost ] && [ "$(cat lost)" = "$3" ]; then
    rm lost
    echo "sync: error syncing '$3': Input/output error" >&2
    exit 1
fi
"""
    SAID = b": writes to its disk were lost; lines that have ended since "

    def setUp(self) -> None:
        super().setUp()
        self.use_sync(self.SYNC)

    def assertRunsAgain(self, *in_doubt: int, ran: str) -> None:
        """Until the next start the lines are named; --resume runs them again, in this boot."""
        self.assertNotEqual(self.mark_in_file(), b"")
        self.assertEqual(self.status()[0], [*in_doubt])
        ended = self.run_booted("--resume")
        self.assertIn(b"or ended after its disk lost writes", ended.err)
        self.assertEqual((ended.code, self.ran()), (0, ran), ended.err)
        self.assertNothingInDoubt(states="d" * len(self.states()))
        self.assertEqual(self.mark_in_file(), b"")

    def test_at_the_exit(self) -> None:
        for path in "runs.txt.out", "runs.txt":
            with self.subTest(path=path):
                self.write("", "ran")
                self.jobs("echo 1 >>ran", "echo 2 >>ran")
                self.write(path, "lost")
                ended = self.run_booted()
                self.assertIn(b"runmaker4.py: " + path.encode() + self.SAID, ended.err)
                self.assertEqual((ended.code, self.states(), self.ran()), (1, "dd", "12"), ended.err)
                self.assertRunsAgain(1, 2, ran="1212")

    def test_at_a_renewal_after_which_no_line_becomes_safe_until_all_have_exited(self) -> None:
        """Also those that have ended since: their jobs had written before."""
        self.write("runs.txt", "lost")
        self.jobs_up_to_gate("true")
        runner = self.start_booted("-j2", statements=RENEWING)
        self.wait_states("dr")
        wait_until(lambda: not self.exists("lost"), what="the error is reported")
        self.append(". echo 3 >>ran")
        self.wait_states("drd")
        syncs = self.read("synced").count(b"\n")

        def is_renewed() -> bool:
            os.utime(self.dir / "runs.txt")
            return self.read("synced").count(b"\n") > syncs + 4

        wait_until(is_renewed, what="two more renewals")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual((ended.code, ended.err.count(b"runs.txt" + self.SAID)), (1, 1), ended.err)
        self.assertRunsAgain(1, 2, 3, ran="1313")

    def test_during_a_renewal_that_the_exit_comes_upon(self) -> None:
        os.mkfifo(self.dir / "fifo")
        self.use_sync("echo >syncing; [ -e go_on ] || read x <fifo; " + self.SYNC)
        self.write("runs.txt.out", "lost")
        self.jobs_up_to_gate("true")
        runner = self.start_booted(statements=RENEWING + """
exit_status = runmaker4.RunnerStats.exit_status
def exit_status_and_say(*args):
    with open("exiting", "w") as file:
        file.write("yes")
    return exit_status(*args)
runmaker4.RunnerStats.exit_status = exit_status_and_say
""")
        self.wait_file("syncing")
        self.open_gate()
        self.wait_file("exiting")
        self.write("", "go_on")
        os.close(os.open(self.dir / "fifo", os.O_RDWR))
        ended = self.finish(runner)
        self.assertEqual((ended.code, ended.err.count(self.SAID)), (1, 1), ended.err)
        self.assertRunsAgain(1, 2, ran="11")

    def test_one_of_two_runners(self) -> None:
        self.jobs("echo 1 >>ran", WAITING, WAITING)
        other = self.start_booted("-j2")
        self.wait_states("drr")
        self.append(". echo 4 >>ran")
        self.write("runs.txt", "lost")
        self.assertEqual(self.run_booted().code, 1)
        self.open_gate()
        self.assertEqual(self.finish(other).code, 0)
        self.assertRunsAgain(1, 2, 3, 4, ran="1414")

    def test_a_sync_that_does_not_know_how_to_is_no_error(self) -> None:
        for text in ("", "sync: invalid option -- 'f'\nTry 'sync --help' for more information.",
                     "sync: unrecognized option: f\nBusyBox v1.36.1 multi-call binary.",
                     'sync: Unknown option \'f\' (see "sync --help")',
                     "sh: 1: sync: not found", "sh: line 1: sync: command not found",
                     "sync: error opening 'runs.txt.out': No such file or directory"):
            for works in True, False:
                with self.subTest(text=text, works=works):
                    self.write(text, "text")
                    self.use_sync(f"[ $# = 0 ] && exit {int(not works)}; cat text >&2; exit 1")
                    self.jobs("true")
                    ended = self.run_booted()
                    self.assertEqual((ended.code, self.states(), ended.err.count(self.SAID)), (0, "d", 0))
                    self.assertEqual(self.mark_in_file() == b"", works)

    def test_a_path_that_reads_like_usage(self) -> None:
        path = "an option -- 'f' not found"
        self.write(path, "lost")
        self.jobs("true")
        ended = self.run_booted("--outdir", path)
        self.assertEqual((ended.code, path.encode() + self.SAID in ended.err), (1, True), ended.err)


class Others(PowerCase):

    def test_a_file_that_a_runner_waits_for(self) -> None:
        runner = self.start_booted("--follow")
        self.jobs_up_to_gate("true")
        self.wait_states("dr")
        self.cut()
        runner = self.start_booted("--follow")
        self.wait_states("ee")
        self.stop(runner)
        self.assertEqual(self.mark_in_file(), b"")

    def test_on_a_network_file_system_there_is_no_mark(self) -> None:
        mount = runmaker4.Mount("nfs4", frozenset(), "/")
        self.assertEqual(runmaker4.JobFile("runs.txt", say=self.fail, mount=mount).boot, b"")


class Servers(PowerCase, TcpCase):

    def test_the_lines_of_its_clients(self) -> None:
        self.jobs_up_to_gate("true", "true")
        server = self.start_server(patch=BOOT)
        self.start_client(server, "-j3")
        self.wait_states("ddr")
        self.cut()
        self.assertEqual(self.status()[0], [1, 2])
        self.open_gate()
        server = self.start_server(patch=BOOT)
        wait_until(lambda: b"lines 1-2 had just ended" in server.err, what="they are named")
        self.assertEqual(self.finish(self.start_client(server, "--resume")).code, 0)
        self.stop(server)
        self.assertEqual((self.states(), sorted(self.ran()), self.mark_in_file()), ("ddd", [*"1122"], b""))

    def test_lost_writes(self) -> None:
        self.use_sync(LostWrites.SYNC)
        self.write("runs.txt", "lost")
        self.jobs("true")
        server = self.start_server("--exit-when-done", patch=BOOT)
        self.run_client(server)
        ended = self.finish(server)
        self.assertEqual((ended.code, LostWrites.SAID in ended.err), (1, True), ended.err)
        self.assertEqual(self.status()[0], [1])


class Promises(PowerCase):
    """What the mark says of a file in any order of what happens to it."""

    def test_what_was_not_safe_is_in_doubt_whatever_is_moved_set_or_removed(self) -> None:
        for seed in range(300):
            chance = random.Random(seed)
            lines = [f"true {chance.randrange(3) if chance.random() < 0.3 else at}" for at in range(9)]
            states = [chance.choice("d.") for _ in lines]
            pairs = [*zip(states, lines, range(9))]
            self.write("".join(f"{state} {line}\n" for state, line, _ in pairs))
            file = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.fail)
            runmaker4.check_lock_file(file)
            file.boot = b"one".ljust(runmaker4.BOOT_SIZE)
            file.write_mark(file.checksum_done_lines())
            safe = {number for state, _, number in pairs if state == "d"}
            # others end, and lines move; equal ones only with the rest
            pairs = [(chance.choice("d."), line, number) if state == "." else (state, line, number)
                     for state, line, number in pairs]
            if chance.random() < 0.5:
                at = chance.randrange(9)
                pairs = pairs[at:] + pairs[:at] if len(set(lines)) == 9 else [("#", "RUN", 9), *pairs]
            self.write("".join(f"{state} {line}\n" for state, line, _ in pairs))
            file.open_files()
            file.boot = b"two".ljust(runmaker4.BOOT_SIZE)
            found = {line.number for line in file.find_lines_in_doubt() or ()}
            file.close_files()
            lost = {at for at, (state, _, number) in enumerate(pairs, 1)
                    if state == "d" and number not in safe}
            with self.subTest(seed=seed):
                if len(set(lines)) == 9:
                    self.assertEqual(found, lost)
                else:
                    equal = {pairs[at - 1][1] for at in lost}
                    self.assertLessEqual(found, {at for at, pair in enumerate(pairs, 1) if pair[1] in equal})
                    self.assertLessEqual(len(lost), len(found))


class MarkCase(PowerCase):
    """A test in which job files of several processes, or boots, use one mark."""

    def setUp(self) -> None:
        super().setUp()
        self.said: list[str] = []

    def open_file(self, boot: bytes) -> runmaker4.JobFile:
        file = runmaker4.JobFile(str(self.dir / "runs.txt"), say=self.said.append)
        self.addCleanup(file.close_files)
        file.boot = boot.ljust(runmaker4.BOOT_SIZE)
        runmaker4.check_lock_file(file)
        file.open_to_write()
        return file


class Errors(MarkCase):
    """An error while the mark is made holds up no other process: its results are written."""

    def join_with(self, module: Any, name: str, number: int, nth: int) -> None:
        """Let one process make the mark, in which the n-th call of a function fails, and another join it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.dir / ".runs.txt.lock")
        self.write(". true\n")
        one, other = self.open_file(b"one"), self.open_file(b"one")
        call, calls = getattr(module, name), itertools.count(1)

        def fail(*args: Any, **named: Any) -> Any:
            if next(calls) == nth:
                raise OSError(number, os.strerror(number))
            return call(*args, **named)

        with mock.patch.object(module, name, fail), contextlib.suppress(OSError):
            one.join_mark()
        self.assertGreaterEqual(next(calls), nth, "it was called so often")
        other.join_mark()
        one.join_mark()
        one.close_files()
        other.close_files()

    def test_whatever_fails(self) -> None:
        for module, name, number, times in (
                (os, "fsync", errno.EIO, 1), (os, "pwrite", errno.ENOSPC, 1), (os, "fstat", errno.EIO, 1),
                (runmaker4, "lock", errno.ENOLCK, 2)):
            for nth in range(1, times + 1):
                with self.subTest(name=name, nth=nth):
                    self.join_with(module, name, number, nth)

    def test_the_result_waits_for_a_lock(self) -> None:
        """A file system that grants no lock for a moment: the result is written later, under the mark."""
        self.jobs("true", WAITING)
        self.start_booted(statements=BOOT + """
import errno, os
lock, refused = runmaker4.lock, []
def refuse_once(fd, offset, *args, **named):
    if offset == runmaker4.MARK_BYTE and not refused:
        refused.append(1)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    return lock(fd, offset, *args, **named)
runmaker4.lock = refuse_once
""")
        self.wait_states("dr")
        self.assertNotEqual(self.mark_in_file(), b"")


class InDoubtCase(MarkCase):
    """A test after a power cut that has left lines 1 and 2 in doubt."""

    def setUp(self) -> None:
        super().setUp()
        self.jobs_up_to_gate("true", "true")
        self.start_booted()
        self.wait_states("ddr")
        self.cut()
        self.open_gate()
        self.one, self.other = self.open_file(b"two"), self.open_file(b"two")


class Unsettled(InDoubtCase):
    """The mark of another boot stays until all lines in doubt are `e`, whoever begins to settle it."""

    def assertInDoubt(self, *numbers: int) -> None:
        self.assertEqual([line.number for line in self.other.find_lines_in_doubt() or ()], [*numbers])

    def settle(self) -> None:
        self.other.judge_mark()
        self.assertEqual((self.states(), self.mark_in_file()), ("eer", b""))

    def test_a_line_is_locked(self) -> None:
        *_, last = self.other.scan_lines(b"d")
        with self.other.command_mutex(last.command):
            self.assertRaises(OSError, self.one.judge_mark)
            self.one.leave_mark()               # it has written a state
        self.assertEqual(self.states(), "edr")
        self.assertInDoubt(2)
        self.settle()

    def test_an_error(self) -> None:
        for module, name in (os, "pwrite"), (runmaker4, "lock"), (os, "fsync"):
            with self.subTest(name=name):
                call, calls = getattr(module, name), itertools.count()

                def fail(*args: Any, **named: Any) -> Any:
                    if next(calls) == (name == "lock"):         # the first one is that of the mark itself
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    return call(*args, **named)

                with mock.patch.object(module, name, fail):
                    self.assertRaises(OSError, self.one.judge_mark)
                self.one.leave_mark()
                self.assertNotEqual(self.mark_in_file(), b"")
        self.settle()

    def test_a_runner_that_is_ended_meanwhile(self) -> None:
        *_, last = self.other.scan_lines(b"d")
        with self.other.command_mutex(last.command):
            runner = self.start_booted()
            self.wait_states("edr")
            self.stop(runner)
        self.assertInDoubt(2)
        self.settle()

    def test_a_process_that_has_joined_it_neither_renews_nor_removes_it(self) -> None:
        """Beside it a runner was at work that saw another boot, and was killed."""
        self.one.join_mark()
        self.one.write_mark(self.one.checksum_done_lines())
        self.one.leave_mark()
        self.assertInDoubt(1, 2)
        self.settle()


class Waiting(InDoubtCase):
    """While another process settles the mark, no runner starts a job: it could wait for a line in doubt."""

    def setUp(self) -> None:
        super().setUp()
        self.append(". touch started")
        self.other.open_files()

    def start_waiting(self) -> subprocess.Popen[bytes]:
        """Start a runner; return when it has looked more often than other errors may last."""
        runner = self.start_patched(f"{BOOT}{LOOKS}", "-q", "runs.txt")
        for _ in range(3):
            self.wait_looked()
        return runner

    def assertWaited(self, runner: subprocess.Popen[bytes], text: bytes) -> None:
        self.assertFalse(self.exists("started"))
        ended = self.finish(runner)
        self.assertEqual(ended.err.count(text + b"; waiting for it\n"), 1, ended.err)
        self.assertEqual((self.states(), self.exists("started"), self.mark_in_file()), ("eeed", True, b""))

    def test_while_it_does(self) -> None:
        self.assertTrue(runmaker4.lock(self.other.lock_table.fd, runmaker4.MARK_BYTE))
        runner = self.start_waiting()
        self.assertEqual(self.states(), "ddr.")
        self.other.lock_table.close()           # as if it had been killed
        self.assertWaited(runner, b"another process checks lines in doubt")

    def test_while_a_line_is_locked(self) -> None:
        *_, last = self.other.scan_lines(b"d")
        with self.other.command_mutex(last.command):
            runner = self.start_waiting()
            self.assertEqual(self.states(), "edr.")
        self.assertWaited(runner, b"another process holds up one of these lines")


class TwoStarters(MarkCase):
    """Another starter settles the mark after this one has found lines in doubt, before it locks the byte."""

    def settle_after(self, what_the_other_does: Callable[[runmaker4.JobFile], None]) -> None:
        """Cut the power at one done line; the other settles it, and goes on, while the second one starts."""
        self.said.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.dir / ".runs.txt.lock")
        self.write(". true\n")
        cut_off = self.open_file(b"one")
        cut_off.join_mark()
        cut_off.close_files()
        self.write("d true\n")
        other, late = self.open_file(b"two"), self.open_file(b"two")
        find = late.find_lines_in_doubt

        def find_in_time() -> Optional[list[runmaker4.Line]]:
            late.find_lines_in_doubt = find     # type: ignore[method-assign]
            lines = find()
            other.judge_mark()
            what_the_other_does(other)
            return lines

        late.find_lines_in_doubt = find_in_time     # type: ignore[method-assign]
        late.judge_mark()
        other.close_files()
        late.close_files()
        self.assertEqual(len(self.said), 1)

    def run_line(self, other: runmaker4.JobFile) -> None:
        other.join_mark()
        self.set_state(1, "d")

    def test_the_line_is_marked_once(self) -> None:
        self.settle_after(lambda other: None)
        self.assertEqual((self.states(), self.mark_in_file()), ("e", b""))

    def test_the_other_has_run_the_line_and_has_ended(self) -> None:
        def run_and_end(other: runmaker4.JobFile) -> None:
            self.run_line(other)
            other.leave_mark()
            other.close_files()

        self.settle_after(run_and_end)
        self.assertEqual((self.states(), self.mark_in_file()), ("d", b""))

    def test_the_other_has_run_the_line_and_works_on_or_was_killed(self) -> None:
        def run_and_be_killed(other: runmaker4.JobFile) -> None:
            self.run_line(other)
            other.close_files()

        for run in self.run_line, run_and_be_killed:
            with self.subTest(run=run):
                self.settle_after(run)
                self.assertEqual(self.states(), "d")
                self.assertEqual(self.mark_in_file().strip(b"\0"), b"two".ljust(runmaker4.BOOT_SIZE))


class RealDisk(RunCase):
    """An ext4 file system that is shut down: what is not on disk by then never comes there."""
    # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h)
    SHUT_DOWN = """import fcntl, os, struct
fcntl.ioctl(os.open("disk", os.O_RDONLY), 0x8004587d, struct.pack("I", 2))"""
    SCRIPT = """
truncate -s 64M image && mkfs.ext4 -q -F image && mkdir disk && mount -o loop image disk || exit 77
python() { "$PYTHON" "$@"; }
cd disk
for i in 1 2 3 4 5 6 7 8; do echo ". seq 9999 >result.$i"; done >runs.txt
sync -f runs.txt
if [ $MODE = exit ]; then
    python $RUNMAKER -q runs.txt
else
    "$PYTHON" $RUNMAKER -q --follow runs.txt &                # $! is the runner itself
    until [ "$(grep -c ^d runs.txt)" = 8 ]; do read -t 0.02 <>../fifo; done
    python $RUNSET -q runs.txt --add ": last"
fi
cd ..
python -c "$SHUT_DOWN" || exit 77
[ $MODE = exit ] || { kill -9 $!; wait; } 2>/dev/null
until umount disk; do read -t 0.02 <>fifo; done 2>/dev/null
mount -o loop image disk
cat /proc/sys/kernel/random/uuid >boot && mount --bind boot /proc/sys/kernel/random/boot_id
cd disk
for i in 1 2 3 4 5 6 7 8; do [ -s result.$i ] || echo lost; done
timeout 60 "$PYTHON" $RUNMAKER -q --resume runs.txt
for i in 1 2 3 4 5 6 7 8; do [ -s result.$i ] || echo left; done
grep -v ^d runs.txt
cd .. && umount disk
"""

    def test_no_line_stays_done_whose_result_is_lost(self) -> None:
        if os.geteuid() or not shutil.which("mkfs.ext4"):
            self.skipTest("only root can mount, and mkfs.ext4 makes the file system")
        for mode, lost in ("exit", b""), ("add", b"lost\n" * 8):
            with self.subTest(mode=mode):
                for name in "disk", "image", "fifo":
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(self.dir / name, self.dir / f"{name}.old")
                os.mkfifo(self.dir / "fifo")
                ended = self.run_script(
                    "unshare", "-m", "bash", "-c", self.SCRIPT, env={
                        "MODE": mode, "PYTHON": PYTHON, "SHUT_DOWN": self.SHUT_DOWN,
                        "RUNMAKER": str(SCRIPTS_AT / RUNMAKER), "RUNSET": str(SCRIPTS_AT / RUNSET)})
                if ended.code == 77:
                    self.skipTest(f"no file system can be mounted and shut down here: {ended.err!r}")
                self.assertEqual(ended.out, lost, ended.err)
                self.assertEqual(b"lines 1-8 had just ended" in ended.err, mode == "add")
