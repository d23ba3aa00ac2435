"""Promise: `#RUN shell=` has the jobs below run by that shell, on every host, or not at all."""
import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from concurrent import futures

import runmaker4
from tests.support.case import GATE
from tests.support.directives import DirectiveCase
from tests.support.line_locks import locked_lines
from tests.support.permissions import bound_by_permissions
from tests.support.processes import DEADLINE, Ended, wait_until
from tests.support.refusals import RefusalCase
from tests.support.scripts import FULL, ROOT, RUNCLIENT, RUNMAKER, RUNWAIT
from tests.support.tcp import TcpCase
from tests.support.wrappers import LOGGING_WRAPPER, SSH

# Commands, the states that they must leave, and what they print on stdout: the same in all shells.  Those
# that are cut off must fail.
EVERYWHERE = (
    ("echo out; echo err >&2", "d", b"out\n"),
    ("echo out; false", "!", b"out\n"),
    ("(exit 3)", "!", b""),
    ("exit 3", "!", b""),
    ("set -e; false; echo never", "!", b""),
    ("# nothing but a comment", "d", b""),
    ("echo out # and a comment", "d", b"out\n"),
    ("echo out\\", "d", b"out\n"),
    ("echo never |", "!", b""),
    ("echo 'never", "!", b""),
    ("if true; then", "!", b""),
    ("cat <<END", "!", b""),
    ("echo never; exit 0; }", "!", b""),
    ("true; fi", "!", b""),
    ("else echo never", "!", b""),
    ("fi; echo never; if true; then", "!", b""),
    ("echo never &&", "!", b""),
    ("while false", "!", b""),
    ("echo never >never; }", "!", b""),
    ("{ echo never", "!", b""),
    ("no-such-command-here", "!", b""),
    ("kill -9 $$", "!", b""),
    ("cat; echo out", "d", b"out\n"),
    ("trap 'echo trapped' EXIT; false", "!", b"trapped\n"),
    ("exec echo out", "d", b"out\n"),
    ("x='a  b'; echo \"$x\" \"$JOB_ID\"", "d", b"a  b ID\n"),
    # what ps shows first
    ("tr '\\0' '\\n' </proc/$$/cmdline | grep -c '^# tr .*é.* #$'", "d", b"1\n"),
)


# Words that open, close, continue or end something, and where they stand in a job
WORDS = ("else", "elif", "elif :; then :", "fi", "then", "do", "done", "esac", ";;", ";; *) :", "}", ")", ";",
         "&", "|", "!", "in", "{", "(", "]]", "case", "if", "select", "time", "`", "$(", "${", "'", '"', "#",
         "\\", "exit", "exit 3", "exit 300", "return", "return 3", "break", "break 2", "continue", "exec",
         "exec true", "exec 2>err", "shift", "set -- a b", "set -e; false", "set -u; echo $nope",
         "alias touch=exit", "trap 'touch end' EXIT", "trap 'exit 5' EXIT; false",
         "trap 'touch term' TERM; kill $$", "kill -9 $$", "false", "(exit 200)", "IFS=1; (exit 137)",
         "eval '}'", "eval else", "eval 'touch ev; exit 4'", "f()", "x=(", "if true", "if true; then",
         "case x in", "case x in x)", "case x in x) :", "{ :", "( :", "while false; do", "fi; done",
         "fi; done; while false; do if false; then", "}; {", "} #", "} & {", "} | {", "} || {", "} always {",
         "); (", "fi; if true; then", "done; while true; do", "esac; case x in x)", ";; esac; case x in x)")
# Words that can leave a job without its end.  Some shells would run that; no job of ours is run then
OPEN = ("&&", "||", "((", "[[", "for x in a b", "while false", "until true", "repeat 2", "function f",
        "cat <<END", "cat <<''", "cat <<'}'", "cat <<exit", "cat <<-:")
PLACES = ("touch a; {}", "{} touch b", "touch a; {}; touch b", "{}", "{} || touch b", "! {}",
          "case x in x) {};; esac", "if {}; then touch a; fi")


class Refused(unittest.TestCase):
    """A job that its shell refuses as a whole runs nothing; any other does what SHELL -c JOB does."""
    SHELLS = "dash", "bash", "bash --posix", "busybox sh", "mksh", "yash", "zsh", "ksh"

    @staticmethod
    def run_shell(shell: str, *words: str) -> tuple[int, list[str]]:
        """Run `SHELL -c WORDS` in an empty directory; return the exit status, and the files that it made."""
        with tempfile.TemporaryDirectory() as folder:
            ended = subprocess.run([*shell.split(), "-c", *words], check=False, cwd=folder, timeout=DEADLINE,
                                   stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True)
            return ended.returncode, os.listdir(folder)

    def run_job(self, shell: str, job: str) -> tuple[int, list[str]]:
        return self.run_shell(shell, runmaker4.Processes.SHELL_SCRIPT.decode(), shell, job)

    def check(self, shell: str, word: str, place: str) -> None:
        job = place.format(word)
        code, files = self.run_job(shell, job)
        is_refused = code != 0 and not files
        if is_refused and word in OPEN:
            return                              # zsh would run some of them for ever
        # a backslash at the end continues a job with nothing
        alone_code, alone_files = self.run_shell(shell, job + "\n \n" * job.endswith("\\"))
        if is_refused and alone_code != 0 and not alone_files:
            return                              # after an error, numbers can differ
        self.assertEqual((code, sorted(files)), (alone_code, sorted(alone_files)), job)

    def test_job_runs_nothing_and_any_other_does_what_it_does_alone(self) -> None:
        jobs = list(itertools.product(WORDS + OPEN, PLACES if FULL else PLACES[:1]))
        for shell in self.SHELLS if FULL else self.SHELLS[:2]:
            with self.subTest(shell=shell), futures.ThreadPoolExecutor() as pool:
                if not shutil.which(shell.split()[0]):
                    self.skipTest(f"{shell} is not installed")
                list(pool.map(lambda job: self.check(shell, *job), jobs))
                self.assertEqual(self.run_job(shell, "touch a; sh -c 'kill -9 $$'"), (137, ["a"]))


class ShellCase(TcpCase, DirectiveCase):
    """Job files with `#RUN shell=`."""

    def path(self, *folders: str) -> dict[str, str]:
        """An environment in which programs are looked for in these folders of ours first."""
        return {"PATH": ":".join([*(str(self.dir / folder) for folder in folders), os.environ["PATH"]])}


# -- each shell that is installed ----------------------------------------------------------------------------

class Bash(ShellCase):
    """All that a runner hands to a shell means the same to bash, and to the other shells below."""
    SHELL = "bash"

    def setUp(self) -> None:
        super().setUp()
        if not shutil.which(self.SHELL):
            self.skipTest(f"{self.SHELL} is not installed")

    @property
    def is_it(self) -> str:
        """A job that is done if it is run by this shell."""
        return f'[ "$(readlink /proc/$$/exe)" = "{os.path.realpath(str(shutil.which(self.SHELL)))}" ]'

    def test_jobs_do_in_it_what_they_do_in_bin_sh(self) -> None:
        for shell, folder in ("/bin/sh", "sh"), (self.SHELL, "it"):
            self.lines(f"#RUN shell={shell}", *[f". {command}" for command, _, _ in EVERYWHERE])
            self.run_jobs("-q", "--outdir", folder)
            states = self.states()
            for number, (command, state, out) in enumerate(EVERYWHERE, 2):
                with self.subTest(shell=shell, command=command):
                    file = self.dir / folder / f"{number}.out"
                    printed = file.read_bytes() if file.exists() else b""
                    printed = printed.replace(b" %d\n" % number, b" ID\n")
                    self.assertEqual((states[number - 2], printed), (state, out))

    def test_it_is_found_by_name_and_by_path(self) -> None:
        self.lines(f"#RUN shell={self.SHELL}", f". {self.is_it}",
                   f"#RUN shell={shutil.which(self.SHELL)}", f". {self.is_it}")
        self.assertLeft(self.start(RUNMAKER, "runs.txt"), 0, "dd")

    def test_jobs_of_a_killed_runner_keep_their_lines_until_they_end(self) -> None:
        wait = f"touch ready.$JOB_ID; {GATE}"
        closes = "import os; os.closerange(3, 999); os.system(os.environ['WAIT'])"
        jobs = (wait, f"exec 3>three 9>nine; {wait}; echo 3 >&3", f"exec sh -c '{wait}'", f"({wait}) & wait",
                f"({wait})", f'"{sys.executable}" -c "{closes}"')
        self.lines(f"#RUN shell={self.SHELL}", *(f". {job}" for job in jobs))
        runner = self.start(RUNMAKER, f"-j{len(jobs)}", "runs.txt", env={"WAIT": wait})
        lines = list(range(2, len(jobs) + 2))
        for line in lines:
            wait_until((self.dir / f"ready.{line}").exists, what=f"job {line} is ready")
        runner.kill()
        runner.wait()
        self.assertEqual(locked_lines(self), lines)
        self.open_gate()
        wait_until(lambda: not locked_lines(self), what="all lines are free")

    def test_it_waits_at_the_gate_of_a_group(self) -> None:
        self.lines(f"#RUN together=pair host=alice,bob shell={self.SHELL}",
                   *[f". {self.is_it} && cat && echo $JOB_ID >> ran"] * 2)
        server = self.start_server("--exit-when-done")
        clients = [self.start_client(server, "--name", name) for name in ("alice", "bob")]
        self.assertEqual([self.finish(program).code for program in (*clients, server)], [0, 0, 0])
        self.assertEqual((self.states(), sorted(self.ran())), ("dd", [2, 3]))


Zsh, Ksh, Dash, Mksh, Yash = (type(name, (Bash,), {"SHELL": name.lower()})
                             for name in ("Zsh", "Ksh", "Dash", "Mksh", "Yash"))


# -- where it holds ------------------------------------------------------------------------------------------

class Settings(ShellCase):
    """It holds for the jobs below, up to the next line with settings."""

    def test_each_line_starts_afresh_and_a_bare_one_clears_it(self) -> None:
        self.script('#!/bin/sh\necho "$JOB_ID" >> ours\nexec /bin/sh "$@"\n', "bin/bash9")
        self.lines(". true", "#RUN shell=bash9", ". true", ". true", "#RUN timeout=60", ". true",
                   "#RUN timeout=60 shell=bin/bash9", ". true", "#RUN", ". true")
        self.assertLeft(self.start(RUNMAKER, "runs.txt", env=self.path("bin")), 0, "dddddd")
        self.assertEqual(self.read("ours").split(), [b"3", b"4", b"8"])

    def test_source_double_brackets_and_arrays_work(self) -> None:
        self.write("answer=42\n", "settings.sh")
        self.lines("#RUN shell=bash",
                   ". source ./settings.sh && [[ $answer == 4? ]] && a=(1 2) && ((${#a[@]} == 2))",
                   ". set -o pipefail; false | true")
        self.assertLeft(self.start(RUNMAKER, "runs.txt"), 1, "d!")


class Exported(ShellCase):
    """No variable of a shell that started the runner keeps jobs from running; wishes are left alone."""

    def test_a_job_runs_and_its_status_counts(self) -> None:
        shells = [name for name in ("sh", "bash", "dash", "zsh", "ksh", "mksh") if shutil.which(name)]
        lines = [line for name in shells for line in (f"#RUN shell={name}", ". echo x >>ran", ". false")]
        for name, value in (("ZSH_VERSION", "5.9"), ("SHELLOPTS", "noexec"), ("SHELLOPTS", "vi:noexec"),
                            ("POSIXLY_CORRECT", "1"), ("BASH_ENV", "/dev/null"), ("ENV", "/dev/null")):
            with self.subTest(name=name, value=value):
                self.lines(*lines)
                self.write("", "ran")
                self.run_jobs("-q", "-j4", env={name: value})
                count = len(shells)
                self.assertEqual((self.states(), self.read("ran")), ("d!" * count, b"x\n" * count))

    def test_the_other_options_of_bash_are_for_its_jobs(self) -> None:
        self.lines("#RUN shell=bash", ". false | true")
        self.run_jobs("-q", env={"SHELLOPTS": "noexec:pipefail"})
        self.assertEqual(self.states(), "!")


class WithRealPrograms(ShellCase):
    """What docs/recipes.md shows works with the real `module` and `conda`, where they are installed."""
    MODULES = "/usr/share/modules", "/usr/share/lmod/lmod"      # Environment Modules, Lmod: Debian's packages

    def shown(self, word: str) -> str:
        """The job with this word in the documents."""
        found, = re.findall(rf"^\. .*{word}.*", (ROOT / "docs/recipes.md").read_text("utf-8"), re.MULTILINE)
        return str(found)

    def run_shown(self, runner: str, job: str) -> Ended:
        """Run a job in bash; runner: what starts the runner, in a shell that knows none of these programs."""
        self.lines("#RUN shell=bash", job)
        names = "MODULESHOME", "BASH_ENV", "LMOD_CMD", "LMOD_PKG", "CONDA_EXE"
        clean = "env", *(f"-u{name}" for name in names), "MODULEPATH=" + str(self.dir / "modules")
        command = shlex.join(self.command(RUNMAKER, "--plain", "runs.txt"))
        return self.run_script(*clean, "bash", "-c", f"{runner} {command}", timeout=DEADLINE)

    def test_modules(self) -> None:
        home = next((home for home in self.MODULES if os.path.exists(f"{home}/init/bash")), None)
        if home is None:
            self.skipTest("neither environment-modules nor lmod is installed")
        self.script('#!/bin/sh\necho "$LOADEDMODULES $*"\n', "bin/simulate")
        self.script(f"#%Module\nprepend-path PATH {self.dir}/bin\n", "modules/gcc/12")
        job = self.shown("module load")
        for runner, started in ((f"source {home}/init/bash;", job),
                                ("", job.replace("source $MODULESHOME/init/bash", "source /etc/profile"))):
            with self.subTest(runner=runner):
                self.assertIn("source", started)
                self.assertIn(b"gcc/12 --seed 2\n", self.run_shown(runner, started).out)
                self.assertEqual(self.states(), "d")
                self.run_shown(runner, started.replace("gcc/12", "gcc/13"))
                self.assertEqual(self.states(), "!")

    def test_conda(self) -> None:
        conda = os.environ.get("CONDA_EXE") or shutil.which("conda")
        if not conda:
            self.skipTest("conda is not installed (CONDA_EXE is not set, and it is not on PATH)")
        sim = self.dir / "sim"
        self.script("", "sim/conda-meta/history")       # which makes it an environment, without any package
        self.script('#!/bin/sh\necho "$CONDA_PREFIX $*"\n', "sim/bin/simulate")
        base = os.path.dirname(os.path.dirname(os.path.realpath(conda)))
        job = self.shown("conda activate").replace("~/miniconda3", base)
        ended = self.run_shown("", job.replace("activate sim", f"activate {sim}"))
        self.assertIn(f"{sim} --seed 1\n".encode(), ended.out, ended.err)
        self.run_shown("", job.replace("activate sim", f"activate {sim}-not"))
        self.assertEqual(self.states(), "!")


class Missing(ShellCase):
    """A host that does not have the shell says so and gives the lines back; after three in a row it ends."""

    def assertNothingRan(self, states: str) -> None:
        self.assertEqual(self.states(), states)
        self.assertFalse(self.exists("never"))

    ENDS = b"3 starts in a row failed (no %s): starting no more jobs, waiting for 0 jobs\n"

    def test_the_line_stays_new_and_nothing_is_recorded_of_it(self) -> None:
        self.lines("#RUN shell=ksh9", ". touch never", "#RUN", ". true")
        ended = self.run_jobs("--name", "alice", "--slot-errors", "0", "--outdir", "out", "--joblog",
                              "joblog", stderr=subprocess.PIPE)
        said = b"runmaker4.py: runs.txt: line 2: cannot be started here: no ksh9 on alice\n"
        self.assertEqual((ended.code, ended.err.count(said)), (1, 1), ended.err)
        self.assertIn(self.ENDS % b"ksh9 on alice", ended.err)
        self.assertNothingRan(".d")
        for record in self.read("out/journal"), self.read("joblog"), ended.out:
            self.assertNotIn(b"touch never", record)
        self.assertEqual(self.view_failed(), b"")

    def view_failed(self) -> bytes:
        return self.run_script(RUNWAIT, "--failed", "--outdir", "out", "runs.txt").out

    def test_another_host_takes_the_lines_that_this_one_gave_back(self) -> None:
        self.script('#!/bin/sh\nexec bash "$@"\n', "bin/bash9")
        self.lines("#RUN shell=bash9", *[". [[ 1 ]] && echo $JOB_ID >> ran"] * 8)
        poor = self.run_jobs("-j4", "--name", "alice", stderr=subprocess.PIPE)
        self.assertEqual((poor.code, self.states()), (1, "." * 8), poor.err)
        self.assertEqual(self.run_jobs("-j4", env=self.path("bin")).code, 0)
        self.assertEqual(sorted(self.ran()), [*range(2, 10)])

    def test_starts_that_succeed_between_keep_the_host_at_work(self) -> None:
        """The walk passes the line once more after the others; then three in a row have failed."""
        self.lines("#RUN shell=ksh9", ". touch never", "#RUN", ". true", "#RUN shell=ksh9", ". touch never",
                   "#RUN", ". true", "#RUN shell=ksh9", ". touch never", "#RUN", ". true")
        ended = self.run_jobs("--slot-errors", "9", stderr=subprocess.PIPE)
        self.assertEqual(ended.code, 1, ended.err)
        self.assertNothingRan(".d.d.d")

    def test_a_path_that_is_none_and_one_that_is_no_program(self) -> None:
        self.write("#!/bin/sh\n", "bash")
        self.script("#!/nowhere/sh\n", "zsh")
        (self.dir / "closed").mkdir(mode=0)         # a folder of PATH that may not be searched hides nothing
        shells = "/nowhere/bash", "./bash", "./zsh", "runs.txt/bash", "ksh9"
        whys = ("no /nowhere/bash on alice", "./bash: permission denied", "./zsh: no such file or directory",
                "no runs.txt/bash on alice", "no ksh9 on alice")
        for shell, why in zip(shells, whys):
            self.lines(f"#RUN shell={shell}", ". touch never")
            ended = self.run_jobs("--name", "alice", "--slot-errors", "1", env=self.path("closed"),
                                  stderr=subprocess.PIPE, **bound_by_permissions(self))
            self.assertComplains(ended, "1 start in a row failed", why)
            self.assertNothingRan(".")

    def test_a_client_of_a_server_looks_on_its_own_host(self) -> None:
        self.script('#!/bin/sh\nexec bash "$@"\n', "bin/bash9")
        self.lines("#RUN shell=bash9 host=bob", ". [[ 1 ]] && echo $JOB_ID >> ran",
                   "#RUN shell=bash9 host=carol", ". touch never")
        server = self.start_server()
        self.assertEqual(self.run_client(server, "--name", "bob", env=self.path("bin")).code, 0)
        ended = self.run_client(server, "--name", "carol")
        self.assertIn(b"line 4: cannot be started here: no bash9 on carol\n", ended.err)
        self.assertEqual(ended.code, 1)
        self.assertNothingRan("d.")
        self.assertEqual(self.ran(), [2])

    def test_a_host_of_a_group_that_lacks_it_is_lost_to_the_group_of_which_nothing_begins(self) -> None:
        self.lines("#RUN together=pair host=alice,bob shell=ksh9", ". touch never", ". touch never")
        server = self.start_server("--exit-when-done")
        clients = [self.start_client(server, "--name", name) for name in ("alice", "bob")]
        for client in clients:
            self.finish(client)
        self.assertEqual((self.states(), self.exists("never")), ("ee", False))


# -- with --runner -------------------------------------------------------------------------------------------

class WithRunner(ShellCase):
    """--runner CMD runs CMD SHELL -c JOB; CMD itself is read by /bin/sh, as ever."""

    def test_the_wrapper_gets_the_shell_its_option_and_the_job(self) -> None:
        self.script(LOGGING_WRAPPER, "wrap")
        self.lines("#RUN shell=bash", ". [[ a == ? ]] && echo $JOB_ID >> ran",
                   "#RUN shell=bin/../bin/bash", ". true")
        (self.dir / "bin").mkdir()
        (self.dir / "bin/bash").symlink_to(str(shutil.which("bash")))
        self.assertLeft(self.start(RUNMAKER, "--runner", './wrap env "X=$JOB_ID"', "runs.txt"), 0, "dd")
        self.assertEqual(self.read("arguments.2").split(b"\0")[2:-2], [b"bash", b"-c"])
        self.assertEqual(self.read("arguments.4").split(b"\0")[1:-2], [b"X=4", b"bin/../bin/bash", b"-c"])
        self.assertEqual(self.ran(), [2])

    def test_through_ssh_it_is_looked_up_over_there(self) -> None:
        self.script(SSH, "bin/ssh")
        self.write("", "hosts")
        self.lines("#RUN shell=bash", ". [[ 'a  b' == a* ]] && echo \"it's  $JOB_ID\" >> heard",
                   "#RUN shell=ksh9", ". touch never")
        ended = self.run_jobs("--runner", "ssh bob", env=self.path("bin"), stderr=subprocess.PIPE)
        self.assertEqual((ended.code, self.states(), self.read("heard")), (1, "d!", b"it's  2\n"))
        self.assertFalse(self.exists("never"))
        self.assertIn(b"exit 127", ended.out)


class RunnerThatRunsNothing(RefusalCase):
    """A --runner that ends in -c would have a shell run /bin/sh, which is told nothing: all jobs are done."""
    NO = ("bash -c", "-c", "nice -n 19 /bin/bash -c", "bash -o pipefail -c", "bash -lc", "zsh -ic",
          "ssh bob bash -c", "bash -cl", "bash -c --", "bash -c -e", "bash --norc -c", "tcsh -fc")
    YES = "nice -n 19", "bash -l", "sync -async env", "ionice -c2", "env -i A=b", "sh -c 'exec \"$@\"' run"

    def test_is_refused_and_the_way_is_named(self) -> None:
        self.refuse_all([(RUNMAKER, "--runner", "bash -c", "runs.txt"),
                         (RUNCLIENT, "--runner", "bash -c", "localhost")], "--runner #RUN shell=bash")

    def test_in_whatever_form_and_others_are_not(self) -> None:
        for runner in self.NO:
            with self.subTest(runner=runner), self.assertRaises(argparse.ArgumentTypeError):
                runmaker4.check_runner_command(runner)
        for runner in self.YES:
            self.assertEqual(runmaker4.check_runner_command(runner), runner)
