"""Where tests wait for seconds instead of an event.

    python3 -m tests.seconds                    each place, and how many there are
    python3 -m tests.seconds --limit LIMIT      only the number; fail if it is above the one in the file LIMIT

Nearly all tests that fail by chance expect that a busy machine does something within some seconds.  Counted
are
- pauses: `sleep N` in the text of jobs and programs, and calls of sleep(N);
- deadlines: timeout=N in a call or as a default, and N in calls such as process.wait(N);
where N is less than ENOUGH.  A pause counts, too, if its length is no number: a name makes no event of it.
Not counted are
- the short pauses of a loop that looks for an event: `until [ -e go ]; do sleep 0.02; done`, and in Python
  those in a `while`;
- pauses that are drawn at random: they are what a storm throws at the program;
- what bench/ does, where seconds are the result; and the texts in modules that quote documents or files of
  other tools (QUOTING);
- settings of the program (--timeout 0.3), which are what is tested.
"""
import argparse
import ast
import contextlib
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Optional

ENOUGH = 300    # a job that sleeps so long has to be ended by somebody; a deadline so late is met
SHORT = 0.2     # at most, a pause between two looks
TESTS = pathlib.Path(__file__).parent
# there, seconds are the result; and this file speaks of them
NOT_COUNTED = "bench/", "seconds.py"
QUOTING = "docs/test_documents.py", "lists/test_netjobs_format.py"
# the place of the deadline among the arguments
DEADLINES = {"wait": 0, "join": 0, "settimeout": 0, "wait_for": 1, "wait_until": 1, "deadline": 1}
# in the text of a job or a program; {} stands for what an f-string fills in
PAUSE = re.compile(r"\bsleep(?:\(| (?=[0-9{$]))([0-9.]*)")
LOOKS_AGAIN = re.compile(r"(?:\b(?:do|while) |\bwhile [^\n]*:\s*(?:time\.)?)$")
SLEEPS = "sleep", "time.sleep", "asyncio.sleep"
RANDOM = "choice", "random", "uniform"
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
Place = tuple[int, str]         # the number of a line, and what stands there


def number(value: ast.expr) -> Optional[float]:
    """The number that this is, if it is one."""
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, (int, float)) else None


def name_of(call: ast.expr) -> str:
    """The name by which something is called, without the object that it belongs to."""
    return getattr(call, "attr", getattr(call, "id", ""))


def is_pause(seconds: Optional[float], looks_again: bool) -> bool:
    """Whether so many seconds count; None: an unknown number.  looks_again: a loop waits for an event."""
    return seconds is None or (SHORT if looks_again else 0) < seconds < ENOUGH


def is_deadline(value: ast.expr, looks_again: bool) -> bool:
    return is_pause(number(value) or 0, looks_again)


def is_random(value: ast.expr) -> bool:
    return any(isinstance(node, ast.Call) and name_of(node.func) in RANDOM for node in ast.walk(value))


def waits_in_text(line: int, text: str) -> Iterator[Place]:
    """The pauses in the text of a job or program, which begins in this line."""
    if "sleep(" in text:
        with contextlib.suppress(SyntaxError):          # not Python
            yield from ((line + at - 1, what) for at, what in waits(ast.parse(text.replace("{}", "_"))))
            return
    for found in PAUSE.finditer(text):
        before, behind = text[:found.start()], text[found.start():]
        if is_pause(float(found[1]) if found[1].strip(".") else None, bool(LOOKS_AGAIN.search(before))):
            yield line + before.count("\n"), behind.partition("\n")[0][:60]


def waits_in_call(call: ast.Call, in_loop: bool) -> Iterator[Place]:
    """The pause that a call is, and the deadline that it sets."""
    name = name_of(call.func)
    if ast.unparse(call.func) in SLEEPS and not is_random(call) and is_pause(number(call.args[0]), in_loop):
        yield call.lineno, ast.unparse(call)
    deadlines = [keyword.value for keyword in call.keywords if keyword.arg == "timeout" and name != "dict"]
    deadlines += call.args[DEADLINES[name]:][:1] if name in DEADLINES else []
    if any(is_deadline(value, in_loop) for value in deadlines):
        yield call.lineno, ast.unparse(call)


def waits_by_default(taken: ast.arguments) -> Iterator[Place]:
    """The deadlines that a function sets if its caller does not."""
    names = [*taken.posonlyargs, *taken.args]
    defaults = [*zip(names[len(names) - len(taken.defaults):], taken.defaults),
                *zip(taken.kwonlyargs, taken.kw_defaults)]
    for argument, value in defaults:
        if argument.arg == "timeout" and value and is_deadline(value, looks_again=False):
            yield argument.lineno, f"timeout={ast.unparse(value)}"


def waits(node: ast.AST, in_loop: bool = False, texts: bool = True) -> Iterator[Place]:
    """All places in a piece of code, but in what documents it.

    in_loop: it is part of a `while`.  texts: also those in the text of jobs and programs.
    """
    if isinstance(node, (ast.JoinedStr, ast.Constant)) and not texts:
        return
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
        yield from waits_in_text(node.lineno, "".join(parts))
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from waits_in_text(node.lineno, node.value)
    elif isinstance(node, ast.Call):
        yield from waits_in_call(node, in_loop)
    elif isinstance(node, ast.arguments):
        yield from waits_by_default(node)
    inside = isinstance(node, ast.While) or (in_loop and not isinstance(node, FUNCTIONS))
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from waits(child, inside, texts)


def exceeds(count: int, limit: pathlib.Path) -> bool:
    """Return True, and report it, if these are more than the number in this file."""
    most = int(limit.read_text(encoding="ascii"))
    if count > most:
        print(f"{limit}: {count} waits for seconds, {most} allowed (wait for an event, behind a gate; "
              "python3 -m tests.seconds lists them)")
    elif count < most:
        print(f"{limit}: {count} waits for seconds, {most} allowed (lower the number in the same commit)")
    return count > most


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.seconds")
    parser.add_argument("--limit", type=pathlib.Path)
    limit = parser.parse_args().limit
    count = 0
    for path in sorted(TESTS.rglob("*.py")):
        name = str(path.relative_to(TESTS))
        if name.startswith(NOT_COUNTED):
            continue
        for line, what in waits(ast.parse(path.read_text(encoding="utf-8")), texts=name not in QUOTING):
            count += 1
            if limit is None:
                print(f"tests/{name}:{line}: {what}")
    print(f"{count} waits for seconds in tests")
    return int(limit is not None and exceeds(count, limit))


if __name__ == "__main__":
    sys.exit(main())
