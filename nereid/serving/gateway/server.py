"""Runs the gateway on a thread beside the supervisor."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import uvicorn

from nereid.serving.errors import ServingError
from nereid.serving.gateway.app import GatewaySettings, create_app


@dataclass(slots=True)
class Gateway:
    """A context manager: listening once entered, drained and closed when left."""

    settings: GatewaySettings
    host: str
    port: int
    _server: uvicorn.Server = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        config = uvicorn.Config(
            create_app(self.settings),
            host=self.host,
            port=self.port,
            log_level="warning",
            access_log=False,  # requests are counted in Triton's metrics; bodies and keys never reach a log
            timeout_graceful_shutdown=3,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="openai-gateway", daemon=True)

    def __enter__(self) -> Gateway:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServingError(f"--openai-port: the gateway does not start on {self.host}:{self.port}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
