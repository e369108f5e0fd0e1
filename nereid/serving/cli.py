"""`nereid serve`: the command line of this room."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from nereid.serving.errors import ServingError
from nereid.serving.installation import Source, find_triton
from nereid.serving.options import ServeOptions, is_loopback, require_free
from nereid.serving.supervisor import Supervisor
from nereid_client.terminal import console, fail


def serve(
    repository: Annotated[Path, typer.Option(help="The model repository, as `nereid export` wrote it.")] = Path(
        "build/repository"
    ),
    host: Annotated[str, typer.Option(help="Address to bind to; loopback only with the Triton from pip.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP/REST and generate endpoints.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics at /metrics.")] = 8002,
    health_port: Annotated[int, typer.Option(help="The supervisor's own /ready and /live.")] = 8003,
    openai_port: Annotated[int, typer.Option(help="An OpenAI-compatible API here; 0 for none.")] = 0,
    openai_host: Annotated[
        str, typer.Option(help="Address of that API; another than loopback needs a key in NEREID_API_KEY.")
    ] = "127.0.0.1",
    triton: Annotated[Source, typer.Option(help="Which Triton: on PATH (as in the container), or from pip.")] = Source.AUTO,
    log_file: Annotated[Path | None, typer.Option(help="Write Triton's log here instead of to the terminal.")] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds until all models must be ready.")] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds that requests in flight may take to finish once the end is asked for.")
    ] = 10.0,
    verbose: Annotated[bool, typer.Option(help="Triton's verbose log.")] = False,
) -> None:
    """Serve a model repository with Triton, keep it healthy, stop it cleanly on Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = ServeOptions(
        repository=repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        health_port=health_port,
        triton=triton,
        log_file=log_file,
        start_timeout=start_timeout,
        drain_seconds=drain_seconds,
        verbose=verbose,
    )
    try:
        _run(options, _gateway(options, openai_host, openai_port) if openai_port else None)
    except ServingError as error:
        fail(error)


class _StopRequestedError(Exception):
    """A signal has asked for the end."""


def _gateway(options: ServeOptions, host: str, port: int) -> AbstractContextManager[object]:
    """The OpenAI-compatible API, not yet listening; its key comes from the environment, where no process list shows it."""
    if not options.repository.is_dir():
        options.check(find_triton(options.triton))
    try:
        from nereid.serving.gateway.app import GatewaySettings
        from nereid.serving.gateway.server import Gateway
    except ModuleNotFoundError as error:
        raise ServingError(f"--openai-port needs {error.name}; install it with `pip install 'nereid[gateway]'`") from None
    key = os.environ.get("NEREID_API_KEY", "")
    if not key and not is_loopback(host):
        raise ServingError(f"--openai-host: {host} is not allowed without a key; set NEREID_API_KEY, or use 127.0.0.1")
    if port in options.ports.values():
        raise ServingError(f"--openai-port: {port} is not allowed; another port option has it already")
    require_free("--openai-port", host, port)
    settings = GatewaySettings(
        repository=options.repository,
        grpc_url=options.grpc_url,
        metrics_url=options.metrics_url,
        api_key=key,
    )
    return Gateway(settings, host, port)


def _run(options: ServeOptions, gateway: AbstractContextManager[object] | None) -> None:
    hurry: list[Callable[[], None]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        """The first signal drains, the next one does not wait for what is in flight."""
        if hurry:
            hurry[0]()
        else:
            hurry.append(lambda: supervisor.hurry())
            raise _StopRequestedError

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with console.status("starting Triton") as status:

        def show(processes: int, models: int) -> None:
            status.update(f"starting Triton: {models} models, {processes} Python processes run")

        supervisor = Supervisor(options, show)
        try:
            supervisor.start()
        except _StopRequestedError:
            console.print("stopped")
            return
    address = options.address
    console.print(
        f"ready: HTTP {address}:{options.http_port}, gRPC {options.grpc_url}, "
        f"metrics {address}:{options.metrics_port}/metrics, health {address}:{options.health_port}/ready",
        highlight=False,
        soft_wrap=True,
    )
    try:
        with gateway or nullcontext():
            supervisor.watch()
    except _StopRequestedError:
        console.print("stopping")
    finally:
        supervisor.stop()
