"""docs/convert.py takes NetJobs' configurations as their documentation and its parser have them."""
import re

import runmaker4
from docs import convert
from tests.support.case import Case
from tests.support.scripts import PYTHON, ROOT, RUNSET
from tests.support.values import Text, as_bytes, present

CONVERT = ROOT / "docs/convert.py"
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
localhost: "sleep 10"
localhost: "sleep 1"
end"""
SAMPLE_JOBS = """\
#RUN barrier
# test first
#RUN together=first host=localhost timeout=1s min-hosts=0
. echo 'good morning'
#RUN barrier
# test second
#RUN together=second host=localhost timeout=2s min-hosts=0
. sleep 10
. sleep 1
#RUN
"""
ANY = "#RUN together=t host=a min-hosts=all"        # the group of test t, on host a
FEW = "#RUN together=t host=a timeout=%s min-hosts=all"
TIMEOUTS = {"330s": "330s", "5 m": "5m", "2h": "2h", "none": "none", "0s": "none", "00 h": "none",
            "010s": "010s"}
QUOTES: dict[Text, Text] = {
    '"echo a"': "echo a", '"echo "a""': 'echo "a"', '"a" "b"': 'a" "b', '"': '"', 'echo "a"': 'echo "a"',
    "'echo a'": "'echo a'", '"echo a': '"echo a', '"sh -c: end"': "sh -c: end",
    "-timeout: 3s": "-timeout: 3s", "b: 5s: c": "b: 5s: c", b"\xff\xa0": b"\xff\xa0"}
LABELS = {"a b": "a_b", "a ,\t= b=": "a_b_", "end": "end", "a'\"#b": "a'\"#b", "\u00e4": "\u00e4",
          "-timeout": "-timeout"}
READ: dict[Text, list[Text]] = {        # a configuration: its lines but for the frame of each test
    # space around everything, comments, and windows' lines
    b"\xef\xbb\xbf# c\r\n\r\n  t  :  \r\n\t-generaltimeout  :  5  m \r\n # c\r\n-minhosts:2\r\n"
    b"  a.b-c_D9\t :   \" echo  a \" \r\n\r\n\t-timeout :7h\r\nb:echo b # c\r\n  end  \r\n":
        ["#RUN together=t host=a.b-c_D9 timeout=7h min-hosts=2", ".  echo  a ",
         "#RUN together=t host=b timeout=5m min-hosts=2", ". echo b # c"],
    # lines of a target stand together in their order
    "t:\n-minhosts: all\nb: 1\na: 2\nb: 3\na: 4\nend":
        ["#RUN together=t host=b min-hosts=all", ". 1", ". 3", ANY, ". 2", ". 4"],
    # a timeout holds for the command above it only
    "t:\n-generaltimeout: 9s\na: 1\na: 2\n-timeout: 3s\na: 3\n-timeout: 3s\na: 4\nend":
        [FEW % "9s", ". 1", FEW % "3s", ". 2", ". 3", FEW % "9s", ". 4"],
    # nothing of a test holds in the next one
    "t:\n-generaltimeout: 9s\n-minhosts: 1\na: 1\nend\nu:\na: 1\nend":
        ["#RUN together=t host=a timeout=9s min-hosts=1", ". 1",
         "#RUN together=u host=a min-hosts=all", ". 1"],
    **{f"t:\n-generaltimeout: {text}\na: 1\na: 2\n-timeout: 1s\na: 3\n-timeout:{text}\nend":
       [FEW % it, ". 1", FEW % "1s", ". 2", FEW % it, ". 3"] for text, it in TIMEOUTS.items()},
    **{b"t:\na: %b\nend" % as_bytes(text): [ANY, b". " + as_bytes(it)] for text, it in QUOTES.items()},
    **{f"{text} :\na: b\nend": [ANY.replace("=t", f"={it}"), ". b"] for text, it in LABELS.items()},
}
LONG = "x" * (128 << 10)
NO_LINE = ["nonsense", "END", "end now", "a", "a:", 'a: ""', 'a: " "', "a b: c", "-a: b", "a*: b", "a,b: c",
           "\u00e4: b", "-timeout 5s", "-Timeout: 5s", "-timeouts: 5s", "-"]
NO_TIME = ["", " ", *map(" ".__add__, ("5", "0", "-5s", "5d", "5S", "1.5s", "5ss", "s", "None", "all",
                                       "5 s 5 s", "\u0665s", "9" * 30 + "s", "5s # c"))]
NO_NUMBER = ["", " ", *map(" ".__add__, ("-1", "1.5", "ALL", "none", "5s", "1 2", "\u0665", "9" * 30))]
REFUSED: dict[Text, int] = {            # a configuration, and the line that is named
    # no targets
    "# c\n\nt:\nend\n": 4, "t:\n-minhosts: 1\nend\n": 3,
    # parts before the first target, and after it
    "t:\n-timeout: 5s\na: b\nend\n": 2, "t:\na: b\n-generaltimeout: 5s\nend\n": 3,
    "t:\na: b\n-minhosts: 1\nend\n": 3,
    # outside a test
    "end\n": 1, "t:\na: b\nend\nend\n": 4, "a: b\n": 1, "t:\na: b\nend\nnonsense\n": 4,
    "t:\na: b\nend\n-generaltimeout: 5s\n": 4, ":\na: b\nend\n": 1, " \t:\na: b\nend\n": 1,
    "t: u:\na: b\nend\n": 1,
    # no end
    "t:\na: b\nend\n\n\nu:\na: b\n": 6, "t:\n": 1, "t:\na: b\n\nu:\na: b\nend\n": 4,
    "t:\na: b\nu v:\na: b\nend\n": 3,
    # what cannot be read, is no text, or is too long
    **{f"t:\na: b\n{line}\nend\n": 3 for line in NO_LINE},
    **{f"t:\n{line}\na: b\nend\n": 2 for line in [*NO_LINE, "-generalTimeout: 5s", "-min-hosts: 1"]},
    **{f"t:\na: b\n-timeout:{value}\nend\n": 3 for value in NO_TIME},
    **{f"t:\n-generaltimeout:{value}\na: b\nend\n": 2 for value in NO_TIME},
    **{f"t:\n-minhosts:{value}\na: b\nend\n": 2 for value in NO_NUMBER},
    "t:\na: b\0c\nend\n": 2, "t\0:\na: b\nend\n": 1, b"\xff\xfet\0": 1,
    f"t:\na: {LONG}\nend\n": 2, f"t:\na: {80 * LONG}\nend\n": 2,
}


def job_lines(text: bytes) -> bytes:
    """A list as the lines of a job file, comments included."""
    return re.sub(rb"(?m)^(?=[^#\n])", b". ", text)


class Format(Case):

    def test_a_configuration_is_appended_as_directives_and_jobs(self) -> None:
        self.write(SAMPLE, "config")
        converted = self.run_script(PYTHON, CONVERT, "netjobs", "config")
        self.assertEqual((converted.code, converted.err), (0, b""))
        self.assertEqual(job_lines(converted.out), SAMPLE_JOBS.encode())
        self.write(converted.out, "list")
        jobs = re.sub("(?m)^# .*\n", "", SAMPLE_JOBS)
        for expected in jobs, 2 * jobs:
            ended = self.run_script(RUNSET, "-q", "runs.txt", "--add-list", "list")
            self.assertEqual((ended.code, ended.out, ended.err), (0, b"", b""))
            self.assertEqual(self.read(), as_bytes(expected))

    def test_a_bad_configuration_is_refused_whole(self) -> None:
        self.write("\n# c\n", "none")
        self.write(SAMPLE + "\n\nthird:\nlocalhost: echo\n-timeout: 5\nend\n", "bad")
        calls = {"missing": "missing: ", ".": "directory", "bad": "bad: line 17: ",
                 "none": "no jobs (nothing to add)", "/dev/null": "no jobs (nothing to add)"}
        self.write(SAMPLE, "config")
        for good in (), ("config",):
            for call, ended in self.run_all((PYTHON, CONVERT, "netjobs", *good, name) for name in calls):
                if not good or "no jobs" not in calls[str(call[-1])]:
                    with self.subTest(call=call):
                        self.assertRefused(ended, "convert.py: ", calls[str(call[-1])])

    def lines(self, config: Text) -> list[bytes]:
        """What a configuration becomes; no runner refuses a directive of it."""
        text = b"".join(convert.lines_of_configs([str(self.write(config, "config"))]))
        lines = job_lines(text).split(b"\n")
        for line in lines:
            if line.startswith(b"#RUN "):
                runmaker4.parse_directive(line[1:])
        return lines

    def test_what_is_read(self) -> None:
        for config, expected in READ.items():
            with self.subTest(config=config):
                *lines, last, end = self.lines(config)
                self.assertEqual((last, end), (b"#RUN", b""))
                found = [line for line in lines if line != b"#RUN barrier" and not line.startswith(b"# ")]
                self.assertEqual(found, list(map(as_bytes, expected)))

    def test_what_is_refused_and_with_which_line(self) -> None:
        pattern = re.escape(f"{self.dir}/config") + r": (?:line (\d+): )?[^\n]*\Z"
        for config, number in REFUSED.items():
            with self.subTest(config=config[:200]):
                with self.assertRaises(runmaker4.UsageError) as raised:
                    self.lines(config)
                named = present(re.match(pattern, str(raised.exception)))
                self.assertEqual(int(named[1] or 0), number, raised.exception)
