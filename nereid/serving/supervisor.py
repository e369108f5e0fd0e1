"""Keeps one Triton up: reloads models whose Python stub died, restarts a server that died, answers /ready honestly."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from nereid.serving.errors import ServingError
from nereid.serving.installation import find_triton
from nereid.serving.options import ServeOptions
from nereid.serving.process import TritonProcess

log = logging.getLogger("nereid.serve")

WATCH_SECONDS = 0.25
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 120.0


@dataclass(slots=True)
class Supervisor:
    """A context manager around a served repository; `watch` (or a thread of it) does the healing."""

    options: ServeOptions
    on_progress: Callable[[dict[str, str]], None] | None = None
    _triton: TritonProcess = field(init=False)
    _expected: dict[str, int] = field(default_factory=dict, init=False)
    _unwell: set[str] = field(default_factory=set, init=False)
    _ready: bool = field(default=False, init=False)
    _restarts: deque[float] = field(default_factory=deque, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _health: ThreadingHTTPServer | None = field(default=None, init=False)
    _watcher: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        installation = find_triton(self.options.triton)
        self.options.check(installation)
        self._triton = TritonProcess(installation, self.options)

    def __enter__(self) -> Supervisor:
        self.start()
        self._watcher = threading.Thread(target=self._watch_quietly, name="supervisor", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Triton and wait until every model is ready; raises ServingError (with nothing left running)."""
        self._health = _health_server(self)
        threading.Thread(target=self._health.serve_forever, name="health", daemon=True).start()
        try:
            self._start_triton()
        except BaseException:
            self.stop()
            raise

    def _start_triton(self) -> None:
        self._triton.start()
        self._triton.wait_until_ready(self.on_progress)
        self._expected = dict(self._triton.stubs())
        self._ready = True

    def stop(self) -> None:
        """Stop healing, then Triton, then the health port."""
        self._stopping.set()
        self._ready = False
        if self._watcher is not None:
            self._watcher.join()
        self._triton.stop()
        if self._health is not None:
            self._health.shutdown()
            self._health.server_close()
            self._health = None

    @property
    def triton_pid(self) -> int | None:
        return self._triton.pid

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether requests can be served now, and what is amiss."""
        running = self._triton.is_running()
        ready = running and self._ready and not self._unwell
        return ready, {"ready": ready, "server_running": running, "models_reloading": sorted(self._unwell)}

    def _watch_quietly(self) -> None:
        try:
            self.watch()
        except ServingError:
            log.exception("supervision has ended")

    def watch(self) -> None:
        """Heal until stopped; raises ServingError when the server keeps dying."""
        while not self._stopping.wait(WATCH_SECONDS):
            if not self._triton.is_running():
                self._restart()
                continue
            alive = self._triton.stubs()
            dead = [model for model, count in self._expected.items() if alive[model] < count]
            if dead:
                self._heal(dead)

    def _restart(self) -> None:
        self._ready = False
        now = time.monotonic()
        self._restarts.append(now)
        while now - self._restarts[0] > RESTART_WINDOW_SECONDS:
            self._restarts.popleft()
        if len(self._restarts) > MAX_RESTARTS:
            raise ServingError(f"Triton died {MAX_RESTARTS + 1} times within {RESTART_WINDOW_SECONDS:g} s; giving up")
        if not self._triton.is_running():
            log.warning("Triton died (exit code %s); starting it again", self._triton.returncode)
        self._triton.stop()
        self._triton = TritonProcess(self._triton.installation, self.options)
        try:
            self._start_triton()
        except ServingError as error:
            log.error("%s", error)

    def _heal(self, models: list[str]) -> None:
        """Bring models whose Python process died back: by a reload, or, for a model whose config.pbtxt says
        `restart_on_death`, by a restart of the server (nothing else answers requests that such a process held).
        """
        self._unwell |= set(models)
        if any(self._needs_restart(model) for model in models):
            log.warning("the Python process of %s died with requests inside; restarting Triton", ", ".join(models))
            self._restart()
        else:
            for model in models:
                log.warning("the Python process of %s died; reloading it", model)
                self._reload(model)
        self._unwell.clear()

    def _needs_restart(self, model: str) -> bool:
        config = text_format.Parse((self.options.repository / model / "config.pbtxt").read_text(), ModelConfig())
        return bool(config.parameters["restart_on_death"].string_value == "true")

    def _reload(self, model: str) -> None:
        """Unload, then load: `load` alone does nothing for a model that Triton believes to be healthy."""
        try:
            self._triton.unload(model)
            self._triton.load(model)
            self._load_dependents()
        except InferenceServerException as error:
            log.error("%s cannot be reloaded (%s); restarting Triton", model, error.message())
            self._restart()

    def _load_dependents(self) -> None:
        """Ensembles that went down with a model of theirs."""
        for model, state in self._triton.model_states().items():
            if state != "READY":
                self._triton.load(model)


def _health_server(supervisor: Supervisor) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/ready", "/live"):
                self.send_error(404)
                return
            ready, details = supervisor.readiness()
            body = json.dumps(details).encode()
            self.send_response(200 if ready or self.path == "/live" else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Health checks come every few seconds; they are not worth a line each."""

    return ThreadingHTTPServer((supervisor.options.host, supervisor.options.health_port), Handler)
