"""The gateway's process: `python -m nereid.serving.gateway LAUNCH`, started by the supervisor alone."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import API_KEY, Launch
from nereid.serving.heartbeat import Heart

log = logging.getLogger("nereid.gateway")


def main(argument: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    launch = Launch.from_argument(argument)
    os.set_inheritable(launch.listener, False)
    os.set_inheritable(launch.heart, False)
    heart = Heart(launch.heart)
    try:
        from nereid.serving.gateway.app import GatewaySettings, create_app
        from nereid.serving.gateway.draining import Drain
        from nereid.serving.gateway.server import GatewayServer

        settings = GatewaySettings(
            repository=Path(launch.repository),
            grpc_url=launch.grpc_url,
            metrics_url=launch.metrics_url,
            ready_url=launch.ready_url,
            api_key=os.environ.get(API_KEY, ""),
            max_body_bytes=launch.limits.body_bytes,
            max_file_bytes=launch.limits.file_bytes,
            max_picture_bytes=launch.limits.picture_bytes,
            max_pictures_bytes=launch.limits.pictures_bytes,
            max_picture_pixels=launch.limits.picture_pixels,
            first=launch.first,
            rules=launch.rules,
        )
        drain = Drain(launch.drain_seconds)
        server = GatewayServer(create_app(settings, drain), drain, heart, launch.limits)
    except ModuleNotFoundError as error:
        heart.fail(f"{error.name} is missing; install it with `pip install 'nereid[gateway]'`")
        return 1
    except (ServingError, ValueError) as error:  # a repository that it cannot read; the supervisor says the sentence
        heart.fail(str(error))
        return 1
    except Exception as error:
        log.debug("the gateway cannot be started", exc_info=True)
        heart.fail(f"{type(error).__name__}: {error}")
        return 1
    server.run(sockets=[socket.socket(fileno=launch.listener)])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
