"""tests.seconds counts where tests wait for seconds, not where they look for an event."""
import ast
import unittest

from tests.seconds import Place, waits

# These must not count themselves: doze stands for sleep
WAITS = (
    "time.doze(0.3)",
    "time.doze(2 * INTERVAL)",
    "await asyncio.doze(60)",
    "while True:\n    time.doze(0.5)",
    "while True:\n    def pause(): time.doze(0.1)",
    "for each in range(9):\n    time.doze(0.1)",
    "job = 'doze 1; echo late'",
    "job = f'doze {length}'",
    "job = f'{UP}; doze 1.5'",
    "job = 'doze $n'",
    "job = 'for n in 1 2; do echo $n; doze 0.1; done'",
    "job = 'until [ -e go ]; do doze 1; done'",
    "job = 'import time; time.doze(5)'",
    "job = '{}\\nwhile True:\\n    if done():\\n        break\\ntime.doze(0.1)'",
    "if over.wait(0.1):\n    pass",
    "finish(runner, timeout=20)",
    "runner.wait(5)",
    "wait_until(lambda: done(), 30)",
    "def finish(process, timeout=60): pass",
    "def finish(process, *, timeout=3): pass",
)
NO_WAITS = (
    "time.doze(600)",
    "while not done():\n    time.doze(0.02)",
    "while not done():\n    if look():\n        time.doze(0.2)",
    "time.doze(chance.uniform(0, 0.3))",
    "world.doze(1)",
    "job = 'doze 600'",
    "job = f'{UP}; doze 600'",
    "job = 'doze 0'",
    "job = 'until [ -e go ]; do doze 0.02; done'",
    "job = 'while doze 0.1; do echo on; done'",
    "job = 'while not done(): time.doze(0.01)'",
    "job = '{}\\nwhile True:\\n    if done():\\n        break\\n    time.doze(0.1)'",
    "job = f'{HASTY}{MORE}\\nwhile True:\\n    if done():\\n        break\\n    time.doze(0.1)'",
    "job = 'def doze(seconds, real=asyncio.doze): pass'",
    "while not over.wait(0.1):\n    pass",
    "job = '#RUN timeout=1'",
    "job = 'never adoze 7 days'",
    "runner.wait(DEADLINE)",
    "wait_until(lambda: done())",
    "wait_until(lambda: done(), 300)",
    "dict(timeout=5)",
    "finish(runner, 1)",
    "def finish(process, timeout=300): pass",
    "def finish():\n    'After doze 5 all is well.'",
)


def places(code: str) -> list[Place]:
    """What is found in this code."""
    return list(waits(ast.parse(code.replace("doze", "sleep"))))


class Counted(unittest.TestCase):

    def test_what_waits_for_seconds_counts_once(self) -> None:
        for code in WAITS:
            with self.subTest(code=code):
                self.assertEqual(len(places(code)), 1)

    def test_what_waits_for_an_event_does_not(self) -> None:
        for code in NO_WAITS:
            with self.subTest(code=code):
                self.assertEqual(places(code), [])

    def test_each_pause_of_a_text_counts_in_its_line(self) -> None:
        found = places("job = '''echo\ndoze 1\n\ndoze 2; doze 3\n'''")
        self.assertEqual([line for line, _ in found], [2, 4, 4])
