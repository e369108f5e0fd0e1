"""A process that the supervisor starts, watches, restarts and ends; knows nothing of what the process does.

It runs under a keeper (`keeper.py`): if the process dies, its descendants end with it; if the supervisor dies, all of them do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from nereid.serving.errors import ServingError

KEEPER = Path(__file__).with_name("keeper.py")
SERVE_ID = "NEREID_SERVE_ID"
"""Environment variable that every process of one `serve` inherits: what escapes its keeper is still found by it."""


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next restart: not at all at first, then longer with each death in a row."""

    first: float = 0.5
    longest: float = 30.0
    well_after: float = 60.0
    """Seconds of life after which a death counts as the first again."""
    deaths: int = 0

    def after_death(self, lived: float) -> float:
        self.deaths = 1 if lived >= self.well_after else self.deaths + 1
        return 0.0 if self.deaths == 1 else min(self.longest, self.first * 2.0 ** (self.deaths - 2))


@dataclass(slots=True)
class Child:
    """One process under a keeper."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path | None = None
    """Removed by the keeper when the supervisor has died."""
    output: IO[bytes] | None = None
    pass_fds: Sequence[int] = ()
    _keeper: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _lifeline: socket.socket | None = field(default=None, init=False)
    _pid: int | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Launch; returns once the process exists. Raises ServingError where it cannot be started."""
        self._lifeline, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            folder = "" if self.folder is None else str(self.folder)
            try:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno()), folder, *self.command],
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=self.output,
                    stderr=subprocess.STDOUT if self.output else None,
                    pass_fds=(theirs.fileno(), *self.pass_fds),
                    # Of its own: a Ctrl-C at the terminal reaches the supervisor alone, which then stops everything in order.
                    start_new_session=True,
                )
            except OSError as error:
                self._lifeline.close()
                raise ServingError(f"{self.command[0]} cannot be started: {error.strerror}") from None
        self._lifeline.settimeout(60)
        with contextlib.suppress(OSError, ValueError):
            self._pid = int(self._lifeline.recv(32))
        self.started = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Of the process itself, not of its keeper; it may have ended."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        return self._keeper.poll() if self._keeper else None

    def is_running(self) -> bool:
        """False from the moment of its death; the keeper may still be ending its descendants, see `wait`."""
        return self._keeper is not None and self._keeper.poll() is None and (self._pid is None or psutil.pid_exists(self._pid))

    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) holds the process."""
        try:
            return self._pid is not None and psutil.Process(self._pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def kill(self) -> None:
        """End it at once, as its death would: the keeper then ends its descendants."""
        if self._pid is not None and self._keeper is not None and self._keeper.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the process to end; the keeper passes it on."""
        if self._keeper is not None and self.is_running():
            self._keeper.terminate()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, with everything below it, within that time."""
        if self._keeper is None:
            return True
        try:
            self._keeper.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_seconds: float) -> None:
        """Ask it to end, then make it; nothing below it stays."""
        self.terminate()
        ended = self.wait(grace_seconds)
        if self._lifeline is not None:
            if not ended:
                self.kill()
                ended = self.wait(5)
            self._lifeline.close()
        if self._keeper is not None and not ended and not self.wait(5):
            self._keeper.kill()
            self._keeper.wait()


def said_of_exit(code: int | None) -> str:
    """An exit code in words: the keeper gives 128 and the signal's number for a process that a signal ended."""
    if code is not None and code > 128:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
