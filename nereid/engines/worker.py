"""A worker process from its parent's side: started, watched, killed and replaced; knows nothing of what it computes.

One thread, the keeper, starts the process and stays as long as the Worker does, for the kernel ends a process that asked for it
(PDEATHSIG) when the *thread* that started it ends. It also reads the messages, so that a dead worker's last words come before
its death is told. The old process is reaped before the next one starts: their memory never adds up. Another thread, the watchdog,
judges by what has been read; while it stood still itself, or nothing was read, it judges nobody.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nereid.engines.channel import BrokenChannelError, Channel, Message
from nereid.flow.awake_time import LATE_SECONDS, AwakeTime

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_LONGEST_PAUSE = 5.0
_SETTLED_SECONDS = 30.0
"""A worker that lived so long pays no pause for the deaths before it."""


class Owner(Protocol):
    """Told of by the keeper, in order, one call at a time."""

    def ready(self, facts: Mapping[str, Any]) -> None:
        """A process is ready, the first or a replacement."""

    def message(self, message: Message) -> None: ...

    def died(self, reason: str) -> None:
        """A process has ended that should not have, and has been reaped; the next one is not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """`function` is `module:name`, called in the process with `settings`; `name` shows in its command line.

    A worker is killed that sends nothing for `silent_seconds` (it was stopped from outside, or native code holds the
    interpreter), that is busy and does not tick for `watchdog_seconds`, or that grows by more than `grows_bytes` after it was
    ready (0: by any amount).
    """

    function: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    watchdog_seconds: float = 10.0
    silent_seconds: float = 3.0
    start_seconds: float = 600.0
    grows_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Life:
    """One process: what the watchdog knows of it, in its own time (`AwakeTime`)."""

    process: subprocess.Popen[bytes]
    channel: Channel
    started: float
    is_ready: bool = False
    heard: float = 0.0
    ticks: int = -1
    ticked: float = 0.0
    size_when_ready: int = 0
    killed_for: str | None = None
    is_telling: bool = False
    """Whether the owner is being told, who may take his time: nothing more is read meanwhile."""


@dataclass(slots=True, eq=False)
class Worker:
    """Keeps one process running until `stop`. `send` never blocks; what is sent while there is none is dropped."""

    options: WorkerOptions
    owner: Owner
    deaths: int = 0
    _life: _Life | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _settled: threading.Event = field(default_factory=threading.Event)
    _fault: str | None = None
    _time: AwakeTime = field(init=False)
    _keeper: threading.Thread = field(init=False)
    _watchdog: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        name, limit = self.options.name, min(self.options.silent_seconds, self.options.watchdog_seconds)
        self._time = AwakeTime(min(LATE_SECONDS, limit / 2))
        self._keeper = threading.Thread(target=self._keep_forever, name=f"{name}-keeper", daemon=True)
        self._watchdog = threading.Thread(target=self._watch_forever, name=f"{name}-watchdog", daemon=True)
        self._keeper.start()
        self._watchdog.start()

    @property
    def pid(self) -> int | None:
        life = self._life
        return None if life is None else life.process.pid

    def wait_ready(self) -> None:
        """Wait for the first process; raises ValueError with its sentence where it could not start."""
        self._settled.wait()
        if self._fault is not None:
            raise ValueError(self._fault)

    def send(self, message: Message) -> None:
        life = self._life
        if life is not None:
            life.channel.send(message)

    def stop(self) -> None:
        """End the process and reap it."""
        self._stopping.set()
        self._kill("stopped")
        self._keeper.join()
        self._watchdog.join()

    # --- the keeper ---

    def _keep_forever(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                reason, lived = self._live_once()
            except Exception as error:  # no process could be started, or the owner has failed
                log.exception("%s: the worker's keeper has failed", self.options.name)
                reason, lived = f"could not be started: {error}", 0.0
            if not self._settled.is_set():  # the first one never became ready: its model cannot be served
                self._fault = reason
                self._settled.set()
                return
            if self._stopping.is_set():
                return
            self.deaths += 1
            log.error("%s: the worker %s; it is replaced", self.options.name, reason)
            self.owner.died(reason)
            pause = 0.0 if lived > _SETTLED_SECONDS else min(max(2 * pause, 0.05), _LONGEST_PAUSE)

    def _live_once(self) -> tuple[str, float]:
        """From start to end of one process; why it ended, and how long it was ready."""
        life = self._start()
        self._life = life
        if self._stopping.is_set():
            life.process.kill()
        broken: str | None = None
        try:
            for message in life.channel.receive():
                life.is_telling = True
                broken = self._take(life, message) or broken
                life.is_telling = False
        except BrokenChannelError as error:
            broken = f"sent {error}"
        finally:
            self._life = None
            life.process.kill()
            code = life.process.wait()
            life.channel.close()
        lived = self._time.now() - life.started if life.is_ready else 0.0
        return life.killed_for or broken or f"ended ({_ending(code)})", lived

    def _take(self, life: _Life, message: Message) -> str | None:
        life.heard = self._time.now()
        match message.kind:
            case "beat":
                if message.body["ticks"] != life.ticks or not message.body["busy"]:
                    life.ticks, life.ticked = message.body["ticks"], life.heard
            case "ready":
                life.size_when_ready = _resident_bytes(life.process.pid)
                life.ticked, life.is_ready = life.heard, True
                self.owner.ready(message.body)
                self._settled.set()
            case "broken":
                return str(message.body["sentence"])
            case _:
                self.owner.message(message)
        return None

    def _start(self) -> _Life:
        ours, theirs = socket.socketpair()
        options = self.options
        command = [python_executable(), "-m", "nereid.engines.worker_main", options.function, "--name", options.name]
        command += ["--socket", str(theirs.fileno()), "--parent", str(os.getpid())]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUTF8": "1",  # a stub's locale is ASCII, whatever the machine's is
            **options.environment,
        }
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2, env=environment)
        channel = Channel(ours, options.name)
        channel.send(Message("settings", options.settings))
        now = self._time.now()
        return _Life(process, channel, now, heard=now)

    # --- the watchdog ---

    def _watch_forever(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            life = self._life
            if life is not None and life.is_telling:
                continue  # no round: should this last, the next one comes late
            self._time.look()
            if life is not None and life.killed_for is None and (reason := self._fault_of(life)):
                self._kill(reason)

    def _fault_of(self, life: _Life) -> str | None:
        limit, silent = self.options.watchdog_seconds, self.options.silent_seconds
        if not life.is_ready:
            late = self._time.now() - life.started > self.options.start_seconds
            return f"was not ready after {self.options.start_seconds:g} s" if late else None
        if self._time.silent_since(life.heard) > silent:
            return f"gave no sign of life for {silent:g} s"
        if self._time.silent_since(life.ticked) > limit:
            return f"was busy and did not tick for {limit:g} s"
        if self.options.grows_bytes and _resident_bytes(life.process.pid) - life.size_when_ready > self.options.grows_bytes:
            return f"took {self.options.grows_bytes >> 20} MB more memory than it started with"
        return None

    def _kill(self, reason: str) -> None:
        life = self._life
        if life is not None:
            life.killed_for = reason
            life.process.kill()


def python_executable() -> str:
    """The interpreter whose packages these are: inside Triton's stub `sys.executable` is not it."""
    for place in (
        Path(sys.executable or "/nowhere"),
        Path(sys.prefix) / "bin" / "python3",
        Path(sys.exec_prefix) / "bin" / "python",
    ):
        if place.name.startswith("python") and os.access(place, os.X_OK):
            return str(place)
    raise ValueError(f"no Python interpreter is found in {sys.prefix}/bin, which a worker process needs")


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
