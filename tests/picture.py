"""docs/report.png, a picture of the report of a real campaign: python3 -m tests.picture (needs chromium; a
minute).
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tests.support import ROOT, RUNMAKER, RUNWAIT

SIMULATE = """\
#!/usr/bin/env python3
import random, sys, time
seed = int(sys.argv[2])
chance = random.Random(seed)
memory = bytearray(chance.randrange(20, 120) << 20)
end = time.monotonic() + chance.lognormvariate(-0.3, 0.7)
while time.monotonic() < end - 0.3:
    time.sleep(0.02)
if seed % 41 == 7:
    raise ValueError("singular matrix")
if seed % 17 == 5:
    sys.exit(f"step {chance.randrange(900)}: no convergence")
print("energy", chance.random())
"""


def run(directory: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a script there, quietly."""
    return subprocess.Popen([sys.executable, *words], cwd=directory, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def main() -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (folder / "simulate").write_text(SIMULATE)
        (folder / "simulate").chmod(0o755)
        (folder / "runs.txt").write_text("".join(f". ./simulate --seed {seed}\n" for seed in range(1, 241)))
        script, wait = str(ROOT / RUNMAKER), str(ROOT / RUNWAIT)
        runners = [run(directory, script, "-q", f"-j{slots}", "--name", name, "--outdir", "out", "runs.txt")
                   for name, slots in (("node1", 6), ("node2", 6), ("node3", 4))]
        for runner in runners:
            runner.wait()
        subprocess.run(
            [sys.executable, wait, "--report", "night.html", "--outdir", "out", "runs.txt"],
            cwd=directory,
            check=True,
        )
        page = folder / "night.html"            # in the picture it was made at nobody's place
        place = f"{os.uname().nodename}:{folder.resolve()}"
        page.write_text(page.read_text().replace(place, "login:~/project"))
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                f"--user-data-dir={directory}/profile",
                "--hide-scrollbars",
                "--window-size=1000,1300",
                "--virtual-time-budget=5000",
                f"--screenshot={ROOT / 'docs' / 'report.png'}",
                f"file://{directory}/night.html",
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
