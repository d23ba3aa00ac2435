"""Promise: a job of `#RUN slots=N` has N slots to itself, and small jobs never keep it waiting."""
import signal
import time

from tests.support.patches import SOON
from tests.support.processes import Process, wait_until
from tests.support.runs import LOOKS, UP
from tests.support.tcp import TcpCase

NAMES = 'echo "$JOB_ID $RUNMAKER4_SLOT $RUNMAKER4_SLOTS" >>names'
WAIT = f"{UP}; while [ ! -e go.$JOB_ID ]; do sleep 0.02; done"

# a runner writes down how many names of slots it knows
TELLING = """
import runmaker4
set_names = runmaker4.Slots.set_names
def set_names_and_tell(slots, names):
    set_names(slots, names)
    with open("slots", "w") as file:
        file.write(str(len(names)))
runmaker4.Slots.set_names = set_names_and_tell
"""


class BigJobs(TcpCase):
    """A runner, or a client, with several slots."""

    def let_go(self, *lines: int) -> None:
        for line in lines:
            self.write("", f"go.{line}")

    def names(self) -> list[str]:
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
        self.append("#RUN slots=2", f". {WAIT}", "#RUN", f". {WAIT}")
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

    def settled(self, runner: Process) -> bool:
        """Whether a runner sleeps: it has done what there was to do."""
        with open(f"/proc/{runner.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    def test_a_runner_with_fewer_slots_leaves_big_jobs_to_others_and_takes_what_is_below(self) -> None:
        self.write("#RUN slots=3\n. true\n#RUN\n. true\n")
        ended = self.run_jobs("-j2")
        self.assertEqual((ended.code, self.states()), (0, ".d"))
        self.assertIn(b"; in all 1 done, 1 new\n", ended.err)
        self.assertEqual((self.run_jobs("-j3").code, self.states()), (0, "dd"))

    def test_that_nobody_takes_a_big_job_is_said_after_a_while(self) -> None:
        self.write("#RUN slots=3\n. true\n")
        with open(self.dir / "told", "wb") as told:
            runner = self.start_patched("import runmaker4\nrunmaker4.Cursor.MIN_IDLE_SECONDS = 0.2",
                                        "--follow", "-j2", "runs.txt", stderr=told)
        wait_until(lambda: b": 1 new job waits: " in self.read("told"), what="that is said")
        self.assertEqual(self.stop(runner, signal.SIGHUP).code, 0)

    def test_a_stop_while_a_big_job_waits_leaves_it_new(self) -> None:
        self.write(f". {WAIT}\n#RUN slots=2\n. true\n")
        runner = self.start_jobs("-j2")
        self.assertEqual((self.stop(runner).code, self.states()), (143, "e."))

    def test_big_jobs_follow_each_other_at_once(self) -> None:
        self.before = self.write("#RUN slots=2\n" + ". true\n" * 40).read_bytes()
        runner = self.start_patched("import runmaker4\nrunmaker4.FileJobs.poll = property(lambda self: 60.0, "
                                    "lambda self, seconds: None)", "-q", "-j3", "runs.txt")
        self.assertEnded(self.finish(runner), 0, "d" * 40)

    def test_a_name_is_not_lost_where_calls_take_their_time(self) -> None:
        self.write("a\nb\nc\nd\n", "names.txt")
        self.before = self.write("#RUN slots=2\n" + ". true\n" * 100).read_bytes()
        slow = "import runmaker4\nrunmaker4.Mount.network = True"        # so a thread makes the calls
        runner = self.start_patched(slow, "-q", "--slots", "@names.txt", "runs.txt")
        self.assertEnded(self.finish(runner), 0, "d" * 100)

    def test_with_one_only_a_big_job_is_left_when_too_few_slots_have_not_had_their_job(self) -> None:
        self.write(". true\n#RUN slots=2\n. true\n")
        ended = self.run_jobs("-1", "-j2")
        self.assertEqual((ended.code, self.states()), (1, "d."))
        server = self.start_server()
        self.write(". true\n#RUN slots=2\n. true\n")
        client = self.run_client(server, "-1", "-j2")
        self.assertEqual((client.code, self.states()), (1, "d."))

    def test_a_big_job_follows_the_number_of_slots(self) -> None:
        self.write("a\nb\n", "names.txt")
        self.write("#RUN slots=3\n. true\n#RUN slots=2\n. true\n")
        runner = self.start_patched(TELLING, "-q", "--follow", "--slots", "@names.txt", "runs.txt")
        self.wait_states(".d")
        self.write("a\nb\nc\n", "names.txt")
        self.wait_states("dd")
        self.write("a\n", "names.txt")
        wait_until(lambda: self.read("slots") == b"1", what="it knows of one slot only")
        self.append("#RUN slots=2", ". true", "#RUN", ". true")
        self.wait_states("dd.d")                # it takes what is below
        self.assertEqual(self.stop(runner).code, 143)

    def test_a_client_that_waits_takes_a_big_job_when_there_are_names_for_it(self) -> None:
        self.write("a\n", "names.txt")
        self.write(". true\n#RUN slots=2\n. true\n")
        server = self.start_server("--exit-when-done", patch=LOOKS)
        client = self.start_client(server, "--slots", "@names.txt", "--follow")
        self.wait_states("d.")
        self.wait_looked()                      # it has asked for jobs for a
        self.write("a\nb\n", "names.txt")
        self.wait_states("dd")
        self.assertEqual(self.finish(client).code, 0)

    def test_what_does_not_fit_because_slots_are_out_of_service_counts_as_left(self) -> None:
        job = ". [ $RUNMAKER4_SLOT != a ] || { : >broken; exit 127; }; until [ -e broken ]; " \
              "do sleep 0.02; done\n"
        self.write(f"{job}{job}#RUN slots=2\n. true\n")
        options = "--slots", "a,b", "--slot-errors", "1"
        ended = self.finish(self.start_patched(SOON, *options, "runs.txt"))
        self.assertEqual((ended.code, sorted(self.states())), (1, ["!", ".", "d"]))
        self.assertIn(b"1 new", ended.err)

    def test_clients_do_as_runners_do(self) -> None:
        # each client has one until both are there
        job = f". until [ -e both ]; do sleep 0.02; done; {NAMES}\n"
        self.write(f"{job}#RUN slots=3\n{job}#RUN\n{job}#RUN slots=2\n{job}{job}")
        server = self.start_server("--exit-when-done")
        clients = [self.start_client(server, f"-j{number}", "--name", f"c{number}") for number in (2, 3)]
        self.wait_clients(server, 2)            # who came after all was done would wait for another server
        self.write("", "both")
        for program in (*clients, server):
            self.assertEqual(self.finish(program).code, 0)
        self.assertEqual(self.states(), "ddddd")
        self.assertEqual([len(line.split()[2].split(",")) for line in self.names()], [1, 3, 1, 2, 2])

    def test_a_client_that_has_given_a_big_job_back_does_not_ask_for_it_until_a_slot_is_free(self) -> None:
        self.write(". true\n" * 40 + f". {WAIT}\n" * 7 + f"#RUN slots=2\n. {NAMES}\n")
        busy = range(41, 48)
        client = self.start_client(self.start_server(), "-j8", up=busy)
        claimed = [time.monotonic()]

        def is_left_alone() -> bool:
            if self.states().endswith("r"):
                claimed[0] = time.monotonic()
            return time.monotonic() - claimed[0] > 1.0
        wait_until(is_left_alone, what="the line stays new")
        self.let_go(*busy)
        self.assertEqual((self.finish(client).code, self.states()), (0, "d" * 48))
