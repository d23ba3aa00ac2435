"""A pseudo-terminal for tests, the screen that somebody would see, and scripts on it."""
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import Optional

from tests.support.processes import wait_until
from tests.support.runs import RunCase


class Screen:
    """A terminal's screen as far as a progress bar needs one: what stands where, and which modes are set."""

    TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x00-\x1f\x7f])")

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: dict[int, list[str]] = {}
        self.row = self.column = 0
        self.modes: dict[str, str] = {}         # private modes by number: set (h) or reset (l)
        self.rendition = ""                     # colours and the like; empty when reset

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            token = self.TOKEN.match(text, position)
            if not token:
                raise AssertionError(f"an unknown control sequence: {text[position:position + 20]!r}")
            number, command, control, character = token.groups()
            position = token.end()
            if command:
                self.control(number, command)
            elif control:
                self.column = 0
                self.row += control == "\n"     # the terminal has made \r\n of it
            else:
                self.put(character)

    def put(self, character: str) -> None:
        if self.column == self.columns:
            self.row, self.column = self.row + 1, 0
        line = self.rows.setdefault(self.row, [])
        line.extend(" " * (self.column + 1 - len(line)))
        line[self.column] = character
        self.column += 1

    def control(self, number: str, command: str) -> None:
        if command == "K" and number in ("", "0"):
            del self.rows.setdefault(self.row, [])[self.column:]
        elif command == "J" and number in ("", "0"):
            self.control(number, "K")
            self.rows = {row: line for row, line in self.rows.items() if row <= self.row}
        elif command == "K" and number == "2":
            self.rows[self.row] = []
        elif command == "m":
            self.rendition = "" if number in ("", "0") else number
        elif command in "hl":
            self.modes[number] = command
        else:
            raise AssertionError(f"an unknown control sequence: {number}{command}")

    def lines(self) -> list[str]:
        """The lines that are not blank."""
        texts = ["".join(self.rows[row]).rstrip() for row in sorted(self.rows)]
        return [text for text in texts if text]


class Terminal:
    """A real pseudo-terminal of some width (0: unknown), and the screen that somebody would see."""

    def __init__(self, columns: int) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.settings = termios.tcgetattr(self.slave)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        """Make the window as wide; what stood on the screen is forgotten."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.unread()
        self.screen = Screen(columns or 80)

    def unread(self) -> str:
        """What was printed since it was last read."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            # One read gives what has been handed on; only where nothing has, the rest is (n_tty_read())
            while piece := os.read(self.master, 1 << 20):
                data += piece
        return data.decode("utf-8", "surrogateescape")

    def look(self) -> list[str]:
        """The lines on the screen by now."""
        self.screen.feed(self.unread())
        return self.screen.lines()

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


class TerminalCase(RunCase):
    """Scripts on a terminal of their own, as a shell would start them."""

    def terminal(self, columns: int = 80) -> Terminal:
        terminal = Terminal(columns)
        self.addCleanup(terminal.close)
        return terminal

    def start_at(self, terminal: Terminal, script: str, *words: object,
                 **env: str) -> subprocess.Popen[bytes]:
        def take_the_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return self.start(script, *words, stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
                          start_new_session=True, preexec_fn=take_the_terminal,
                          env={"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "", "LINES": "", **env})

    def wait_shown(self, terminal: Terminal, pattern: str) -> str:
        """Wait until the last line on the terminal is like this; the line."""
        def shown() -> Optional[str]:
            lines = terminal.look()
            return lines[-1] if lines and re.search(pattern, lines[-1]) else None
        try:
            return wait_until(shown, what=pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen: {terminal.screen.lines()}") from None

    def assertLeftClean(self, terminal: Terminal) -> None:
        """The cursor is visible and at the start of a line, no colour is left, the settings are as before."""
        terminal.look()
        self.assertEqual(terminal.screen.modes.get("?25", "h"), "h")
        self.assertEqual(terminal.screen.modes.get("?7", "h"), "h")
        self.assertEqual(terminal.screen.modes.get("?1049", "l"), "l")
        self.assertEqual((terminal.screen.rendition, terminal.screen.column), ("", 0))
        self.assertEqual(termios.tcgetattr(terminal.slave), terminal.settings)
