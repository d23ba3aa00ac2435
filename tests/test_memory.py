"""Promise: what the jobs of a runner are promised by `#RUN memory=` never is more than the runner has."""
import unittest

import runmaker4
from tests.support import RunCase

GIB = 1 << 30


class Sizes(unittest.TestCase):
    """Sizes, as directives and options give them."""

    def test_a_size_is_a_whole_or_a_fraction_with_a_unit_of_a_power_of_1024(self) -> None:
        for text, size in (("1K", 1024), ("512M", GIB // 2), ("4G", 4 * GIB), ("1.5G", 3 * GIB // 2),
                           (".5T", 512 * GIB)):
            with self.subTest(text):
                self.assertEqual(runmaker4.memory_size(text), size)

    def test_sizes_are_shown_short(self) -> None:
        for size, text in ((0, "0K"), (512, "0.5K"), (4 * GIB, "4G"), (3 * GIB // 2, "1.5G"),
                           (GIB - 1, "1024M"), (5.1 * GIB, "5.1G"), (4096 * GIB, "4T")):
            with self.subTest(text):
                self.assertEqual(runmaker4.show_size(size), text)

    def test_a_list_has_growing_sizes(self) -> None:
        directive = runmaker4.parse_settings(b"RUN memory=4G,16G,64G slots=2")
        self.assertEqual(directive.settings.needs, runmaker4.Resources(2, 4 * GIB))
        more = runmaker4.Resources(2, 16 * GIB), runmaker4.Resources(2, 64 * GIB)
        self.assertEqual(directive.settings.more, more)


class Directives(RunCase):
    """What a settings directive may say of memory."""

    def test_a_memory_setting_that_makes_no_sense_is_refused(self) -> None:
        for setting in (
            "memory=4",
            "memory=4g",
            "memory=4GB",
            "memory=0G",
            "memory=-1G",
            "memory=",
            "memory=4G,",
            "memory=4G,4G",
            "memory=16G,4G",
            "memory=.G",
            "memory=999999999T",
            "memory=4G together=g host=a",
        ):
            with self.subTest(setting):
                self.write(f"#RUN {setting}\n. true\n")
                self.assertRefused(self.run_jobs(), "line 1: memory=")

    def test_a_runner_without_so_much_leaves_it_to_others_and_takes_what_is_below(self) -> None:
        for needs, shown in (("memory=900000T", "900000T of memory"),
                             ("memory=900000T slots=2", "2 slots and 900000T of memory")):
            with self.subTest(needs):
                self.write(f"#RUN {needs}\n. true\n#RUN\n. true\n")
                ended = self.run_jobs("-j2")
                self.assertEqual((ended.code, self.states()), (0, ".d"))
                text = f"1 new, for a runner with {shown} or more (#RUN in line 1)\n"
                self.assertIn(text.encode(), ended.err)

    def test_dry_runs_leave_it_out(self) -> None:
        self.write("#RUN memory=900000T\n. true\n#RUN\n. false\n")
        self.assertEqual(self.run_jobs("--dry-run").out, b"4 . false\n")


if __name__ == "__main__":
    unittest.main()
