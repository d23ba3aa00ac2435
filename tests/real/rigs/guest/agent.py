#!/usr/bin/python3
"""Runs in each machine: starts the commands that it is told to on a serial line; agent.py FILES.

from the test   a number N, for the file FILES.N: {"id": N, "signal": NUMBER} or
                {"id": N, "command": TEXT, "directory": PATH, "input": BASE64}
to the test     {"ready": true}, {"id": N, "pid": N}, {"id": N, "out" or "err": BASE64}, {"id": N, "code": N}
"""
import base64
import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import threading
import tty
from typing import IO, Any

port = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
tty.setraw(port)
writing = threading.Lock()
running: dict[int, subprocess.Popen[bytes]] = {}


def tell(**message: Any) -> None:
    data = json.dumps(message).encode() + b"\n"
    with writing:
        while data:
            data = data[os.write(port, data):]


def copy(number: int, name: str, pipe: IO[bytes]) -> None:
    while data := os.read(pipe.fileno(), 32768):
        tell(id=number, **{name: base64.b64encode(data).decode()})


def run(number: int, command: str, directory: str, data: bytes) -> None:
    process = subprocess.Popen(["/bin/sh", "-c", f"cd {shlex.quote(directory)} || exit\n{command}"],
                               start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    running[number] = process
    tell(id=number, pid=process.pid)
    readers = {pipe: threading.Thread(target=copy, args=(number, name, pipe), daemon=True)
               for name, pipe in (("out", process.stdout), ("err", process.stderr)) if pipe}
    for reader in readers.values():
        reader.start()
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(data)
            process.stdin.close()
    code = process.wait()
    for pipe, reader in readers.items():
        # all that it has printed comes first; what it has left behind may keep the pipe open, and silent
        while reader.is_alive() and select.select([pipe], [], [], 1)[0]:
            reader.join(0.1)
    del running[number]
    tell(id=number, code=code)


def main() -> None:
    tell(ready=True)
    pending = b""
    while True:
        data = os.read(port, 65536)
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            with open(f"{sys.argv[1]}.{int(line)}") as file:
                message = json.load(file)
            number = message["id"]
            if "command" in message:
                given = message["command"], message["directory"], base64.b64decode(message["input"])
                threading.Thread(target=run, args=(number, *given), daemon=True).start()
            elif number in running:
                with contextlib.suppress(ProcessLookupError):       # its end is about to be told
                    os.killpg(running[number].pid, message["signal"])


main()
