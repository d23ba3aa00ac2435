"""Pictures of real campaigns in docs: report.png and report-top.png (the report), terminal.png (a terminal).

    python3 -m tests.docs.picture        needs chromium; a minute
"""
import html
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.support.page import browser_command
from tests.support.scripts import ROOT, RUNMAKER, RUNWAIT
from tests.support.terminal import Screen, Terminal

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
print("energy", round(chance.random(), 4))
"""


def run(directory: pathlib.Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *words], cwd=directory, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def shot(page: pathlib.Path, name: str, width: int, height: int) -> None:
    """A picture of a page, docs/NAME, with windows of this size in pixels."""
    subprocess.run([*browser_command(page.parent), "--hide-scrollbars", f"--window-size={width},{height}",
                    f"--screenshot={ROOT / 'docs' / name}", f"file://{page}"], check=True,
                   stderr=subprocess.DEVNULL)


def campaign(folder: pathlib.Path, seeds: range) -> None:
    """A program, and a file with a job for each seed."""
    (folder / "simulate").write_text(SIMULATE)
    (folder / "simulate").chmod(0o755)
    (folder / "runs.txt").write_text("".join(f". ./simulate --seed {seed}\n" for seed in seeds))


def draw_report(folder: pathlib.Path, slots: Sequence[int] = (6, 6, 4), name: str = "report.png",
                width: int = 1000, height: int = 1250) -> None:
    """docs/report.png"""
    campaign(folder, range(1, 241))
    words = "-q", "--outdir", "out", "runs.txt"
    runners = [run(folder, str(ROOT / RUNMAKER), f"-j{count}", "--name", f"node{number}", *words)
               for number, count in enumerate(slots, 1)]
    for runner in runners:
        runner.wait()
    subprocess.run([sys.executable, str(ROOT / RUNWAIT), "--report", "night.html", "--outdir", "out",
                    "runs.txt"], cwd=folder, check=True)
    page = folder / "night.html"            # in the picture it was made at nobody's place
    text = page.read_text().replace(f"{os.uname().nodename}:{folder.resolve()}", "login:~/project")
    page.write_text(text.replace(str(folder.resolve()), "/home/me/project"))
    shot(page, name, width, height)


def draw_top(folder: pathlib.Path) -> None:
    """docs/report-top.png, for README.md: the page down to the slots of eleven."""
    draw_report(folder, (4, 4, 3), "report-top.png", 720, 632)


class ColouredScreen(Screen):
    """A screen that knows in which colour each character is."""

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self.colours: dict[tuple[int, int], str] = {}

    def put(self, character: str) -> None:
        super().put(character)
        self.colours[self.row, self.column - 1] = self.rendition

    def page(self) -> str:
        """The screen as HTML."""
        text = ""
        for row in sorted(self.rows):
            for column, character in enumerate(self.rows[row]):
                colour = self.COLOURS.get(self.colours.get((row, column), ""), "inherit")
                text += f'<span style="color: {colour}">{html.escape(character)}</span>'
            text += "\n"
        style = "margin: 0; padding: 16px; background: #1e2127; color: #d8dee9; font: 15px/21px monospace"
        head = '<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">'
        return f'{head}<pre style="{style}">{text}</pre>'

    COLOURS = {"31": "#e06c75", "35": "#c678dd"}


def draw_terminal(folder: pathlib.Path) -> None:
    """docs/terminal.png: four jobs at a time, some way along."""
    campaign(folder, range(20, 60))
    terminal = Terminal(80)
    terminal.screen = screen = ColouredScreen(80)
    screen.feed("$ runmaker4.py -j4 --retries 1 runs.txt\n")
    command = [sys.executable, str(ROOT / RUNMAKER), "-j4", "--retries", "1", "runs.txt"]
    runner = subprocess.Popen(command, cwd=folder, stdin=terminal.slave, stdout=terminal.slave,
                              stderr=terminal.slave, env={**os.environ, "TERM": "xterm"})
    while sum(" done in " in line for line in terminal.look()) < 10:
        time.sleep(0.05)
    (folder / "terminal.html").write_text(screen.page())
    rows = len(screen.lines())
    runner.terminate()
    runner.wait()
    terminal.close()
    shot(folder / "terminal.html", "terminal.png", 760, 32 + 21 * rows)


def main() -> None:
    for draw in draw_report, draw_top, draw_terminal:
        with tempfile.TemporaryDirectory() as directory:
            draw(pathlib.Path(directory))


if __name__ == "__main__":
    main()
