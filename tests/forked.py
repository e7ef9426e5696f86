"""Processes of the command line that begin where most imports end, for those take two seconds: they are forked from one
process that has made them.

It has one thread, for a fork has that alone and would wait for the others at its end. So ONNX Runtime, whose import
starts one, is left to the forks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_SERVER = """
import json, os, sys
from onnxpress.optimizer import cli
from onnxpress.optimizer.commands import app
from onnxpress.optimizer.conversion import pipeline
import onnx.checker, onnxscript.optimizer, rich.console

assert len(os.listdir("/proc/self/task")) == 1

def stream(number, where):
    # A file, "closed", or "unread": a pipe that nobody reads.
    os.close(number)
    if where == "closed":
        return None
    if where == "unread":
        read, write = os.pipe()
        os.dup2(write, number)
        os.close(read)
    else:
        os.dup2(os.open(where, os.O_WRONLY | os.O_CREAT), number)
    return open(number, "w", closefd=False)

told = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    request = json.loads(line)
    if not os.fork():
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), file=told, flush=True)
else:
    sys.exit()
os.chdir(request["folder"])
sys.stdout = sys.__stdout__ = stream(1, request["out"])
sys.stderr = sys.__stderr__ = stream(2, request["err"])
sys.argv[1:] = request["arguments"]
exec(request["code"])
"""


class Forks:
    """Starts processes, one after the other."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, code: str, *arguments: object, folder: Path, out: str | None = None, err: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What a process ends with whose imports are made: of this code, with these arguments, in a folder.

        Its standard output and errors are in the result, or go into a file, are "closed", or are "unread": a pipe that
        nobody reads.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with tempfile.NamedTemporaryFile() as own_out, tempfile.NamedTemporaryFile() as own_err:
            request = {
                "code": code, "arguments": list(map(str, arguments)), "folder": str(folder),
                "out": out or own_out.name, "err": err or own_err.name,
            }  # fmt: skip
            print(json.dumps(request), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            told = (file.read().decode() for file in (own_out, own_err))
            return subprocess.CompletedProcess(code, status, *told)

    def close(self) -> None:
        if self._server is not None:
            self._server.communicate()
