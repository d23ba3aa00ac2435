"""Promise: log file (-l), output directory and job log keep what jobs printed and how they ended."""
import csv
import itertools
import json
import os
import re
import shutil
import time
import unittest

import runmaker4
from tests.support.case import GATE, Case
from tests.support.console import console_lines
from tests.support.job_file import FileCase
from tests.support.log_file import BLANK, WIDTH, LogCase
from tests.support.processes import Ended, wait_until
from tests.support.scripts import RUNMAKER
from tests.support.sinks import a_run


class LogRecords(LogCase):
    """-l: the last lines of each job, in a fixed record per job."""

    def test_a_record_is_a_header_and_the_last_lines_byte_for_byte(self) -> None:
        """What jobs print goes there instead of to the console."""
        self.write(". echo a; echo A\n. echo b >&2; exit 3\n. :\n")
        ended = self.run_jobs()
        self.assertEqual(ended.code, 1)
        kinds = [line.kind for line in console_lines(ended.out)]
        self.assertEqual(kinds, ["executing", "status", "status"] * 3)
        self.assertRecord(1, "echo a; echo A", ": stdout (WHO): a", ": stdout (WHO): A",
                          '+ status (WHO): exit 0 "echo a; echo A"')
        self.assertRecord(2, "echo b >&2; exit 3", '+ status (WHO): forked "echo b >&2; exit 3"',
                          "! stderr (WHO): b", '+ status (WHO): exit 3 "echo b >&2; exit 3"')
        self.assertRecord(3, ":", '+ status (WHO): forked ":"', '+ status (WHO): exit 0 ":"')
        self.assertLogOfLength(3)

    def test_the_number_of_lines_can_be_chosen(self) -> None:
        self.write(". seq 9\n. seq 9\n")
        self.run_jobs("-n", 1)
        self.assertRecord(2, "seq 9", '+ status (WHO): exit 0 "seq 9"', loglines=1)
        self.assertLogOfLength(2, loglines=1)
        os.remove(self.dir / "outputs")
        self.write(". seq 2\n. seq 2\n")
        self.run_jobs("--loglines", 6)
        self.assertRecord(2, "seq 2", '+ status (WHO): forked "seq 2"', ": stdout (WHO): 1",
                          ": stdout (WHO): 2", '+ status (WHO): exit 0 "seq 2"', loglines=6)
        self.assertLogOfLength(2, loglines=6)


class LogPlaces(LogCase):
    """Record k stands at a fixed place, whoever writes it and whenever."""

    def test_comments_and_what_never_ran_have_blank_lines(self) -> None:
        self.write("# comment\n\nprose\n" + "x echo held\nd echo done\n" * 1000 + ". echo last\n")
        self.run_jobs()
        self.assertEqual([self.record(number) for number in range(1, 2004)], [[BLANK] * 4] * 2003)
        self.assertRecord(2004, "echo last", '+ status (WHO): forked "echo last"', ": stdout (WHO): last",
                          '+ status (WHO): exit 0 "echo last"')
        self.assertLogOfLength(2004)

    def test_grep_never_takes_it_for_binary(self) -> None:
        """Also while the first job has written nothing."""
        self.write("", "outputs")
        self.write(f"# comment\n. {GATE}\nx true\n. exit 3\n# end\n")
        runner = self.start(RUNMAKER, "-j2", "-l", "outputs", "runs.txt")
        wait_until(lambda: b": exit 3" in self.read("outputs"), what="the record of the second job")
        ended = self.run_script("grep", "-c", "^+.*): exit 3", "outputs")
        self.assertEqual((ended.code, ended.out), (0, b"1\n"))
        self.open_gate()
        self.finish(runner)
        self.assertNotIn(b"\0", self.read("outputs"))
        self.assertLogOfLength(4)

    def test_the_records_of_earlier_runs_stay_as_they_are(self) -> None:
        """An empty file that was made before serves as well."""
        self.write("", "outputs")
        self.write(". seq 2\n. seq 3\n")
        self.run_jobs()
        before = self.read("outputs")
        self.write(self.read() + b". echo new\n")
        self.run_jobs()
        self.assertEqual(self.read("outputs")[:len(before)], before)
        self.assertLogOfLength(3)

    def test_a_job_that_runs_again_leaves_nothing_of_its_earlier_record(self) -> None:
        self.write(". if [ -e short ]; then :; else seq 100; fi; touch short; exit 1\n. seq 2\n")
        self.run_jobs()
        second = self.record(2)
        self.assertIn(b"stdout", b"".join(self.record(1)))
        self.run_jobs("-r", name="bob")
        again = self.record(1)
        self.assertNotIn(b"stdout", b"".join(again))
        self.assertIn(b"+ status (bob,", again[1])
        self.assertEqual((again[3], self.record(2)), (BLANK, second))

    def test_a_file_that_is_no_log_file_is_refused(self) -> None:
        self.write(". true\n")
        self.write(". touch never\n", "outputs")
        self.assertRefused(self.run_jobs(), "outputs: is not a log file (give another")
        self.assertEqual((self.states(), self.read("outputs")), (".", b". touch never\n"))

    def test_it_begins_with_the_record_of_line_1_which_may_not_have_been_written(self) -> None:
        self.write("# comment\n. echo one\n")
        self.run_jobs()
        self.assertEqual(self.read("outputs").lstrip()[:12], b".-> echo one")
        self.write(". echo zero\n. echo one\n")
        self.run_jobs()
        self.assertEqual(self.read("outputs")[:13], b".-> echo zero")
        self.assertLogOfLength(2)

    def test_one_of_an_earlier_version_begins_with_nul_bytes_and_indented_text_is_none(self) -> None:
        size = 4 * (WIDTH + 1)
        self.write(b"\0" * size, "outputs")
        self.write("# comment\n. echo one\n")
        self.assertEqual(self.run_jobs().code, 0)
        self.assertEqual(self.read("outputs")[:size], b"\0" * size)
        self.assertTrue(self.record(2)[0].startswith(b".-> echo one"))
        self.write(b"     12 of wc\n" * 50, "outputs")
        self.assertRefused(self.run_jobs("-r"), "outputs: is not a log file")

    def test_renamed_while_jobs_run_it_goes_on_in_a_new_file(self) -> None:
        self.write("", "outputs")
        self.write(f". echo one; {GATE}\n# comment\n. echo three\n")
        runner = self.start(RUNMAKER, "--name", "alice", "-l", "outputs", "runs.txt")
        wait_until(lambda: b": one" in self.read("outputs"), what="a record")
        os.rename(self.dir / "outputs", self.dir / "old")
        self.open_gate()
        ended = self.finish(runner)
        self.assertEqual(ended.code, 0)
        self.assertIn(b"outputs: was renamed or removed; the log file goes on in a new file", ended.err)
        self.assertEqual([self.record(number)[0].rstrip() for number in (1, 2)], [b"", b""])
        self.assertTrue(self.record(3)[0].startswith(b".-> echo three"))

    def test_the_number_is_that_of_the_line_when_the_run_began(self) -> None:
        self.write(f". echo one; {GATE}\n. echo two\n")
        self.write("", "outputs")
        runner = self.start(RUNMAKER, "--name", "alice", "-l", "outputs", "runs.txt")
        wait_until(lambda: b": one" in self.read("outputs"), what="a record")
        self.write("# new\n" + self.read().decode())
        wait_until(lambda: self.states()[:1] == "r", what="the runner finds its line")
        self.open_gate()
        self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual([self.record(number)[0][:12] for number in (1, 3)],
                         [b".-> echo one", b".-> echo two"])


class LogCutting(LogCase):
    """Lines are cut and padded to 160 bytes, between characters."""

    def test_long_commands_are_cut_between_characters(self) -> None:
        """A header that just fits is not."""
        fitting = WIDTH - len(f".-> :  (in {self.dir})")
        commands = [": " + "x" * length for length in (fitting - 1, fitting, fitting + 1)]
        commands += [": " + "x" * shift + letter * 170 for shift in range(4)
                     for letter in ("a", "ä", "€", "𝄞")]
        self.write("".join(f". {command}\n" for command in commands))
        self.run_jobs()
        for ordinal, command in enumerate(commands, 1):
            self.assertRecord(ordinal, command, f'+ status (WHO): forked "{command}"',
                              f'+ status (WHO): exit 0 "{command}"')
        ends = [self.record(ordinal)[0].endswith(b")") for ordinal in (1, 2, 3)]
        self.assertEqual(ends, [False, True, False])

    def test_a_line_of_megabytes_that_is_not_utf8_is_one_line_of_the_record(self) -> None:
        self.write(b"\xff" * 3_000_000 + b"\n\xe2\x82\n", "data")
        self.write(". cat data\n")
        self.run_jobs()
        _, first, second, last = self.record(1)
        self.assertRegex(first, rb"^: stdout \(alice,\d+\): \xff{100,}$")
        self.assertRegex(second, rb"^: stdout \(alice,\d+\): \xe2\x82 +$")
        self.assertTrue(last.startswith(b"+ status"))


class OutputDirectory(Case):
    """--outdir DIR: everything a job prints, one file per stream; older ones are kept."""

    def run_jobs(self, *options: str) -> Ended:
        return self.run_script(RUNMAKER, "--outdir", "out", *options, "runs.txt")

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.dir / "out").iterdir()
                if path.name != "journal"}

    def test_a_file_is_made_for_each_stream_that_a_job_prints_on(self) -> None:
        self.write(
            "# comment\n. echo a\n. echo b >&2; exit 3\nx echo held\n. :\nd echo done\n. echo c; echo d >&2\n"
        )
        self.assertEqual(self.run_jobs("-j2").code, 1)
        self.assertEqual(self.files(), {"2.out": b"a\n", "3.err": b"b\n", "7.out": b"c\n", "7.err": b"d\n"})

    def test_older_files_are_kept_under_rising_numbers(self) -> None:
        """Also those of each try.  -q and -l do not take them away."""
        self.write(". echo >> tries; wc -l < tries; wc -l < tries >&2; exit 1\n")
        self.assertEqual(self.run_jobs("-q", "-l", "outputs").out, b"")
        self.run_jobs("-r", "--retries", "1")
        for kind in "out", "err":
            found = {name: data for name, data in self.files().items() if f".{kind}" in name}
            self.assertEqual(found, {f"1.{kind}": b"1\n", f"1.{kind}.~1~": b"2\n", f"1.{kind}.~2~": b"3\n"})

    def test_a_gap_in_the_numbers_loses_nothing(self) -> None:
        """A job that could not be started does not touch its older files."""
        self.write(". echo new\n. echo a\0b\n")
        (self.dir / "out").mkdir()
        for name in "1.out", "1.out.~1~", "1.out.~7~", "2.out":
            self.write(f"old {name}", f"out/{name}")
        self.run_jobs()
        found = self.files()
        self.assertEqual(found.pop("2.out"), b"old 2.out")
        self.assertEqual([found.pop(name) for name in ("1.out", "1.out.~1~", "1.out.~7~")],
                         [b"old 1.out", b"old 1.out.~1~", b"old 1.out.~7~"])
        self.assertEqual(list(found.values()), [b"new\n"])


class Moved(LogCase):
    """A job keeps the line number of its start in all records, though an edit moves its line meanwhile."""

    def test_records_and_the_job_itself_have_one_number(self) -> None:
        self.write(f". : >>up; {GATE}; echo $JOB_ID; echo $RUNMAKER4_LINE >&2; exit 1\n")
        runner = self.start(RUNMAKER, "--name", "alice", "--retries", "1", "--outdir", "out", "-l", "outputs",
                            "--joblog", "joblog", "runs.txt")
        wait_until((self.dir / "up").exists, what="the job runs")
        self.write("# new\n. " + self.read().decode()[2:])
        wait_until(lambda: self.states() == "r", what="the runner finds its line")
        self.open_gate()
        self.assertEqual((self.finish(runner).code, self.states()), (1, "!"))
        files = {path.name: path.read_text() for path in (self.dir / "out").iterdir()}
        journal = [json.loads(line)["line"] for line in files.pop("journal").splitlines()]
        self.assertEqual(files, dict.fromkeys(("1.out", "1.out.~1~", "1.err", "1.err.~1~"), "1\n"))
        self.assertEqual(set(journal), {1})
        self.assertEqual(re.findall(rb"^\d+", self.read("joblog"), re.MULTILINE), [b"1", b"1"])
        self.assertEqual(len(self.read("outputs")), 4 * (WIDTH + 1), "one record, that of line 1")
        self.assertTrue(self.record(1)[0].startswith(b".-> "))


class JobLog(Case):
    """--joblog: one line per run of a job, in GNU parallel's format."""

    COLUMNS = ["Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command"]

    def run_jobs(self, *options: object) -> Ended:
        return self.run_script(RUNMAKER, "--name", "alice", "--joblog", "joblog", *options, "runs.txt")

    def rows(self) -> list[dict[str, str]]:
        """The lines of the job log, as the csv module reads them."""
        with open(self.dir / "joblog", newline="", encoding="utf-8", errors="surrogateescape") as log:
            rows = list(csv.DictReader(log, delimiter="\t"))
        for row in rows:
            self.assertEqual(list(row), self.COLUMNS, row)
        return rows

    def column(self, *names: str) -> list[list[str]]:
        return [[row[name] for name in names] for row in self.rows()]

    def test_a_line_has_the_columns_of_gnu_parallel(self) -> None:
        command = "echo abc; echo def >&2; sleep 0.2"
        self.write(f"# comment\n. {command}\n")
        begin = time.time()
        self.run_jobs()
        row, = self.rows()
        self.assertTrue(begin - 0.01 <= float(row["Starttime"]) <= time.time(), row)
        self.assertTrue(0.2 <= float(row["JobRuntime"]) < time.time() - begin, row)
        self.assertEqual(self.column("Seq", "Host", "Send", "Receive", "Exitval", "Signal", "Command"),
                         [["2", "alice", "0", "4", "0", "0", command]])
        self.assertEqual(self.read("joblog").split(b"\n")[0], "\t".join(self.COLUMNS).encode())

    def test_exit_statuses_signals_and_timeouts_can_be_told_apart(self) -> None:
        self.write(". true\n. exit 3\n. kill -9 $$\n#RUN timeout=0.5\n. sleep 600\n")
        self.run_jobs()
        succeeded, failed, killed, timed_out = self.column("Exitval", "Signal")
        self.assertEqual((succeeded, failed, killed), (["0", "0"], ["3", "0"], ["137", "9"]))
        self.assertEqual(timed_out[0], "-1")

    def test_the_header_is_written_once_and_earlier_lines_stay(self) -> None:
        """There is one line per try."""
        self.write("", "joblog")
        self.write(". true\n. [ -e second ] && exit; touch second; exit 7\n. exit 5\n")
        self.run_jobs("--retries", 1)
        before = self.read("joblog")
        self.run_jobs("-r")
        self.assertTrue(self.read("joblog").startswith(before))
        self.assertEqual(self.column("Seq", "Exitval"),
                         [["1", "0"], ["2", "7"], ["2", "0"], ["3", "5"], ["3", "5"], ["3", "5"]])

    def test_a_last_line_that_was_cut_short_spoils_no_other(self) -> None:
        self.write("\t".join(self.COLUMNS) + "\n1\talice\t12", "joblog")
        self.write(". true\n")
        self.run_jobs()
        self.assertRegex(self.read("joblog").decode(),
                         r"\n1\talice\t\d+\.\d+\t *\d+\.\d+\t\d+\t\d+\t0\t0\ttrue\n$")

    def test_one_that_is_removed_or_renamed_while_jobs_run_goes_on_in_a_new_file(self) -> None:
        written = "[ -s joblog ] && grep -q '\"end\"' out/journal"
        self.write(f". true\n. until {written}; do sleep 0.02; done; rm joblog; mv out away\n")
        ended = self.run_script(RUNMAKER, "--joblog", "joblog", "--outdir", "out", "runs.txt")
        self.assertEqual((ended.code, self.states()), (0, "dd"), ended.err)
        self.assertEqual([row["Seq"] for row in self.rows()], ["2"])
        for directory in "away", "out":
            self.assertEqual(self.read(f"{directory}/journal").count(b'"end"'), 1, directory)
        for name in b"joblog", b"out/journal":
            self.assertIn(name + b": was renamed or removed; the jo", ended.err)

    def test_commands_are_written_as_they_are_but_for_tabs_which_would_make_columns(self) -> None:
        commands = [b": '\"'", b"\"echo\" \"a\"", b":\ta\tb", b": \xff\xe2\x82\xac", b": \\t \\n"]
        self.write(b"".join(b". " + command + b"\n" for command in commands))
        self.run_jobs()
        lines = self.read("joblog").split(b"\n")[1:-1]
        self.assertEqual([line.split(b"\t")[8:] for line in lines],
                         [[command.replace(b"\t", b" ")] for command in commands])


class SharedNames(Case):
    """No two kinds of records go to one file: they would overwrite each other."""
    OPTIONS = ("-l", "--joblog", "--errors", "--pidfile")

    def test_a_file_that_is_named_twice_is_refused(self) -> None:
        self.write(". true\n")
        os.symlink("o", self.dir / "link")
        pairs = zip(itertools.combinations(self.OPTIONS, 2), itertools.cycle(("./o", "link")))
        for call, ended in self.run_all((RUNMAKER, first, "o", second, name, "runs.txt")
                                        for (first, second), name in pairs):
            with self.subTest(call=call):
                self.assertRefused(ended, f"{call[4]}: is also written by another option")
        for option in self.OPTIONS:
            ended = self.run_script(RUNMAKER, option, "runs.txt.out/journal", "runs.txt")
            self.assertRefused(ended, "runs.txt.out/journal: is also the journal")
        ended = self.run_script(RUNMAKER, "--joblog", "dir/journal", "--outdir", "./dir", "runs.txt")
        self.assertRefused(ended, "dir/journal: is also the journal")
        self.assertEqual(self.states(), ".")

    def test_names_that_no_record_can_have_are_refused(self) -> None:
        self.write(". touch never\n")
        os.symlink("missing", self.dir / "link")
        words = {"link": "link: is a symbolic link", "": "is empty", ".": ".: is a directory",
                 "./runs.txt": "./runs.txt: is also read"}
        pairs = [*((option, "link") for option in self.OPTIONS), ("-l", ""), ("--pidfile", ""),
                 ("--outdir", ""), ("--name", ""), ("--joblog", "."), ("-l", "./runs.txt")]
        for call, ended in self.run_all((RUNMAKER, *pair, "runs.txt") for pair in pairs):
            with self.subTest(call=call):
                self.assertRefused(ended, words[call[2]])
        self.assertFalse((self.dir / "missing").exists() or (self.dir / "never").exists())


@unittest.skipUnless(shutil.which("parallel"), "GNU parallel is not installed")
class WithGnuParallel(Case):
    """GNU parallel goes on where a job log of ours ends, and the other way round."""

    def setUp(self) -> None:
        super().setUp()
        version = self.run_parallel("--version", check=False)
        if b"GNU parallel" not in version:
            self.skipTest("parallel is not GNU parallel")

    def run_parallel(self, *args: str, check: bool = True) -> bytes:
        """What GNU parallel printed; its own settings and the citation notice are kept out of it."""
        ended = self.run_script("parallel", *args, env={"HOME": str(self.dir), "PARALLEL": "--will-cite"})
        if check:
            self.assertEqual(ended.code, 0, ended.err)
        return ended.out

    def test_it_skips_what_our_log_lists_or_runs_our_failures_again(self) -> None:
        for option, ran in ("--resume", b"ran d\nran e\n"), ("--resume-failed", b"ran b\nran d\nran e\n"):
            with self.subTest(option):
                (self.dir / "joblog").unlink(missing_ok=True)
                self.write(". echo one\n. exit 3\n. echo three\n")
                self.run_script(RUNMAKER, "--joblog", "joblog", "runs.txt")
                self.assertEqual(self.read("joblog").count(b"\n"), 4)
                self.assertEqual(self.run_parallel("-k", option, "--joblog", "joblog", "echo ran {}", ":::",
                                                   *"abcde"), ran)

    def test_we_append_to_a_log_of_gnu_parallel(self) -> None:
        self.run_parallel("--joblog", "joblog", "true {}", ":::", "a", "b")
        before = self.read("joblog")
        self.write("d true a\nd true b\n. true c\n")
        self.assertEqual(self.run_script(RUNMAKER, "--joblog", "joblog", "runs.txt").code, 0)
        after = self.read("joblog")
        self.assertTrue(after.startswith(before))
        self.assertRegex(after[len(before):], rb"^3\t[^\n]*\ttrue c\n$")


class LogFileRecords(FileCase):
    """A record has its place and its size; it shows the head and the last lines of a job."""

    def test_both_streams_are_shown_in_the_order_of_their_lines(self) -> None:
        log = runmaker4.LogFile(str(self.path), 6, b"/", runmaker4.FileExecutor(threaded=False), self.fail)
        self.addCleanup(os.close, log.file.fd)
        run = a_run()
        log.on_started(run)
        for number, data in (0, b"a"), (1, b"x\ny"), (0, b"b\n"), (1, b"z\n"), (0, b"end"):
            log.on_output(run, run.streams[number], data)
            log.on_tick()
        log.on_ended(run, runmaker4.RunResult(0))
        rows = self.path.read_bytes().split(b"\n")[-7:-1]            # of the second job
        self.assertEqual([row.rstrip() for row in rows], [
            b'+ status (alice,601): forked "CMD"', b"! stderr (alice,601): x", b": stdout (alice,601): ab",
            b"! stderr (alice,601): yz", b": stdout (alice,601): end", b'+ status (alice,601): exit 0 "CMD"'])

    def test_long_lines_are_cut_before_they_are_kept(self) -> None:
        log = runmaker4.LogFile(str(self.path), 100, b"/", runmaker4.FileExecutor(threaded=False), self.fail)
        self.addCleanup(os.close, log.file.fd)
        run = a_run()
        run.job = runmaker4.Job(runmaker4.Line(1, 0, b".", b" " + b"c" * 10_000))
        log.on_started(run)
        for data in b"x" * 60_000 + b"\n", b"y" * 60_000, b"y" * 60_000, b"y\n" + b"z" * 60_000:
            for stream in run.streams:
                log.on_output(run, stream, data)
        record = log.records[run]
        self.assertEqual(len(record.lines), 5)          # forked, and two of each stream
        for text in [*record.lines, *record.incomplete_lines.values()]:
            self.assertLessEqual(len(text), log.WIDTH + 40)
