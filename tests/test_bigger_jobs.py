"""Promise: a job of `#RUN slots=N` has N slots of its runner to itself, and small jobs never keep it waiting."""
import signal

from tests.support import RUNMAKER, UP, wait_until
from tests.tcp import TcpCase

NAMES = 'echo "$JOB_ID $RUNMAKER4_SLOT $RUNMAKER4_SLOTS" >>names'
WAIT = f"{UP}; while [ ! -e go.$JOB_ID ]; do sleep 0.02; done"


class BigJobs(TcpCase):
    """A runner, or a client, with several slots."""

    def let_go(self, *lines: int) -> None:
        for line in lines:
            self.write("", f"go.{line}")

    def names(self) -> list:
        return sorted(self.read("names").decode().splitlines())

    def test_a_job_has_as_many_slots_as_it_says_and_knows_their_names(self) -> None:
        self.write(f". {NAMES}\n#RUN slots=3\n. {NAMES}\n#RUN slots=2\n. {NAMES}\n")
        self.assertEqual(self.run_jobs("--slots", "a,b,c").code, 0)
        small, big, pair = (line.split() for line in self.names())
        self.assertEqual(small[1], small[2])
        self.assertEqual((big[2].split(",")[0], sorted(big[2].split(","))), (big[1], ["a", "b", "c"]))
        self.assertEqual((pair[2].split(",")[0], len(set(pair[2].split(",")))), (pair[1], 2))

    def test_a_big_job_waits_until_enough_slots_are_free_and_nothing_below_it_begins_meanwhile(self) -> None:
        self.jobs(WAIT, WAIT, WAIT)
        self.before = self.write(self.read() + f"#RUN slots=2\n. {WAIT}\n#RUN\n. {WAIT}\n".encode()).read_bytes()
        runner = self.start_jobs("-j3", up=[1, 2, 3])
        self.let_go(1)
        self.wait_states("drr..")
        wait_until(lambda: self.settled(runner), what="the runner has looked again")
        self.assertEqual(self.states(), "drr..")
        self.let_go(2)
        self.wait_up(5, runner=runner)
        self.assertEqual(self.states(), "ddrr.")
        self.let_go(3)
        self.wait_up(7, runner=runner)          # beside the big one: one slot is left
        self.let_go(5, 7)
        self.assertEnded(self.finish(runner), 0, "ddddd")

    def settled(self, runner) -> bool:
        """Whether a runner sleeps: it has done what there was to do."""
        with open(f"/proc/{runner.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    def test_a_runner_with_fewer_slots_leaves_big_jobs_to_others_and_takes_what_is_below(self) -> None:
        self.write("#RUN slots=3\n. true\n#RUN\n. true\n")
        ended = self.run_jobs("-j2")
        self.assertEqual((ended.code, self.states()), (0, ".d"))
        self.assertIn(b"from line 2 on", ended.err)
        self.assertEqual((self.run_jobs("-j3").code, self.states()), (0, "dd"))

    def test_that_nobody_takes_a_big_job_is_said_after_a_while(self) -> None:
        self.write(f"#RUN slots=3\n. true\n#RUN\n. {WAIT}\n")
        runner = self.start_patched("import runmaker4\nrunmaker4.StallReporter.PATIENCE = 0.2", "-j2", "runs.txt")
        self.wait_up(4, runner=runner)
        self.let_go(4)
        ended = self.finish(runner)
        self.assertIn(b"line 2", ended.err)

    def test_a_stop_while_a_big_job_waits_leaves_it_new(self) -> None:
        self.write(f". {WAIT}\n#RUN slots=2\n. true\n")
        runner = self.start_jobs("-j2")
        runner.send_signal(signal.SIGTERM)
        self.assertEqual((self.finish(runner).code, self.states()), (143, "e."))

    def test_two_runners_that_share_names_never_use_one_at_once(self) -> None:
        self.write("a\nb\nc\n", "names.txt")
        use = ('for n in $(echo $RUNMAKER4_SLOTS | tr , " "); do mkdir use.$n || echo $n >>twice; done; sleep 0.05; '
               'for n in $(echo $RUNMAKER4_SLOTS | tr , " "); do rmdir use.$n; done')
        self.write(f". {use}\n. {use}\n#RUN slots=2\n. {use}\n#RUN slots=3\n. {use}\n#RUN\n. {use}\n" * 3)
        runners = [self.start(RUNMAKER, "-q", "--slots", "@names.txt", "runs.txt") for _ in range(2)]
        for runner in runners:
            self.assertEqual(self.finish(runner).code, 0)
        self.assertEqual((self.states(), self.exists("twice")), ("d" * 15, False))

    def test_clients_do_as_runners_do(self) -> None:
        self.write(f". {NAMES}\n#RUN slots=3\n. {NAMES}\n#RUN\n. {NAMES}\n#RUN slots=2\n. {NAMES}\n. {NAMES}\n")
        server = self.start_server("--exit-when-done")
        clients = [self.start_client(server, f"-j{number}", "--name", f"c{number}") for number in (2, 3)]
        for program in (*clients, server):
            self.assertEqual(self.finish(program).code, 0)
        self.assertEqual(self.states(), "ddddd")
        self.assertEqual([len(line.split()[2].split(",")) for line in self.names()], [1, 3, 1, 2, 2])

    def test_a_slots_setting_that_makes_no_sense_is_refused(self) -> None:
        for setting in ("slots=0", "slots=x", "slots=", "slots=2 together=g host=a"):
            with self.subTest(setting):
                self.write(f"#RUN {setting}\n. true\n")
                self.assertRefused(self.run_jobs(), "line 1: ")
