"""Services beside Triton, such as the gateway: started, watched on a thread of their own, restarted, drained; knows none of them.

A thread of their own, so that a dead service is back in time while the supervisor waits for a model to load.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nereid.serving.child import Backoff, Child, said_of_exit
from nereid.serving.errors import ServingError
from nereid.serving.heartbeat import Pulse

log = logging.getLogger("nereid.serve")

TEND_SECONDS = 0.25
SILENT_SECONDS = 10.0
"""A service that has not told for so long that it works does not: its loop hangs."""
_KEEPER_SECONDS = 5.0
"""How long a keeper may take to end what a dead process has left."""


@dataclass(slots=True)
class KeptService:
    """A child that is to run always: `tend` starts it again where it has died or hangs, later with each death in a row."""

    name: str
    make: Callable[[int], Child]
    """Makes its process, not yet started, which beats on that descriptor (`heartbeat.Heart`)."""
    sockets: Sequence[socket.socket] = ()
    """What it listens on: bound once, so that connections made while it is away wait; closed when it is stopped."""
    start_seconds: float = 60.0
    silent_seconds: float = SILENT_SECONDS
    backoff: Backoff = field(default_factory=Backoff)
    deaths: int = field(default=0, init=False)
    _child: Child | None = field(default=None, init=False)
    _pulse: Pulse | None = field(default=None, init=False)
    _next_start: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start it and wait until it works; raises ServingError where it does not."""
        child, pulse = self._launch()
        while not pulse.has_beaten:
            pulse.listen()
            if not child.is_running():
                child.wait(_KEEPER_SECONDS)
                pulse.listen()
                raise ServingError(f"{self.name} cannot be started: {pulse.failure or said_of_exit(child.returncode)}")
            if pulse.silence > self.start_seconds:
                raise ServingError(f"{self.name} did not start within {self.start_seconds:g} s")
            time.sleep(0.02)

    def tend(self) -> None:
        """Look after it; returns at once."""
        if self._child is None or self._pulse is None:
            if time.monotonic() >= self._next_start:
                self._launch()
            return
        self._pulse.listen()
        if not self._child.is_running():
            self._note_death(self._child, self._pulse)
        elif self._child.is_stopped():
            log.warning("%s is suspended (SIGSTOP); killing it", self.name)
            self._child.kill()
        elif self._pulse.silence > (self.silent_seconds if self._pulse.has_beaten else self.start_seconds):
            log.warning("%s has sent no heartbeat for %.0f s; killing it", self.name, self._pulse.silence)
            self._child.kill()

    def _launch(self) -> tuple[Child, Pulse]:
        self._next_start = time.monotonic() + self.backoff.longest  # should the start itself fail
        pulse = Pulse.create()
        child = self.make(pulse.sender)
        try:
            child.start()
        except BaseException:
            pulse.close()
            raise
        pulse.close_sender()
        self._child, self._pulse = child, pulse
        return child, pulse

    def _note_death(self, child: Child, pulse: Pulse) -> None:
        self.deaths += 1
        child.stop(_KEEPER_SECONDS)
        pulse.listen()
        pulse.close()
        self._child = self._pulse = None
        delay = self.backoff.after_death(time.monotonic() - child.started)
        self._next_start = time.monotonic() + delay
        again = "now" if delay == 0 else f"in {delay:g} s (death {self.backoff.deaths} in a row)"
        log.warning("%s died (%s); starting it again %s", self.name, pulse.failure or said_of_exit(child.returncode), again)

    def is_well(self) -> bool:
        child, pulse = self._child, self._pulse
        return (
            child is not None
            and pulse is not None
            and pulse.has_beaten
            and pulse.silence < self.silent_seconds
            and child.is_running()
        )

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def terminate(self) -> None:
        """Ask it to end, without waiting: it drains. Asked again, it does not wait for what is in flight."""
        if self._child is not None:
            self._child.terminate()

    def has_ended(self) -> bool:
        return self._child is None or self._child.wait(0)

    def stop(self, grace_seconds: float = 0.0) -> None:
        if self._child is not None:
            self._child.stop(grace_seconds)
            self._child = None
        if self._pulse is not None:
            self._pulse.close()
            self._pulse = None
        for listener in self.sockets:
            listener.close()


@dataclass(slots=True)
class KeptServices:
    """All of one serve."""

    _services: list[KeptService] = field(default_factory=list, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def add(self, service: KeptService) -> None:
        self._services.append(service)

    def start(self) -> None:
        """Start them all and look after them from now on; raises ServingError where one cannot be started."""
        for service in self._services:
            service.start()
        if self._services:
            self._thread = threading.Thread(target=self._tend, name="services", daemon=True)
            self._thread.start()

    def _tend(self) -> None:
        while not self._stopping.wait(TEND_SECONDS):
            for service in self._services:
                try:
                    service.tend()
                except ServingError as error:
                    log.error("%s", error)
                except Exception:
                    log.exception("looking after %s has failed; going on", service.name)

    def down(self) -> list[str]:
        return [service.name for service in self._services if not service.is_well()]

    def deaths(self) -> dict[str, int]:
        """By name, without its article."""
        return {service.name.removeprefix("the "): service.deaths for service in self._services}

    def drain(self) -> None:
        """Ask them to finish what they have and to end; what dies now stays dead."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        for service in self._services:
            service.terminate()

    def stop(self, grace_seconds: float, hurried: threading.Event) -> None:
        """Wait for the end of those asked to drain, in a hurry not for long, and end the others."""
        deadline = time.monotonic() + grace_seconds
        asked_again = False
        while time.monotonic() < deadline and not all(service.has_ended() for service in self._services):
            if hurried.is_set() and not asked_again:
                asked_again = True
                deadline = min(deadline, time.monotonic() + 2.0)
                for service in self._services:
                    service.terminate()
            time.sleep(0.02)
        for service in self._services:
            with contextlib.suppress(OSError):
                service.stop()
