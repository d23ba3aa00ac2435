"""tests/reaches.py finds who reaches into whose attributes."""
import subprocess
import sys
import unittest

from tests.reaches import Program
from tests.support import ROOT

TEXT = '''
class Job:
    def __init__(self, number):
        self.number = number
        self.job_lock = None
        self.once = False

    def begin(self):
        self.once = True

class Later(Job):
    def again(self):
        return self.number

class Runner:
    def __init__(self, job: Job, options):
        self.job = job
        self.options = options

    def run(self):
        self.job.begin()
        self.job.job_lock = 7
        return self.options.follow

def names(jobs: list[Job]):
    return [job.number for job in jobs]
'''


class Reaches(unittest.TestCase):

    def test_reads_and_writes_from_outside_count_and_calls_and_derived_classes_do_not(self) -> None:
        found = {name: dict(attributes) for name, attributes in Program({"a.py": TEXT}).worst()}
        self.assertEqual(found, {"Job": {"job_lock": 1, "number": 1}, "Namespace": {"follow": 1}})

    def test_what_only_its_class_uses_could_be_private(self) -> None:
        found = set(Program({"a.py": TEXT}).could_be_private())
        self.assertLessEqual({("Job", "once"), ("Runner", "job")}, found)
        self.assertFalse({("Job", "job_lock"), ("Job", "number"), ("Job", "begin")} & found)

    def test_classes_of_one_name_in_two_files_are_two(self) -> None:
        other = "class Job:\n    mark: int = 0\n\ndef f(job: Job):\n    job.mark = 1\n"
        found = dict(Program({"a.py": TEXT, "b.py": other}).worst())
        self.assertEqual(dict(found["b.Job"]), {"mark": 1})
        self.assertNotIn("mark", found["Job"])

    def test_it_measures_the_scripts(self) -> None:
        scripts = sorted(path.name for path in ROOT.glob("*.py"))
        done = subprocess.run([sys.executable, "-m", "tests.reaches", *scripts], check=False, cwd=ROOT,
                              text=True, capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(len(done.stdout.splitlines()), 11)


if __name__ == "__main__":
    unittest.main()
