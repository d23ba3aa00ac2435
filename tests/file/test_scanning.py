"""Promise: a scan finds each line once, however the file falls into chunks or grows, in little memory."""
import os
import random
from collections import Counter
from typing import Optional
from unittest import mock

import runmaker4
from tests.support.job_file import BOM, FileCase, job_file, parse


class Scans(FileCase):
    """A scan finds what a parser of the whole file finds, however the file falls into chunks."""

    def scan(self, data: bytes, sizes: tuple[int, int], states: Optional[bytes]) -> list[runmaker4.Line]:
        self.path.write_bytes(data)
        with (
            mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=sizes[0], MAX_CHUNK_SIZE=sizes[1]),
            open(self.path, "rb") as file,
        ):
            reader = runmaker4.Reader(file.fileno())
            start = runmaker4.first_line_offset(reader)
            return list(runmaker4.Scan(reader, start, states, counted=Counter()))

    def test_random_files_in_chunks_of_all_sizes(self) -> None:
        random_ = random.Random(6)
        for _ in range(400):
            data = job_file(random_)
            sizes = random_.choice([(1, 1), (1, 8), (2, 2), (3, 3), (7, 64), (50, 400), (4096, 1 << 20)])
            states = random_.choice([None, b".", b"r", b".r", b".r!e", b"x"])
            expected = [job for job in parse(data) if states is None or job[1] in states]
            found = self.scan(data, sizes, states)
            told = [(line.number, line.state, line.command) for line in found]
            self.assertEqual(told, expected, (data, sizes, states))
            for line in found:
                stop = line.offset + 1 + len(line.text)
                self.assertEqual(data[line.offset:stop], line.state + line.text)
                self.assertEqual((line.is_complete, data[stop:stop + 1]), (True, b"\n"))

    def test_a_scan_goes_on_when_the_file_has_grown(self) -> None:
        random_ = random.Random(7)
        for _ in range(50):
            data = job_file(random_, 20)
            mark = len(BOM) if data.startswith(BOM) else 0
            found: list[runmaker4.Line] = []
            with open(self.path, "wb", buffering=0) as writer, open(self.path, "rb") as file:
                writer.write(data[:mark])
                reader = runmaker4.Reader(file.fileno())
                scan = runmaker4.Scan(reader, runmaker4.first_line_offset(reader))
                for line in data[mark:].splitlines(keepends=True):
                    writer.write(line)
                    found += list(scan)
            self.assertEqual([(line.number, line.state, line.command) for line in found], parse(data))

    def test_lines_are_counted_as_they_are_found(self) -> None:
        random_ = random.Random(8)
        for _ in range(400):
            data = job_file(random_)[:-random_.randrange(1, 3)]
            self.path.write_bytes(data)
            file = runmaker4.JobReader(str(self.path), say=self.fail)
            file.open_files()
            begins = [0, *(at + 1 for at, byte in enumerate(data) if byte == 10)]
            for command in b"c", b"cc", b"c" * 300, b"":
                count = sum(line.state == b"r" for line in file.lines_by_command([command])[command])
                near = random_.choice(begins)
                found = [file._has_running_lines(command, count + more, near) for more in (0, 1)]
                self.assertEqual(found, [True, False], (data, command, near))
            file.close_files()


class InMemory(FileCase):
    """A scan holds one chunk of the file."""

    def test_a_scan_that_wants_every_line_does_not_gather_the_file(self) -> None:
        self.path.write_bytes(b". echo job\n" * 20_000)
        with mock.patch.multiple(runmaker4.Scan, MIN_CHUNK_SIZE=512, MAX_CHUNK_SIZE=4096):
            scan = runmaker4.Scan(runmaker4.Reader(self.open()), 0)
            self.assertLess(max(len(scan._buffer) for _ in scan), 3 * 4096)


class Snapshots(FileCase):
    """A look at a file counts each job once, whatever happens meanwhile."""

    def test_jobs_that_change_their_state_are_counted_once(self) -> None:
        self.path.write_bytes(b". a\nd b\n")
        writer = self.open(os.O_RDWR)
        self.assertTrue(runmaker4.lock(writer, 0))
        random_, read = random.Random(16), os.pread

        def change_and_read(*args: int) -> bytes:
            os.pwrite(writer, random_.choice([b".", b"r", b"d"]), 0)
            return read(*args)

        jobs = runmaker4.JobReader(str(self.path), say=self.fail)
        with mock.patch.object(os, "pread", change_and_read):
            totals = {runmaker4.count_states(jobs.snapshot()).all for _ in range(100)}
        self.assertEqual(totals, {2})
