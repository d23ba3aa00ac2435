"""Promise: the reason of a failure is the line of output that reports it; equal reasons count as one."""
import json
import re
from typing import Any

from tests.support.journal import end
from tests.support.telling import TellingCase

MPI = """\
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD
with errorcode 1.

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
--------------------------------------------------------------------------
"""
GROMACS = """\
-------------------------------------------------------
Program:     gmx mdrun, version 2022.5
Source file: src/commandline/cmdlineparser.cpp (line 271)

Error in user input:
Invalid command-line options
    Unknown command-line option -nstep

For more information and tips for troubleshooting, please check the
website at http://www.example.org/Errors
-------------------------------------------------------
"""
USER_ERROR = "Error in user input: Invalid command-line options Unknown command-line option -nstep"
# stderr, stdout, and the reason, as programs of these kinds write them
FAILURES = {
    "R": ("Error in library(DESeq2) : there is no package called 'DESeq2'\nExecution halted\n", "",
          "Error in library(DESeq2) : there is no package called 'DESeq2'"),
    "R, in two lines": ("Error in solve.default(a) : \n  Lapack routine dgesv: system is exactly singular\n"
                        "Calls: solve -> solve.default\nExecution halted\n", "solving\n",
                        "Error in solve.default(a) : Lapack routine dgesv: system is exactly singular"),
    "Python": ("Traceback (most recent call last):\n  File \"fit.py\", line 5, in load\n    f(x)\n"
               "FileNotFoundError: run17.json\n\nThe above exception was the direct cause:\n\n"
               "Traceback (most recent call last):\n  File \"fit.py\", line 8, in <module>\n    load()\n"
               "ConfigError: no configuration for this run\nsys:1: ResourceWarning: unclosed file\n", "",
               "ConfigError: no configuration for this run"),
    "a log": ("12:00 INFO reading\n12:01 ERROR sample S05: read group lacks\n12:01 INFO total 12 s\n", "",
              "12:01 ERROR sample S05: read group lacks"),
    "node": ("a.js:3\n  throw new Error('x')\n  ^\n\nTypeError: Cannot read properties of undefined\n"
             "    at Object.<anonymous> (a.js:3:41)\n\nNode.js v20.20.2\n", "",
             "TypeError: Cannot read properties of undefined"),
    "compiler": ("a.c: In function 'f':\na.c:2:22: error: 'y' undeclared\n    2 | return y;\n      |    ^\n"
                 "a.c:9:1: error: expected ';'\n      |  ^\n2 errors generated.\n", "",
                 "a.c:2:22: error: 'y' undeclared"),
    "MPI": (MPI, "lattice 10.2\n %%%\n     Error in routine readpp (1):\n     file Si.UPF not found\n %%%%\n",
            "Error in routine readpp (1): file Si.UPF not found"),
    "a banner": (GROMACS, "", USER_ERROR),
    "java": ('Exception in thread "main" java.lang.RuntimeException: no config\n\tat A.main(A.java:1)\n', "",
             'Exception in thread "main" java.lang.RuntimeException: no config'),
    "colours": ("\x1b[31m[ERRO]\x1b[0m unexpected EOF\nusage: x\n", "", "[ERRO] unexpected EOF"),
    "wrapper": ("sort: unrecognized option '--nosuch'\nTraceback (most recent call last):\n  File \"a.py\"\n"
                "subprocess.CalledProcessError: Command 'sort' returned non-zero exit status 2.\n", "",
                "sort: unrecognized option '--nosuch'"),
    "another language": ("cp: das ist nicht möglich\n", "", "cp: das ist nicht möglich"),
    "dashes": ("the mesh is not closed\n----------\n", "", "the mesh is not closed"),
    # words of errors that report none: the last line is the reason
    "a fit": ("", "Estimate Std. Error t\nmean squared error: 0.03\nmissing values: 3\nend\n", "end"),
    "a test": ("test_error ... ok\nINFO 0 failed, 20 passed\n0 errors\nno errors found\nend\n", "", "end"),
}


class Reasons(TellingCase):

    def write_failures(self, *runs: tuple[str, str], **fields: Any) -> None:
        """Write a file with a failed line for each, command and stderr, and their journal."""
        self.write("".join(f"! {command}\n" for command, _ in runs))
        fields = {"state": "!", "exit": 1, "files": [], **fields}
        self.journal(*(end(line, line, command, stderr=stderr, **fields)
                       for line, (command, stderr) in enumerate(runs, 1)))

    def counted(self) -> list[str]:
        """The last part of --failed: reasons and their lines."""
        told = self.told("--failed", "--outdir", "out", "runs.txt")
        return [re.sub(" on node1", "", line.strip()) for line in told.rpartition("\n\n")[2].splitlines()]

    def reasons(self) -> list[str]:
        told = json.loads(self.told("--failed", "--json", "--outdir", "out", "runs.txt"))
        return [run["reason"] for run in told["runs"]]

    def test_it_is_the_line_that_reports_the_error(self) -> None:
        self.write("".join(f"! {name}\n" for name in FAILURES))
        self.journal(*(end(line, line, name, state="!", exit=1, files=[], stderr=stderr, stdout=stdout)
                       for line, (name, (stderr, stdout, _)) in enumerate(FAILURES.items(), 1)))
        wanted = {name: reason for name, (_, _, reason) in FAILURES.items()}
        self.assertEqual(dict(zip(FAILURES, self.reasons())), wanted)

    def test_it_stands_above_the_last_lines_that_do_not_have_it(self) -> None:
        self.write_failures(("a", GROMACS), ("b", "1\n2\nerror: 3 is odd\n"))
        told = self.told("--failed", "--outdir", "out", "runs.txt")
        self.assertIn(f"\n  | {USER_ERROR}\n  | For more information and tips", told)
        self.assertTrue(told.endswith("\n  | 1\n  | 2\n  | error: 3 is odd\n"), told)

    def test_output_in_files_is_read_too(self) -> None:
        self.write("! a\n")
        self.journal(end(1, 1, "a", state="!", files=["1.out", "1.err"]))
        self.write("no file given\n" * 3 + "Error: no such table\n" + "at x\n" * 9, "out/1.out")
        self.write(MPI, "out/1.err")
        self.assertEqual(self.reasons(), ["Error: no such table"])

    def test_names_and_numbers_of_the_command_do_not_split_what_is_one(self) -> None:
        self.write_failures(*((f"sort {name}.bam", f'sort: failed to open "data/{name}.bam": No such file\n')
                              for name in "ab"),
                  ("fit 7", "step 812: no convergence\n"), ("fit 8", "step 90: no convergence\n"))
        self.assertEqual(self.counted(), ['2  sort: failed to open "…": No such file  (lines 1, 2)',
                                          "2  step …: no convergence  (lines 3, 4)"])

    def test_different_reasons_stay_apart(self) -> None:
        self.write_failures(("a", "Error: no package 'x'\nhalted\n"), ("b", "Error: no memory\nhalted\n"),
                  ("c", "Error: no memory\nhalted\n"))
        self.assertEqual(self.counted(), ["2  Error: no memory  (lines 2, 3)",
                                          "1  Error: no package 'x'  (line 1)"])

    def test_what_has_no_word_comes_with_the_exit_status(self) -> None:
        self.write_failures(("a", "11\n"), ("b", "12\n"))
        self.assertEqual(self.counted(), ["2  exit 1: …  (lines 1, 2)"])
        self.assertEqual(self.reasons(), ["exit 1: 11", "exit 1: 12"])

    def test_a_program_that_aborts_says_why(self) -> None:
        words = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
        self.write_failures(("a", words), ("b", "Assertion `n > 0' failed.\n"), exit=0, signal=6)
        self.assertEqual(self.reasons(), ["what():  std::bad_alloc", "Assertion `n > 0' failed."])

    def test_a_cause_and_a_signal_of_another_come_before_words(self) -> None:
        self.write_failures(("a", "Error: x\n"), exit=0, signal=9)
        self.assertEqual(self.reasons(), ["signal 9 (SIGKILL)"])
        self.write_failures(("a", "Error: x\n"), cause="timeout", seconds=60)
        self.assertEqual(self.reasons(), ["timeout after 1m 00s"])
