"""`nereid_export.memory_probe` in forks of a process that has imported engines once: its start takes ten times a tiny engine."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from threading import Lock

_ONE_AT_A_TIME = Lock()


def run_probe(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """As `nereid_export.memory.run_probe`, by a fork."""
    with _ONE_AT_A_TIME:
        server = _server(arguments[0].partition(":")[0])
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(arguments) + "\n")
        server.stdin.flush()
        code, out = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess(arguments, code, out, "")


@cache
def _server(module: str) -> subprocess.Popen[str]:
    """One for each engine, since what another needs would count as loaded."""
    server = subprocess.Popen([sys.executable, __file__, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # it ends with its input
    return server


def _serve(module: str) -> None:
    probe = importlib.import_module("nereid_export.memory_probe")
    importlib.import_module(module)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out:
            if not (child := os.fork()):
                code = 1
                try:
                    os.dup2(out.fileno(), sys.stdout.fileno())
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
                    probe.main(*json.loads(line))
                    sys.stdout.flush()
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            out.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read()]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
