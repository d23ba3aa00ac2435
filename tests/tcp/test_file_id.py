"""Promise: a client hands jobs and results to no server but that of their file, whoever answers there."""
import os
import shutil
import subprocess

from tests.support.losses import JOB, LONG, LossCase
from tests.support.peer import Peer
from tests.support.processes import alive, wait_until
from tests.support.tcp import Program, Server
from tests.support.tcp_patches import EAGER

NOBODY = 65534                              # some user other than root


class OtherServers(LossCase):
    """A client with a job of runs.txt comes to the server of another file of the same user."""
    WAITING = "the server has another file", "waiting for the server of ", "runs.txt; 1 job not handed in yet"

    def serve_other(self, port: int = 0, file: str = "other.txt") -> Server:
        return self.start_server("--grace", LONG, "--port", port, file=file)

    def assert_kept_from(self, other: Server, client: Program) -> None:
        """The client says once that it waits, keeps its job, and tells the other server nothing."""
        self.wait_said(client, *self.WAITING)
        self.assertFalse(self.connected(other))
        self.assertNotIn(b"client bob", other.err)
        self.assertNotIn(b"connected again", client.err)
        self.assertTrue(alive(self.pids()[0]))

    def assert_handed_in(self, client: Program) -> None:
        """The only run of the job has the result in runs.txt; the client has ended well, and said little."""
        self.assert_each_ran_once(client, "d")
        self.assertEqual(client.err.count(b"waiting for"), 1, client.err)
        self.assertFalse(self.exists("never"))

    def test_a_result_of_a_job_that_ended_meanwhile_is_kept_for_its_own_server(self) -> None:
        server, client = self.serve_bob(JOB)
        server.kill()
        self.write(". touch never\n", "other.txt")
        other = self.serve_other(server.port)
        self.assert_kept_from(other, client)
        self.end_jobs(client)
        self.assertEqual((self.states(), self.states("other.txt")), ("r", "."))
        other.kill()
        self.serve_again(server.port)
        self.assert_handed_in(client)

    def test_the_same_commands_in_a_file_of_the_same_name_in_a_copy_of_its_directory(self) -> None:
        """Nothing but the id tells these two apart."""
        (self.dir / "one").mkdir()
        self.write(f". {JOB}\n", "one/runs.txt")
        server = self.start_server("--grace", LONG, "--outdir", "out", file="one/runs.txt")
        client = self.connect(server)
        subprocess.run(["cp", "-a", "one", "two"], cwd=self.dir, check=True)
        (self.dir / "two" / ".runs.txt.lock").unlink()      # a copy of it is refused
        server.kill()
        other = self.serve_other(server.port, file="two/runs.txt")
        self.assert_kept_from(other, client)
        self.end_jobs(client)
        self.assertEqual(self.states("one/runs.txt"), "r")
        self.assertIn(self.states("two/runs.txt"), ("r", "e"))
        other.kill()
        self.start_server("--port", server.port, file="one/runs.txt")
        self.assertEqual(self.finish(client).code, 0, client.err)
        self.assertEqual((self.states("one/runs.txt"), len(self.pids())), ("d", 1))
        self.assertIn(self.states("two/runs.txt"), ("r", "e"))

    def test_a_man_in_the_middle_without_the_token_who_leads_it_to_another_port(self) -> None:
        server = self.serve(JOB)
        self.write(". touch never\n", "other.txt")
        other = self.serve_other()
        proxy, client = self.connect_by_proxy(server)
        proxy.target = other.port
        proxy.cut()
        proxy.mend()
        self.assert_kept_from(other, client)
        self.end_jobs(client)
        proxy.target = server.port
        self.assert_handed_in(client)

    # It is three quarters of an hour later once the file `later` is there
    LATER = f"""{EAGER}
import os
boottime = runmaker4.boottime
runmaker4.boottime = lambda: boottime() + 2700 * os.path.exists("later")
"""

    def test_it_waits_for_as_long_as_it_was_told(self) -> None:
        server = self.serve(JOB)
        self.write(". touch never\n", "other.txt")
        other = self.serve_other()
        self.PATCH = self.LATER
        proxy, client = self.connect_by_proxy(server, "--give-up=30m")
        proxy.target = other.port
        proxy.cut()
        proxy.mend()
        self.wait_said(client, *self.WAITING)
        self.write("", "later")
        self.wait_said(client, "no server for 45m")
        self.assertEqual(self.finish(client).code, 1)
        self.assertEqual((self.states(), self.states("other.txt")), ("r", "."))
        self.assertNotIn(b"client bob", other.err)
        self.assertNoJobLeft()

    def test_a_client_whose_results_are_all_acknowledged_goes_on_with_the_other_file(self) -> None:
        server = self.serve("true")
        client = self.connect(server, "--follow", up=())
        self.wait_states("d")
        wait_until(lambda: client.out.count(b"): exit ") == 1, what="it has seen its job end")
        self.stop(server)
        self.write(". touch ran\n", "other.txt")
        self.serve_other(server.port)
        self.wait_said(client, "connected again; serving another file: other.txt")
        self.wait_states("d", name="other.txt")


class FileId(LossCase):
    """The id of a job file is a hash of its path."""

    def id_of(self, file: str = "runs.txt") -> str:
        """The id that a server of this file proves to its clients."""
        server = self.start_server(file=file)
        with Peer.of(server.port, server.token) as peer:
            found = peer.prove().channel.certified[64:].decode()
        self.stop(server)
        self.assertRegex(found, "^[0-9a-f]{32}$")
        return found

    def test_the_next_server_has_the_same_whatever_was_done_to_the_lines(self) -> None:
        self.jobs("true")
        first = self.id_of()
        self.append(". another")
        self.assertEqual(self.id_of(), first)
        os.replace(self.write(". an editor's copy\n", "copy"), self.dir / "runs.txt")
        self.assertEqual(self.id_of(str(self.dir / "runs.txt")), first)
        (self.dir / "elsewhere").symlink_to(".")
        self.assertEqual(self.id_of("elsewhere/runs.txt"), first)

    def test_every_other_path_has_another_one(self) -> None:
        self.jobs("true")
        found = [self.id_of()]
        shutil.copy(self.dir / "runs.txt", self.dir / "copy.txt")
        found.append(self.id_of("copy.txt"))
        (self.dir / "copy.txt").rename(self.dir / "renamed.txt")
        found.append(self.id_of("renamed.txt"))
        (self.dir / "one").mkdir()
        shutil.copy(self.dir / "runs.txt", self.dir / "one" / "runs.txt")
        found.append(self.id_of("one/runs.txt"))
        (self.dir / "one").rename(self.dir / "two")
        found.append(self.id_of("two/runs.txt"))
        self.assertEqual(len(set(found)), len(found), found)
