"""Runs an ASGI application on a listening socket behind limits and a drain, and tells the supervisor that it works."""

from __future__ import annotations

import functools
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from nereid.serving.gateway.connections import Connections, LimitedProtocol
from nereid.serving.gateway.draining import Drain
from nereid.serving.gateway.limits import Limits, within_descriptors
from nereid.serving.heartbeat import Heart

ACCEPTED_AT_ONCE = 64
"""Connections that the loop takes on before it looks at one of them: all have descriptors by then."""
FLUSH_SECONDS = 1
"""How long callers may take to read their last bytes at the end."""
TICKS = 5
"""Of uvicorn's tenth of a second, between two beats."""


class GatewayServer(uvicorn.Server):
    """Ends in order on SIGTERM or SIGINT, at once on the second one."""

    def __init__(self, app: ASGIApp, drain: Drain, heart: Heart, limits: Limits) -> None:
        """`app` asks `drain` about every request."""
        self._heart, self._drain = heart, drain
        self._connections = Connections(within_descriptors(limits))
        config = uvicorn.Config(
            app,
            http=functools.partial(LimitedProtocol, self._connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            log_level="error",  # what strangers send is not worth a warning each
            access_log=False,  # bodies and keys never reach a log
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(limits.idle_seconds) + 60,  # `Connections` is sooner
            timeout_graceful_shutdown=FLUSH_SECONDS,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = [listener.dup() for listener in sockets or []]
        await super().startup(sockets)
        for listener in waiting:
            listener.listen(1024)  # asyncio has set it to `backlog`, which is about another thing
            listener.close()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            self._heart.beat()
            self._connections.sweep(self._connections.awake.look())
        if self._drain.is_over(time.monotonic()):
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's handler: sets flags, which the next tick reads."""
        self._drain.begin()
