"""Each script of findings/ names versions, guess and outcome, ends in time, and leaves nothing behind."""
import re
import subprocess

from tests.support.case import Case
from tests.support.processes import DEADLINE
from tests.support.scripts import ROOT

FINDINGS = ROOT / "findings"
NAMES = sorted(path.name for path in FINDINGS.iterdir() if path.name != "README.md")
GROUPS = {"File systems and locks", "Shells and processes", "Batch systems", "Task runners", "Data readers",
          "Runtimes"}
MAX_MINUTES = 15
# what a script gets packages with; here none can be had
INSTALLERS = "apt-get", "debootstrap", "npm", "pip", "pip3", "python3"
# the first commands of each: strict, within a time, in a folder that is removed
BEGINNING = re.compile(r"""set -euo pipefail
\[ "\$\{1-\}" = limited \] \|\| exec timeout -k 9 (\d+) bash "\$0" limited
(?:.*\n)*?dir=\$\(mktemp -d\)(?:.*\n)*?.*trap '.*rm -rf .*"\$dir"' EXIT""")


class Form(Case):

    def test_the_head_has_versions_guess_outcome_and_output(self) -> None:
        for name in NAMES:
            with self.subTest(name=name):
                head = (FINDINGS / name).read_text().partition("\nset -euo")[0].split("\n")
                self.assertEqual(head.pop(0), "#!/usr/bin/env bash")
                self.assertTrue(any(line.startswith("#   ") for line in head), "no output")
                self.assertRegex(" ".join(head), r"^# \w.*\d.* Guess: .* Seen: ")
                self.assertTrue(all(line.startswith("#") and len(line) <= 140 for line in head))

    def test_each_is_limited_and_removes_its_folder(self) -> None:
        for name in NAMES:
            with self.subTest(name=name):
                text = (FINDINGS / name).read_text()
                beginning = BEGINNING.search(text)
                assert beginning, text
                self.assertLessEqual(int(beginning[1]), 60 * MAX_MINUTES)
                self.assertNotIn("runmaker", text)
                self.assertTrue((FINDINGS / name).stat().st_mode & 0o100, "not executable")

    def test_packages_have_versions(self) -> None:
        for name in NAMES:
            with self.subTest(name=name):
                text = (FINDINGS / name).read_text().replace("\\\n", " ")
                asked = " ".join(re.findall(r"(?:download|install) (.*?)(?: 2>| \|\||\n)", text))
                words = asked.replace("--only-binary :all:", "").split()
                self.assertTrue(words, "which packages?")
                self.assertEqual([word for word in words if "=" not in word], [])

    def test_a_missing_package_is_status_2_and_nothing_is_left(self) -> None:
        (self.dir / "bin").mkdir()
        (self.dir / "tmp").mkdir()
        for installer in INSTALLERS:
            path = self.dir / "bin" / installer
            path.write_text("#!/bin/sh\necho 'no such version' >&2\nexit 100\n")
            path.chmod(0o755)
        environ = {"PATH": f"{self.dir}/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": f"{self.dir}/tmp"}
        for name in NAMES:
            with self.subTest(name=name):
                ended = subprocess.run(["bash", FINDINGS / name], env=environ, timeout=DEADLINE, check=False,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                self.assertEqual(ended.returncode, 2, ended.stdout)
                self.assertNotEqual(ended.stdout, b"", "it does not say why")
                self.assertEqual(list((self.dir / "tmp").iterdir()), [])

    def test_the_list_has_each_once_in_a_group(self) -> None:
        text = (FINDINGS / "README.md").read_text()
        listed = re.findall(r"^\| ([a-z]+-[\w-]+) \| \S.* \|$", text, re.MULTILINE)
        self.assertEqual(sorted(f"{name}.sh" for name in listed), NAMES)
        self.assertLessEqual(set(re.findall(r"^## (.*)\n\n\| name", text, re.MULTILINE)), GROUPS)
