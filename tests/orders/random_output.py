"""Histories: what runwait4.py says of the jobs of a file is compared with what each job has really printed.

A history is a file of a few very short jobs, made as text or from a table, and steps in random order: one or
two runners, some with records of their own; kills of runners while they work; --cancel, --set, --add; edits
with --edit, by rename, and in place, also of what was read long ago, that move, copy, remove, change and add
lines; power cuts, after which records are as they were at the last sync, and states are not.  Each job prints
what no other run does, and writes into `truth` that it has begun, has printed, and ends with which status.
Nothing is known here of how runwait4.py finds a run.

What must hold, each time when somebody has looked:

- Output that is given for a line is that of the last run of its command, whole.  Equal lines are told apart
  by their number; once they have moved, any run of theirs that ended well will do, and each only once.
- Nothing is given for a finished line whose last run did not end in its state: that was set by hand.  A done
  line without output is named, and the exit status is 1.
- If the journal has the end of the last run, with the line's state, it is given; also if that comes a moment
  after the state, unless the reader has waited for two seconds in vain.
- All views agree, and the journal has all runs of all runners that were not killed.
- A line that is `d`, and whose run was lost in a power cut, is in doubt (--status).

A run that has left nothing in the journal (--no-records, another --outdir, a killed runner) cannot be told
from an older one that has ended in the same state.  These are counted as limits.

    python3 -m tests.orders.random_output --histories 1000 how many histories find which faults, on all cores
    python3 -m tests.orders.random_output --seed 7         the steps of one history, and its faults

A seed makes the same steps again, not the same times: what is a race may need several tries.
"""
from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.support.processes import MARK, marked, wait_until
from tests.support.runs import RunCase
from tests.support.scripts import RUNSET, RUNWAIT

KINDS = b"", b'"a", b\t\xff\r c\n\n\n', b"3.14", b"0123456789" * 500      # of output, behind the run's name
JOB = """#!/bin/sh
read n 2>/dev/null <count.$1; n=$((n + 1)); echo $n >count.$1
case $(((n * 7 + ${1#j} * 11) %% 40)) in
%s
esac
run="$1 $PPID $n"
echo "start $run $JOB_ID $RUNNER $kind" >>truth
echo "$run"; [ $kind = 0 ] || cat kind.$kind
echo "printed $run" >>truth
[ $pause = 0 ] || sleep $pause
echo "end $run $status" >>truth
exit $status
"""
WORDS = {"d": "done", "!": "failed", "e": "error", ".": "new", "c": "held cancelled", "x": "held"}
FINISHED = "d!ec"           # by a runner
TEMPLATE = "./job {name} {value}"
VALUES = "7", "a b", "it's", 'say "x"', "x,y", "$HOME", "*", "a;b", "\u00e9", "-n", "{1}", "\\", "#", "~"
# The host's boot is in a file, marks are renewed often, and records take a while
BOOT = """
import runmaker4
runmaker4.BOOT_ID = "boot"
runmaker4.Program.RENEWAL_SECONDS, runmaker4.Program.GATHER_SECONDS = 0.1, 0.2
"""
# A sync: what is there now is on disk
SYNC = """#!/bin/sh
new=$(mktemp -d disk.XXXXXX) && cp -a runs.txt.out $new && mv -T $new $new.complete
"""
# Planted: claims come to disk before data
NO_SYNC = """
async def sync(*_):
    return True
runmaker4.Program._sync = sync
"""
MAX_WAIT_SECONDS = 2.0      # for which a reader waits for records that are on the way


def to_text(output: bytes) -> str:
    return output.decode(errors="surrogateescape")


class Line(NamedTuple):
    state: str
    name: str               # of the job, as a word of its command
    value: bytes            # what follows


@dataclass
class Runner:
    process: subprocess.Popen[bytes]
    has_journal: bool           # the one that is read
    was_killed: bool = False    # with all that it had not yet written


@dataclass
class Run:
    """A run, as its job has told."""
    words: str              # the name of the job, the shell's process, the number of the run
    line: int
    runner: str
    kind: int
    has_printed: bool = False
    status: int | None = None       # None: it has not come to its end

    @property
    def key(self) -> tuple[str, int]:
        """What the journal has, too."""
        return self.words.split()[0], int(self.words.split()[1])

    @property
    def text(self) -> bytes:
        return f"{self.words}\n".encode() + KINDS[self.kind]


@dataclass
class Seen:
    """All that is known at one moment."""
    file: dict[int, Line]
    runs: defaultdict[str, list[Run]]       # by name, in order
    journal: dict[tuple[str, int], str]     # the state in which a run has ended; "": it has begun


class History(RunCase):
    """One history.  faults: each is a kind, which may be a (limit), a colon, and the case."""

    def __init__(self, seed: int, defect: str = "") -> None:
        """defect: statements that plant one in each runner."""
        super().__init__("explore")
        self.statements = BOOT + defect
        self.random = random.Random(seed)
        self.told: list[str] = []
        self.faults: list[str] = []
        self.runners: dict[str, Runner] = {}
        self.follower: Runner | None = None
        self.old = b""                          # the file, as it was before the last edit
        self.has_saved_in_place = False
        self.values: dict[bytes, str] = {}      # of the table, by what has become of them
        # by name, the numbers that its lines have had at one moment
        self.places: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
        self.new_names = map("j{}".format, range(1, 1000))

    # -- the steps ------------------------------------------------------------------------------------------

    def explore(self) -> History:
        """Go through the history, from the first step to the last."""
        self.setUp()
        try:
            self.make_files()
            for _ in range(self.random.randint(3, 8)):
                self.random.choice((self.work, self.work, self.work, self.disturbed_work, self.disturbed_work,
                                    self.follow, self.set_states, self.edit, self.edit, self.cut_power))()
                if self.random.random() < 0.6:
                    self.check_table()
            if self.follower:
                self.follow()
            self.finish(self.start_runner("-r", "-j3").process)
            self.check_all_views()
        except AssertionError as error:
            self.faults.append(f"a script failed: {error}")
        finally:
            self.doCleanups()
        return self

    def make_files(self) -> None:
        """Make the jobs, and the file: as text, or from a table."""
        chance, cases = self.random, []
        for number in range(40):
            status, kind = chance.choice((0, 0, 0, 1, 3)), chance.choice((0, 0, 0, 0, 1, 2, 3))
            pause = chance.choice((0, 0, 0, 0, 0.05, 0.1, 0.3, 0.3, chance.choice((0, 0, 1.1))))
            cases.append(f"{number}) status={status} pause={pause} kind={kind};;")
        self.script(JOB % "\n".join(cases), "job")
        self.script(SYNC, "bin/sync")
        self.write("0", "boot")
        for name, text in ("truth", b""), *((f"kind.{number}", text) for number, text in enumerate(KINDS)):
            self.write(text, name)
        names = [next(self.new_names) for _ in range(chance.randint(2, 5))]
        if chance.random() < 0.4:
            names = chance.sample(names + names[:1] * 2, len(names) + 2)
        if chance.random() < 0.4:
            values = {name: chance.choice(VALUES) for name in names}
            with open(self.dir / "list.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("name", "value"), *((name, values[name]) for name in names)])
            self.set_file("--add-list", "list.csv", "--template", TEMPLATE)
            self.values = {line.value: values[line.name] for line in self.read_lines().values()}
        else:
            self.write("".join(f". ./job {name}\n" for name in names))
        self.old = self.read()
        self.told.append(self.old.decode())
        self.note_places()

    def start_runner(self, *options: str) -> Runner:
        """Start a runner, perhaps with records of its own."""
        records = self.random.choice(("", "", "", "", "", "", "--no-records", "--outdir other")).split()
        label = f"R{len(self.runners)}"
        self.told.append(f"{label}: {' '.join(options)} {' '.join(records)}")
        path = f"{self.dir}/bin:{os.environ['PATH']}"
        process = self.start_patched(self.statements, "-q", *options, *records, "runs.txt",
                                     env={"RUNNER": label, "PATH": path})
        self.runners[label] = Runner(process, not records)
        return self.runners[label]

    def start_runners(self) -> list[Runner]:
        some = "-r -j2", "-r -j3", "-j1", "--resume -j2", "--retries 1 -j3", "-r --retries 2 -j2", "-r -1 -j2"
        return [self.start_runner(*self.random.choice(some).split())
                for _ in range(self.random.choice((1, 1, 1, 2)))]

    def work(self) -> None:
        for runner in self.start_runners():
            self.finish(runner.process)

    def disturbed_work(self) -> None:
        """Disturb runners at some moment of their work."""
        if self.random.random() < 0.6:
            self.set_states()
        first, *_ = runners = self.start_runners_and_wait()
        self.random.choice((
            lambda: self.end(first, kill=True), lambda: self.end(first, kill=True), self.set_states,
            lambda: self.end(first, kill=False), self.set_states, self.edit, self.check_table))()
        for runner in runners:
            self.finish(runner.process)

    def start_runners_and_wait(self) -> list[Runner]:
        """Start runners; return at some moment of the work of the first."""
        first, *_ = runners = self.start_runners()
        wanted = self.read("truth").count(b"\n") + self.random.randint(1, 8)
        with contextlib.suppress(AssertionError):       # there may be no such moment
            wait_until(lambda: first.process.poll() is not None or self.read("truth").count(b"\n") >= wanted,
                       timeout=0.5)
        time.sleep(self.random.choice((0, 0, 0.002, 0.01, 0.05)))
        return runners

    def cut_power(self) -> None:
        """Cut the power while runners work, drop what no sync has brought to disk, and start them again."""
        self.start_runners_and_wait()
        time.sleep(self.random.choice((0, 0, 0.2, 0.5)))
        self.told.append("power cut")
        working = [runner for runner in self.runners.values() if runner.process.poll() is None]
        for runner in working:
            runner.process.kill()
            runner.process.wait()
            runner.was_killed = True
        for pid in {*marked(f"{MARK}={self.mark}")} - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.follower, before = None, self.look()
        self.drop_unsynced_records()
        self.write(str(self.random.random()), "boot")
        after = self.look()
        shown = self.finish(self.start_patched(BOOT, "--status", "--json", "runs.txt", script=RUNWAIT))
        in_doubt = json.loads(shown.out)["in_doubt"]
        for number, line in after.file.items():
            run, is_known = self.last_run(after, number)
            if line.state != "d" or number in in_doubt or not run or not is_known or run.status:
                continue
            runner = self.runners[run.runner]
            had_record = before.journal.get(run.key) or runner in working
            if had_record and runner.has_journal and not after.journal.get(run.key):
                is_first = len(after.runs[line.name]) == 1
                self.fault("lost in a power cut, and not in doubt" if is_first
                           else "(limit) run again, lost in a power cut, and not in doubt", number, run)
        self.finish(self.start_runner("--resume", "-j2").process)

    def drop_unsynced_records(self) -> None:
        """Let the records be as they were at the last sync; the kernel has written some output since."""
        synced = sorted(self.dir.glob("disk.*.complete"), key=lambda path: path.stat().st_mtime_ns)
        for path in (self.dir / "runs.txt.out").glob("*"):
            old = synced[-1] / "runs.txt.out" / path.name if synced else None
            if path.name != "journal" and self.random.random() < 0.2:
                continue
            if old and old.exists():
                path.write_bytes(old.read_bytes())
            else:
                path.unlink()

    def end(self, runner: Runner, kill: bool) -> None:
        """End a runner by TERM; or kill it, and perhaps its jobs, too."""
        runner.was_killed = runner.was_killed or kill
        runner.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        jobs = self.running_jobs() if kill and self.random.random() < 0.4 else set()
        self.told.append(f"kill -9, and of {len(jobs)} jobs" if kill else "TERM")
        for pid in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def running_jobs(self) -> set[int]:
        """The shells of the jobs that run."""
        runs = [run for runs in self.look().runs.values() for run in runs if run.status is None]
        return {run.key[1] for run in runs} & {*marked(f"{MARK}={self.mark}")}

    def follow(self) -> None:
        """Start a runner that stays, and look at the moment when all is done; or end it."""
        if self.follower:
            self.end(self.follower, kill=self.random.random() < 0.3)
            self.finish(self.follower.process)
            self.follower = None
            return
        self.follower = self.start_runner("-r", "-j2", "--follow")
        for _ in range(self.random.randint(1, 3)):
            with contextlib.suppress(AssertionError):       # what others have left may wait for its job
                wait_until(lambda: not {line.state for line in self.read_lines().values()} & {".", "r"}, 3)
            self.check_table()
            self.random.choice((lambda: self.set_file("--add", f"./job {next(self.new_names)}"),
                                lambda: self.set_file("--set=.", "--all")))()

    def set_file(self, *words: str, **environ: str) -> None:
        self.told.append(f"runset4.py {' '.join(words)} {environ or ''}")
        self.run_script(RUNSET, "-q", "runs.txt", *words, env=environ)
        self.note_places()

    def set_states(self) -> None:
        """Set states by hand, or cancel a line."""
        running = [number for number, line in self.read_lines().items() if line.state == "r"]
        setting, line = f"--set={self.random.choice('.....dx!e')}", str(self.some_line())
        self.set_file(*self.random.choice((
            ("--set=.", "--all"), (setting, "--all"), (setting, line), (setting, line),
            ("--cancel", str(self.random.choice(running or [self.some_line()]))))))

    def some_line(self) -> int:
        return self.random.choice(list(self.read_lines()))

    def edit(self) -> None:
        """Change the file by a sed script: with --edit, or as editors do."""
        at, last = self.some_line(), self.read().count(b"\n")
        new, state = f"./job {next(self.new_names)}", self.random.choice(".d!ex")
        script = self.random.choice([
            "1i# a note", "1i# a note", f"{at}i# a note", "0,/^#/{/^#/d}", "0,/^#/{/^#/d}", f"$a. {new}",
            f"{at}i. {new}", f"{at}s/^. /{state} /", f"{at}s/^. /. /;1i# a note", f"{at}p",
            f"{at}s,^. ./job j[0-9]*,. {new},", *([f"{at}d"] if last > 2 else ()),
            *([f"{at}{{h;d}};${{p;x}}"] * 3 if at < last else ()),
        ])
        how = self.random.choice(("--edit", "--edit", "in place", "rename", "old", "old"))
        if how == "--edit":
            self.set_file("--edit", EDITOR=f"sed -i -e '{script}'")
            return
        self.told.append(f"edit, {how}: {script}")
        text, self.old = self.old if how == "old" else self.read(), self.read()
        text = subprocess.run(["sed", "-e", script], input=text, check=True, stdout=subprocess.PIPE).stdout
        self.has_saved_in_place |= how != "rename"
        self.write(text, "new" if how == "rename" else "runs.txt")
        if how == "rename":
            os.replace(self.dir / "new", self.dir / "runs.txt")
        self.note_places()

    # -- what is known --------------------------------------------------------------------------------------

    def read_lines(self) -> dict[int, Line]:
        found = {number: re.fullmatch(rb"([^#])[ \t]\./job (j\d+) ?(.*)", text)
                 for number, text in enumerate(self.read().split(b"\n"), 1)}
        return {number: Line(match[1].decode(), match[2].decode(), match[3])
                for number, match in found.items() if match}

    def note_places(self) -> None:
        numbers = defaultdict(list)
        for number, line in self.read_lines().items():
            numbers[line.name].append(number)
        for name, found in numbers.items():
            self.places[name].add(tuple(found))

    def look(self) -> Seen:
        runs: defaultdict[str, list[Run]] = defaultdict(list)
        started: dict[str, Run] = {}
        for event, name, pid, number, *more in map(str.split, self.read("truth").decode().splitlines()):
            words = f"{name} {pid} {number}"
            if event == "start":
                started[words] = Run(words, int(more[0]), more[1], int(more[2]))
                runs[name].append(started[words])
            else:
                started[words].has_printed, started[words].status = True, int(more[0]) if more else None
        journal = self.read("runs.txt.out/journal") if self.exists("runs.txt.out/journal") else b""
        events = [json.loads(line) for line in journal.rpartition(b"\n")[0].split(b"\n") if line]
        return Seen(self.read_lines(), runs, {
            (event["command"].split()[1], event["pid"]): event.get("state", "")
            for event in events if event["event"] != "loss"})

    def last_run(self, seen: Seen, number: int) -> tuple[Run | None, bool]:
        """The last run of a line, and False if that is unknown: equal lines have moved."""
        name = seen.file[number].name
        runs, has_equal = seen.runs[name], any(len(numbers) > 1 for numbers in self.places[name])
        runs = [run for run in runs if run.line == number or not has_equal]
        return (runs[-1] if runs else None), not has_equal or len(self.places[name]) == 1

    def will_be_recorded(self, run: Run) -> bool:
        return self.runners[run.runner].has_journal and not self.runners[run.runner].was_killed

    # -- what must hold -------------------------------------------------------------------------------------

    def fault(self, kind: str, *case: object) -> None:
        self.faults.append(f"{kind}: {' '.join(f'{part!s:.300}' for part in case)}")
        self.told.append(f"    {self.faults[-1]}")

    def check_table(self) -> list[tuple[dict[str, str], Run | None]]:
        """Check the lines that do not change meanwhile; their rows, and the runs that these give."""
        before, began, checked = self.look(), time.monotonic(), []
        template = ["--template", TEMPLATE] if self.values else []
        ended = self.run_script(RUNWAIT, "--output", "--csv", *template, "runs.txt")
        has_waited, after = time.monotonic() - began >= MAX_WAIT_SECONDS, self.look()
        for row in csv.DictReader(io.StringIO(to_text(ended.out), newline="")):
            number = int(row["line"])
            line = before.file.get(number, Line("", "", b""))
            if (line != after.file.get(number) or row["state"] not in WORDS.get(line.state, "").split()
                    or before.runs[line.name] != after.runs[line.name]):
                continue
            given = next((run for run in after.runs[line.name]
                          if run.words == row["stdout"].partition("\n")[0]), None)
            if (kind := self.check_row(row, given, before, after, has_waited)):
                self.fault(kind, row, self.last_run(after, number)[0])
            is_named = {str(number), "..."} & {*re.findall(r"\d+|\.\.\.", ended.err.decode())}
            if line.state == "d" and not row["host"] and not (ended.code == 1 and is_named):
                self.fault("a done line without output is not named", row, ended.code, ended.err)
            wanted = (line.name, self.values[line.value]) if line.value in self.values else ("", "")
            if self.values and (row["name"], row["value"]) != wanted:
                self.fault("other values than in the list", row, wanted)
            checked.append((row, given))
        given_words = [run.words for _, run in checked if run]
        if len({*given_words}) < len(given_words):
            self.fault("a run is given twice", checked)
        is_complete = all(row["state"] == "done" and row["host"] for row, _ in checked)
        if ended.code and is_complete and len(checked) == len(before.file):
            self.fault("exit status 1, and all is there", ended.err)
        return checked

    def check_row(self, row: dict[str, str], given: Run | None, before: Seen, after: Seen,
                  has_waited: bool) -> str:
        """What is wrong with a row; "": nothing."""
        state, name, _ = before.file[int(row["line"])]
        if state == "." and (row["stdout"] or row["host"]):
            return "a new line has output"
        if given and given.has_printed and row["stdout"] != to_text(given.text).rstrip("\n"):
            return "output is cut or changed"
        if given and given.status is not None and row["exit"] not in ("", str(given.status)):
            return "another exit status"
        if state == "d" and row["host"] and not given:
            return "done, and the output is not that of any run"
        last, is_known = self.last_run(after, int(row["line"]))
        if not is_known:
            is_wrong = given and state == "d" and given.status != 0
            return "done, and a run of an equal line that failed is given" if is_wrong else ""
        if given:
            return self.blame(last, given, state, before, after, has_waited)
        # the last one may have been killed before it could tell the truth
        told = {run.key for run in after.runs[name]}
        has_untold = any(key[0] == name and key not in told for key in after.journal)
        if not last or state not in FINISHED or has_untold or (row["host"] and not last.has_printed):
            return ""
        if before.journal.get(last.key) == state:
            return "recorded, and missing"
        if has_waited or not self.will_be_recorded(last):
            return ""
        with contextlib.suppress(AssertionError):
            runner = self.runners[last.runner].process
            wait_until(lambda: runner.poll() is not None or self.look().journal.get(last.key))
        return "late, and missing" if self.look().journal.get(last.key) == state else ""

    def blame(self, last: Run | None, given: Run, state: str, before: Seen, after: Seen,
              has_waited: bool = True) -> str:
        """What is wrong with giving this run for a line; "": nothing, or nobody could know."""
        is_same = state not in FINISHED or after.journal.get(given.key) in ("", None, state)
        if given == last:
            return "" if is_same else "set by hand, and a run that ended otherwise is given"
        if last is None:
            return "a run of an equal line is given"
        if last.key in before.journal:
            return "recorded, and an older run is given"
        is_late, has_journal = self.will_be_recorded(last), self.runners[last.runner].has_journal
        why = "late" if is_late else "lost with its runner" if has_journal else "recorded elsewhere"
        how = "in the same state" if is_same else "otherwise"
        kind = f"{why}, and an older run that ended {how} is given"
        return kind if not is_same or (is_late and not has_waited) else f"(limit) {kind}"

    def check_all_views(self) -> None:
        """When all have gone: the journal has all runs, and each view says what the table says."""
        wait_until(lambda: not self.running_jobs())
        rows, seen = self.check_table(), self.look()
        for run in (run for runs in seen.runs.values() for run in runs):
            if self.will_be_recorded(run) and not seen.journal.get(run.key):
                self.fault("the journal lacks a run", run)
        if len(rows) < len(seen.file):
            return                      # a line is `r`: of a killed runner
        told_of_line = {told["line"]: told for told in self.answer("--output")}
        for row, _ in rows:
            told = told_of_line[int(row["line"])]
            as_row = {key: "" if value is None else str(value).rstrip("\n") for key, value in told.items()}
            if not as_row.items() <= row.items():
                self.fault("--json is not --csv", told, row)
        wanted = b""
        for run in (given for row, given in rows if row["state"] == "done" and given):
            wanted += b"\n" * (wanted[-1:] not in b"\n") + run.text
        ended = self.run_script(RUNWAIT, "--output", "runs.txt")
        is_incomplete = any(row["state"] == "done" and not row["host"] for row, _ in rows)
        if ended.out != wanted or (is_incomplete and not ended.code):
            self.fault("--output is not --csv", ended.out, wanted, ended.code, ended.err)
        for told in self.answer("--failed")[0]["runs"]:
            if not (line := seen.file.get(told["line"])):
                # a runner checks its line and then writes: a save in place can come between
                self.fault("(limit) a state is in a command" if self.has_saved_in_place
                           else "--failed names no job", told, self.read())
                continue
            last, is_known = self.last_run(seen, told["line"])
            given = next((run for run in seen.runs[line.name] if run.key[1] == told["pid"]), None)
            if not given or not told["end"] or not is_known:
                continue
            if (kind := self.blame(last, given, line.state, seen, seen)):
                self.fault(f"{kind} (by --failed)", told, last)
        number = self.some_line()
        shown = {told["pid"] for told in self.answer("--show", str(number))[0]["runs"]}
        lacking = {key[1] for key in seen.journal if key[0] == seen.file[number].name} - shown
        if lacking and all(len(numbers) == 1 for numbers in self.places[seen.file[number].name]):
            self.fault("--show lacks a run", lacking, shown)
        ends = sum(map(bool, seen.journal.values()))
        if ends and self.answer("--stats")[0]["all"]["runs"] != ends:
            self.fault("--stats counts wrong", ends)

    def answer(self, *view: str) -> list[dict[str, Any]]:
        out = self.run_script(RUNWAIT, *view, "--json", "runs.txt").out
        return [json.loads(line) for line in out.splitlines()]


# -- many histories ------------------------------------------------------------------------------------------


def explore(seed: int) -> tuple[set[str], list[str]]:
    """The kinds of what a history finds, and its story."""
    history = History(seed).explore()
    return {fault.partition(":")[0] for fault in history.faults}, [f"seed {seed}", *history.told]


def explore_many(seeds: range) -> Iterator[tuple[set[str], list[str]]]:
    """Explore histories, two at once on each core: most of the time they wait."""
    with multiprocessing.get_context("fork").Pool(2 * len(os.sched_getaffinity(0))) as pool:
        yield from pool.imap_unordered(explore, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m tests.orders.random_output", allow_abbrev=False)
    parser.add_argument("--seed", type=int, help="show this history, rather than how many have which faults")
    parser.add_argument("--histories", type=int, default=100, help="how many [100]")
    parser.add_argument("--first", type=int, default=0, help="the first seed of them [0]")
    options = parser.parse_args()
    if options.seed is not None:
        print("\n".join(explore(options.seed)[1]))
        return
    stories, began = defaultdict(list), time.monotonic()
    faulty = 0
    for kinds, story in explore_many(range(options.first, options.first + options.histories)):
        faulty += any(not kind.startswith("(limit)") for kind in kinds)
        for kind in kinds:
            stories[kind].append(story)
    for kind, found in sorted(stories.items()):
        if not kind.startswith("(limit)"):      # the shortest one
            print("", *min(found, key=len), sep="\n")
    for kind, found in sorted(stories.items()):
        seeds = sorted(int(story[0][5:]) for story in found)
        print(f"{len(found):6} {kind}: {', '.join(map(str, seeds[:12]))}")
    print(f"{faulty} of {options.histories} histories have faults, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
