"""Keeps one Triton up: has models healed whose Python process died, restarts a server that died, answers /ready honestly."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from nereid.engines.digests import DigestError, Verifier
from nereid.flow.flight_record import forgive_all
from nereid.flow.state_folder import models_with_worker_down
from nereid.flow.unanswered import take_unanswered
from nereid.serving.child import Backoff
from nereid.serving.control import ControlError
from nereid.serving.draining import drain
from nereid.serving.errors import ServingError
from nereid.serving.following import Following
from nereid.serving.healing import Healing
from nereid.serving.health import HealthServer
from nereid.serving.installation import find_triton
from nereid.serving.load_times import load_seconds, load_table
from nereid.serving.models import ServedModels
from nereid.serving.numbers import Numbers
from nereid.serving.options import ServeOptions
from nereid.serving.pending_restart import PendingRestart
from nereid.serving.process import TritonProcess
from nereid.serving.remains import ServeFolder, reclaim
from nereid.serving.services import KeptServices

log = logging.getLogger("nereid.serve")

WATCH_SECONDS = 0.25
PROBE_SECONDS = 2.0
"""How often Triton is asked whether every model is ready, besides the look at its processes."""
CUT_SECONDS = 3.0
"""How long services may take to end once their callers have been told that it is the end."""

Progress = Callable[[int, int], None]
"""Told how many Python processes run and how many models there are."""


@dataclass(slots=True)
class Supervisor:
    """A context manager around a served repository; `watch` (or a thread of it) does the healing.

    `services` are other processes of this serve, such as a gateway: started first, kept up, drained first.
    """

    options: ServeOptions
    on_progress: Progress | None = None
    services: KeptServices = field(default_factory=KeptServices, init=False)
    folder: ServeFolder = field(init=False)
    _triton: TritonProcess = field(init=False)
    _health: HealthServer = field(init=False)
    _numbers: Numbers = field(init=False)
    _models: ServedModels = field(init=False)
    _verifier: Verifier = field(init=False)
    _expected: dict[str, int] = field(default_factory=dict, init=False)
    _load_seconds: dict[str, float] = field(default_factory=dict, init=False)
    _unready: list[str] = field(default_factory=list, init=False)
    _ready: bool = field(default=False, init=False)
    _draining: bool = field(default=False, init=False)
    _backoff: Backoff = field(default_factory=Backoff, init=False)
    _next_start: float | None = field(default=None, init=False)
    _next_probe: float = field(default=0.0, init=False)
    _pending: PendingRestart = field(default_factory=PendingRestart, init=False)
    _healing: Healing = field(init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _hurried: threading.Event = field(default_factory=threading.Event, init=False)
    _watcher: threading.Thread | None = field(default=None, init=False)
    _follower: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        installation = find_triton(self.options.triton)
        for sentence in reclaim():
            log.warning("%s", sentence)
        self.options.check(installation)
        self._models = ServedModels.read(self.options.repository)
        self._verifier = Verifier(self.options.repository)
        self.folder = ServeFolder.create()
        self._triton = TritonProcess(installation, self.options, self.folder, self._models, self._stopping)
        self._healing = Healing(self._triton, self._verifier, self._pending, self.folder.state, self._has_gone)
        self._numbers = Numbers(self._models, self.readiness, self.services.deaths)
        self._health = HealthServer(self.options.host, self.options.health_port, self.readiness, self._numbers.page)

    def __enter__(self) -> Supervisor:
        self.start()
        self._watcher = threading.Thread(target=self.watch, name="supervisor", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Triton and wait until every model is ready; raises ServingError (with nothing left running)."""
        try:
            self._health.start()
            self.services.start()  # before Triton: callers are told that it is not ready, and a mistake is told soon
            self._start_triton()
        except BaseException:
            self.stop()
            raise

    def _start_triton(self) -> None:
        if self.options.follow:  # what has gone since cannot be loaded
            self.forget([model for model in self._models.configs if self._has_gone(model)])
        try:
            self._verifier.verify(self._models.configs)
        except DigestError as error:
            raise ServingError(str(error)) from None
        self._verifier.share(self.folder.state)
        take_unanswered(self.folder.state, self._models.configs)  # Triton's end was theirs
        self._triton.start()
        self._triton.wait_until_ready(self._while_starting)
        self._expected = dict(self._triton.count_stubs())
        self._load_seconds = load_seconds(self.folder.state, self._triton.stubs())
        self._healing.unwell.clear()
        self._unready = []
        self._pending.forget()
        self._ready = True
        if self.options.follow and self._follower is None:
            following = Following(self.options.repository, self._verifier, self, self._stopping)
            self._follower = threading.Thread(target=following.run, name="follower", daemon=True)
            self._follower.start()

    def _while_starting(self, processes: int) -> None:
        if self.on_progress is not None:
            self.on_progress(processes, len(self._models.configs))

    def load_table(self) -> Table:
        """How long each model took to load."""
        return load_table(self._models.configs, self._load_seconds)

    @property
    def triton_pid(self) -> int | None:
        return self._triton.pid

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests can be served now, and what is amiss."""
        running = self._triton.is_running()
        down = self.services.down()
        workers = models_with_worker_down(self.folder.state)
        ready = running and self._ready and not (self._draining or self._healing.unwell or self._unready or workers or down)
        return ready, {
            "ready": ready,
            "server_running": running,
            "models": sorted(self._models.configs),
            "models_loaded": self._ready,
            "models_reloading": sorted(self._healing.unwell),
            "models_not_ready": sorted(self._unready) if self._ready else [],
            "workers_down": workers,
            "services_down": down,
            "restart_pending": self._pending.by is not None,
            "draining": self._draining,
            "load_seconds": self._load_seconds,
        }

    # --- the end ---

    def hurry(self) -> None:
        """Do not wait for requests in flight any longer."""
        self._hurried.set()

    def stop(self) -> None:
        """Say so on /ready, let what is in flight end within `drain_seconds`, services first, then stop everything."""
        if self._draining:
            return  # a start that has failed has ended so
        self._draining = True
        self._stopping.set()
        deadline = time.monotonic() + self.options.drain_seconds
        self.services.drain()
        for thread in (self._watcher, self._follower):
            if thread is not None:
                thread.join()
        # They cut what is left at the deadline themselves, while Triton still runs: that takes a moment.
        self.services.stop(deadline + CUT_SECONDS - time.monotonic(), self._hurried)
        if self._ready and self._triton.is_running():
            drain(self._triton, self._models, self.options, deadline, self._hurried)
        self._triton.stop()
        self.folder.remove()
        with contextlib.suppress(RuntimeError):
            self._health.stop()

    # --- models that come and go, see nereid.serving.following ---

    @property
    def models(self) -> ServedModels:
        return self._models

    @property
    def is_settled(self) -> bool:
        return self._ready and self._pending.by is None and not self._healing.unwell and self._triton.is_running()

    def take_in(self, model: str, config: Any) -> None:
        self._verifier.share(self.folder.state)
        self._triton.control.load(model, config)
        self._serve(self._models.with_others({model: config}))
        self._expected = {**self._expected, model: self._triton.count_stubs()[model]}
        self._load_seconds = load_seconds(self.folder.state, self._triton.stubs())

    def forget(self, models: Sequence[str]) -> None:
        self._expected = {model: count for model, count in self._expected.items() if model not in models}
        self._serve(self._models.with_others({}, models))

    def let_go(self, model: str) -> None:
        self._triton.control.unload(model)

    def _has_gone(self, model: str) -> bool:
        return self.options.follow and not (self.options.repository / model).is_dir()

    def _serve(self, models: ServedModels) -> None:
        self._models = self._triton.models = self._numbers.models = models

    # --- healing ---

    def watch(self) -> None:
        """Heal until stopped, whatever happens in a round."""
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                self._round()
            except Exception:
                log.exception("a round of supervision has failed; supervision goes on")

    def _round(self) -> None:
        if not self._triton.is_running():
            self._revive()
        elif self._triton.is_stopped():
            log.warning("Triton is suspended (SIGSTOP); killing it")
            self._triton.kill()
        else:
            alive = self._triton.count_stubs()
            dead = [model for model, count in self._expected.items() if alive[model] < count]
            if dead and self._triton.is_running():
                self._heal(dead)
            if self._triton.is_running():  # a restart that healing came to may have failed
                self._probe()
                self._restart_if_due()

    def _probe(self) -> None:
        """Readiness as Triton sees it: a server that hangs, or a model that was unloaded, is not ready."""
        if time.monotonic() >= self._next_probe:
            self._unready = self._triton.unready_models()
            self._next_probe = time.monotonic() + PROBE_SECONDS

    def _revive(self) -> None:
        """Start Triton again: at once, later after each death in a row, for ever."""
        if self._next_start is None:
            lived, self._ready = self._triton.lived if self._ready else 0.0, False  # to load is not to live
            self._triton.stop()
            delay = self._backoff.after_death(lived)
            again = "now" if delay == 0 else f"in {delay:g} s (death {self._backoff.deaths} in a row)"
            log.warning("Triton died (%s); starting it again %s", self._triton.ending, again)
            self._next_start = time.monotonic() + delay
        if time.monotonic() >= self._next_start:
            self._next_start = None
            self._restart(died=True)

    def _restart(self, grace_seconds: float = 0.0, *, died: bool = False) -> None:
        self._ready = False
        self._triton.stop(grace_seconds)
        self._numbers.restarts += 1
        if not died:
            forgive_all(self.folder.state)
        try:
            self._start_triton()
        except ServingError as error:
            if not self._stopping.is_set():
                log.error("%s", error)
                self._triton.stop(0)

    def _heal(self, dead: Sequence[str]) -> None:
        models = self._healing.allowed(dead)
        if not models:
            return
        self._numbers.deaths.update(models)
        try:
            self._healing.load(models)
        except ControlError as error:
            if not self._stopping.is_set():
                log.error("%s; restarting Triton", error)
                self._restart()
            return
        self._load_seconds = load_seconds(self.folder.state, self._triton.stubs())
        self._next_probe = 0.0

    def _restart_if_due(self) -> None:
        overdue = self._pending.is_overdue
        if overdue or self._pending.is_due(self.options.metrics_url):
            log.warning("restarting Triton, to end requests that would never be answered")
            self._restart(grace_seconds=3.0 if overdue else 0.0)
