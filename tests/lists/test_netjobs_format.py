"""runset4.py --add-tests takes NetJobs' configurations as its documentation and its parser have them."""
import re
from collections.abc import Iterator

import runmaker4
import runset4
from tests.support.case import Case
from tests.support.scripts import RUNSET
from tests.support.values import Text, as_bytes, present

# What the sample_config.txt that comes with NetJobs says, in other words; like that it has no newline at its
# end
SAMPLE = """\
first:
-generaltimeout: none
-minhosts: 0
localhost: "echo 'good morning'"
-timeout: 1s
end

second:
-generaltimeout: 2s
-minhosts: 0
localhost: "python sleep10.py"
localhost: "echo 'good morning'"
localhost: "python sleep1.py"
localhost: "python sleep5.py"
localhost: "echo 'good night'"
end"""
SAMPLE_JOBS = """\
#RUN barrier
# test first
#RUN together=first host=localhost timeout=1s min-hosts=0
. echo 'good morning'
#RUN barrier
# test second
#RUN together=second host=localhost timeout=2s min-hosts=0
. python sleep10.py
. echo 'good morning'
. python sleep1.py
. python sleep5.py
. echo 'good night'
#RUN
"""


class FormatCase(Case):

    def lines(self, config: Text) -> list[bytes]:
        """What a configuration becomes, without the frame of each test and the line at the end."""
        with runset4.open_source(str(self.write(config, "config"))) as source:
            text = b"".join(runset4.lines_of_tests(source))
        lines = text.split(b"\n")
        self.assertEqual(lines[-2:], [b"#RUN", b""])
        self.assertIsNone(self.malformed(lines[:-2]))
        return [line for line in lines[:-2] if line != b"#RUN barrier" and not line.startswith(b"# ")]

    def malformed(self, lines: list[bytes]) -> object:
        """The first directive that a runner would refuse."""
        for line in lines:
            if line.startswith(b"#RUN"):
                try:
                    runmaker4.parse_directive(line[1:])
                except ValueError as error:
                    return line, error
        return None

    def assertBecomes(self, config: Text, *lines: Text) -> None:
        self.assertEqual(self.lines(config), [as_bytes(line) for line in lines])

    def assertRefusedAt(self, configs: dict[Text, int]) -> None:
        """Each configuration is refused, in one line that names this line of it; 0: none."""
        for config, number in configs.items():
            with self.subTest(config=config[:200]):
                path = str(self.write(config, "config"))
                with self.assertRaises(runmaker4.UsageError) as raised, runset4.open_source(path) as source:
                    list(runset4.lines_of_tests(source))
                named = re.match(re.escape(path) + r": (?:line (\d+): )?[^\n]*\Z", str(raised.exception))
                self.assertEqual(int(present(named)[1] or 0), number, raised.exception)


class Script(FormatCase):
    """The option itself."""

    def test_a_configuration_is_appended_as_directives_and_jobs(self) -> None:
        self.write(SAMPLE, "config")
        for expected in SAMPLE_JOBS, 2 * SAMPLE_JOBS:
            ended = self.run_script(RUNSET, "-q", "runs.txt", "--add-tests", "config")
            self.assertEqual((ended.code, ended.out, ended.err), (0, b"", b""))
            self.assertEqual(self.read(), as_bytes(expected))

    def test_a_bad_configuration_is_refused_whole(self) -> None:
        self.write("\n# c\n", "none")
        self.write(SAMPLE + "\n\nthird:\nlocalhost: echo\n-timeout: 5\nend\n", "bad")
        calls = {"missing": "missing: ", ".": "directory", "bad": "bad: line 20: ",
                 "none": "no jobs (nothing to add)", "/dev/null": "no jobs (nothing to add)"}
        for call, ended in self.run_all((RUNSET, "runs.txt", "--add-tests", name) for name in calls):
            with self.subTest(call=call):
                self.assertRefused(ended, f"{RUNSET}: ", calls[str(call[-1])])
                self.assertFalse((self.dir / "runs.txt").exists())


class Reading(FormatCase):
    """What NetJobs reads."""

    def test_space_around_everything_comments_and_windows_lines(self) -> None:
        self.assertBecomes(b"\xef\xbb\xbf# c\r\n\r\n  t  :  \r\n\t-generaltimeout  :  5  m \r\n # c\r\n"
                           b"-minhosts:2\r\n  a.b-c_D9\t :   \" echo  a \" \r\n\r\n\t-timeout :7h\r\n"
                           b"b:echo b # c\r\n  end  \r\n",
                           "#RUN together=t host=a.b-c_D9 timeout=7h min-hosts=2", ".  echo  a ",
                           "#RUN together=t host=b timeout=5m min-hosts=2", ". echo b # c")

    def test_lines_of_a_target_stand_together_in_their_order(self) -> None:
        self.assertBecomes("t:\n-minhosts: all\nb: 1\na: 2\nb: 3\na: 4\nend",
                           "#RUN together=t host=b min-hosts=all", ". 1", ". 3",
                           "#RUN together=t host=a min-hosts=all", ". 2", ". 4")

    def test_a_timeout_holds_for_the_command_above_it_only(self) -> None:
        self.assertBecomes("t:\n-generaltimeout: 9s\na: 1\na: 2\n-timeout: 3s\na: 3\n-timeout: 3s\na: 4\nend",
                           "#RUN together=t host=a timeout=9s min-hosts=all", ". 1",
                           "#RUN together=t host=a timeout=3s min-hosts=all", ". 2", ". 3",
                           "#RUN together=t host=a timeout=9s min-hosts=all", ". 4")

    def test_nothing_of_a_test_holds_in_the_next_one(self) -> None:
        self.assertBecomes("t:\n-generaltimeout: 9s\n-minhosts: 1\na: 1\nend\nu:\na: 1\nend",
                           "#RUN together=t host=a timeout=9s min-hosts=1", ". 1",
                           "#RUN together=u host=a min-hosts=all", ". 1")

    def test_timeouts(self) -> None:
        for written, read in {"330s": "330s", "5 m": "5m", "2h": "2h", "none": "none", "0s": "none",
                              "00 h": "none", "010s": "010s"}.items():
            with self.subTest(written=written):
                self.assertBecomes(f"t:\n-generaltimeout: {written}\na: 1\na: 2\n-timeout: 1s\na: 3\n"
                                   f"-timeout:{written}\nend",
                                   f"#RUN together=t host=a timeout={read} min-hosts=all", ". 1",
                                   "#RUN together=t host=a timeout=1s min-hosts=all", ". 2",
                                   f"#RUN together=t host=a timeout={read} min-hosts=all", ". 3")

    def test_quotes(self) -> None:
        for written, read in {'"echo a"': "echo a", '"echo "a""': 'echo "a"', '"a" "b"': 'a" "b', '"': '"',
                              'echo "a"': 'echo "a"', "'echo a'": "'echo a'", '"echo a': '"echo a',
                              '"sh -c: end"': "sh -c: end", "-timeout: 3s": "-timeout: 3s",
                              "b: 5s: c": "b: 5s: c"}.items():
            with self.subTest(written=written):
                config, command = f"t:\na: {written}\nend", f". {read}"
                self.assertBecomes(config, "#RUN together=t host=a min-hosts=all", command)
        self.assertBecomes(b"t:\na: \xff\xa0\nend", "#RUN together=t host=a min-hosts=all", b". \xff\xa0")

    def test_labels_become_one_word(self) -> None:
        for written, read in {"a b": b"a_b", "a ,\t= b=": b"a_b_", "end": b"end", "a'\"#b": b"a'\"#b",
                              "\u00e4": "\u00e4".encode(), "-timeout": b"-timeout"}.items():
            with self.subTest(written=written):
                directive = b"#RUN together=%b host=a min-hosts=all" % read
                self.assertBecomes(f"{written} :\na: b\nend", directive, ". b")


class Refusing(FormatCase):
    """What NetJobs refuses, and what would not make sense; the line is named."""

    def test_parts_at_the_wrong_place(self) -> None:
        self.assertRefusedAt({
            "# c\n\nt:\nend\n": 4,                              # no targets
            "t:\n-minhosts: 1\nend\n": 3,
            "t:\n-timeout: 5s\na: b\nend\n": 2,                 # before the first target
            "t:\na: b\n-generaltimeout: 5s\nend\n": 3,          # after it
            "t:\na: b\n-minhosts: 1\nend\n": 3,
            "end\n": 1,
            "t:\na: b\nend\nend\n": 4,
            "a: b\n": 1,                                        # text outside a test
            "t:\na: b\nend\nnonsense\n": 4,
            "t:\na: b\nend\n-generaltimeout: 5s\n": 4,
            ":\na: b\nend\n": 1,
            " \t:\na: b\nend\n": 1,
            "t: u:\na: b\nend\n": 1,
        })

    def test_a_test_without_an_end(self) -> None:
        self.assertRefusedAt({"t:\na: b\nend\n\n\nu:\na: b\n": 6, "t:\n": 1, "t:\na: b\n\nu:\na: b\nend\n": 4,
                              "t:\na: b\nu v:\na: b\nend\n": 3})

    def test_what_cannot_be_read(self) -> None:
        wrong = ["nonsense", "END", "end now", "a", "a:", 'a: ""', 'a: " "', "a b: c", "-a: b", "a*: b",
                 "a,b: c", "\u00e4: b", "-timeout 5s", "-Timeout: 5s", "-timeouts: 5s", "-"]
        self.assertRefusedAt({f"t:\na: b\n{line}\nend\n": 3 for line in wrong})
        wrong += ["-generalTimeout: 5s", "-min-hosts: 1"]
        self.assertRefusedAt({f"t:\n{line}\na: b\nend\n": 2 for line in wrong})

    def test_timeouts(self) -> None:
        for value in self.values("5", "0", "-5s", "5d", "5S", "1.5s", "5ss", "s", "None", "all", "5 s 5 s",
                                 "\u0665s", "9" * 30 + "s", "5s # c"):
            self.assertRefusedAt({f"t:\na: b\n-timeout:{value}\nend\n": 3,
                                  f"t:\n-generaltimeout:{value}\na: b\nend\n": 2})

    def test_numbers_of_hosts(self) -> None:
        for value in self.values("-1", "1.5", "ALL", "none", "5s", "1 2", "\u0665", "9" * 30):
            self.assertRefusedAt({f"t:\n-minhosts:{value}\na: b\nend\n": 2})

    def test_what_is_no_text_or_too_long(self) -> None:
        long = "x" * (128 << 10)
        self.assertRefusedAt({"t:\na: b\0c\nend\n": 2, "t\0:\na: b\nend\n": 1, f"t:\na: {long}\nend\n": 2,
                              f"t:\na: {80 * long}\nend\n": 2, b"\xff\xfet\0": 1})

    @staticmethod
    def values(*values: str) -> Iterator[str]:
        """Values of a flag: none, and these."""
        yield from ("", " ", *(f" {value}" for value in values))
