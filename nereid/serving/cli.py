"""The command `nereid serve`."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from nereid.engines.compile_cache import default_folder
from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import Rules, aliases_of, tool_formats_of
from nereid.serving.gateway.service import GatewayOptions, gateway_service
from nereid.serving.gateway.tool_formats import TOOL_FORMATS
from nereid.serving.installation import Source
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Progress, Supervisor
from nereid_client.terminal import console, fail

_SERVED, _RULES = ServeOptions(repository=Path("build/repository")), Rules()
_GATEWAY = GatewayOptions(port=0)
"""Where the defaults of options stand."""


def serve(
    repository: Annotated[Path, typer.Option(help="The model repository, as `nereid export` wrote it.")] = _SERVED.repository,
    host: Annotated[str, typer.Option(help="Address to bind to; loopback only with the Triton from pip.")] = _SERVED.host,
    http_port: Annotated[
        int, typer.Option(help="Port of Triton's HTTP endpoints: infer, generate, generate_stream.")
    ] = _SERVED.http_port,
    grpc_port: Annotated[int, typer.Option(help="Port of Triton's gRPC endpoint.")] = _SERVED.grpc_port,
    metrics_port: Annotated[int, typer.Option(help="Port of Triton's Prometheus metrics, at /metrics.")] = _SERVED.metrics_port,
    health_port: Annotated[
        int, typer.Option(help="Port of the supervisor: /ready, /live, and its own metrics at /metrics.")
    ] = _SERVED.health_port,
    openai_port: Annotated[
        int, typer.Option(envvar="NEREID_OPENAI_PORT", help="Port of the gateway, an OpenAI-compatible API; 0: no gateway.")
    ] = _GATEWAY.port,
    openai_host: Annotated[
        str,
        typer.Option(
            envvar="NEREID_OPENAI_HOST",
            help="Address of the gateway; any but loopback needs a key in the environment variable NEREID_API_KEY, "
            "or --openai-keys.",
        ),
    ] = _GATEWAY.host,
    openai_keys: Annotated[
        Path | None,
        typer.Option(
            envvar="NEREID_OPENAI_KEYS",
            help="TOML file of the gateway's API keys: a table for each, [NAME], with key, and if they are to be limited "
            "requests_per_minute and requests_at_once.",
        ),
    ] = None,
    openai_cors: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose pages may ask the gateway from a browser, such as https://app.example; *: all. Repeatable."
        ),
    ] = None,
    openai_lenient: Annotated[
        bool,
        typer.Option(
            "--openai-lenient",
            "--lenient",
            help="Have the gateway ignore fields that it does not know, and name them in the header x-nereid-ignored-fields.",
        ),
    ] = _RULES.lenient,
    openai_batches: Annotated[
        Path | None,
        typer.Option(
            envvar="NEREID_OPENAI_BATCHES",
            help="Folder where the gateway keeps files and batches (/v1/files, /v1/batches), over restarts too; none without it.",
        ),
    ] = None,
    openai_batches_days: Annotated[
        int, typer.Option(help="How long a batch that has ended is known there; its files stay until they expire or are deleted.")
    ] = _RULES.batches_days,
    openai_files_megabytes: Annotated[
        int,
        typer.Option(
            help="What files there, and requests and answers of batches that are not done, may take for each key; more are "
            "refused, and its batches wait."
        ),
    ] = _RULES.files_megabytes,
    openai_files_total_megabytes: Annotated[
        int, typer.Option(help="The same for all keys together.")
    ] = _RULES.files_total_megabytes,
    openai_tools: Annotated[
        list[str] | None,
        typer.Option(
            help="[MODEL=]FORMAT: how a model writes its calls of tools, where its chat template does not show it: "
            f"{', '.join(TOOL_FORMATS)}, auto (as the template shows) or none. Repeatable."
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="One more name of a model, or of an adapter, at the gateway; answers have the name that was asked. Repeatable.",
        ),
    ] = None,
    openai_reasoning: Annotated[
        bool, typer.Option(help="Have the gateway tell thoughts (<think>...</think>) apart from the answer.")
    ] = _RULES.reasoning,
    openai_schema: Annotated[
        bool, typer.Option("--openai-schema", help="Have the gateway serve its OpenAPI description at /openapi.json.")
    ] = _RULES.schema,
    openai_stored: Annotated[
        int, typer.Option(help="Answers of /v1/responses that the gateway keeps in memory for each key; 0: none.")
    ] = _RULES.stored_responses,
    openai_url_seconds: Annotated[
        float, typer.Option(help="Seconds that a picture can be fetched by its address for (response_format: url).")
    ] = _RULES.url_seconds,
    openai_url_megabytes: Annotated[
        int, typer.Option(help="Memory for such pictures, for each key; the oldest make room for new ones.")
    ] = _RULES.url_megabytes,
    openai_url_total_megabytes: Annotated[
        int, typer.Option(help="The same for all keys together; the oldest of the key that has most make room.")
    ] = _RULES.url_total_megabytes,
    openai_public_url: Annotated[
        str,
        typer.Option(
            envvar="NEREID_OPENAI_PUBLIC_URL",
            help="What their addresses begin with, such as https://api.example, where a proxy stands before the gateway; "
            "without it the host that the caller has asked.",
        ),
    ] = _RULES.public_url,
    openai_a1111: Annotated[
        bool,
        typer.Option("--openai-a1111", "--a1111", help="Have the gateway serve AUTOMATIC1111's API (/sdapi/v1), too."),
    ] = _RULES.a1111,
    follow: Annotated[
        bool,
        typer.Option(
            help="Load models that appear in the repository while it is served, and unload those whose folders are removed."
        ),
    ] = _SERVED.follow,
    triton: Annotated[Source, typer.Option(help="Which Triton: on PATH (as in the container), or from pip.")] = _SERVED.triton,
    log_file: Annotated[Path | None, typer.Option(help="Write Triton's log here instead of to the terminal.")] = _SERVED.log_file,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder that keeps compiled engines for the next start, of this user and writable by nobody else; "
            "$XDG_CACHE_HOME/nereid or ~/.cache/nereid where absent, none where empty."
        ),
    ] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds until all models must be ready.")] = _SERVED.start_timeout,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds that requests in flight may take to finish after Ctrl-C or SIGTERM.")
    ] = _SERVED.drain_seconds,
    verbose: Annotated[bool, typer.Option(help="Turn on Triton's verbose log.")] = _SERVED.verbose,
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
        cache_dir=default_folder() if cache_dir is None else Path(cache_dir).absolute() if cache_dir else None,
        follow=follow,
        start_timeout=start_timeout,
        drain_seconds=drain_seconds,
        verbose=verbose,
    )
    try:
        if alias and not openai_port:
            raise ServingError(f"--alias: {alias[0]!r} is not allowed without a gateway; give it a port by --openai-port")
        keys = None if openai_keys is None else str(openai_keys.absolute())
        batches = None if openai_batches is None else str(openai_batches.absolute())
        rules = Rules(
            keys=keys,
            cors_origins=tuple(openai_cors or ()),
            lenient=openai_lenient,
            batches=batches,
            batches_days=openai_batches_days,
            files_megabytes=openai_files_megabytes,
            files_total_megabytes=openai_files_total_megabytes,
            tool_formats=tool_formats_of(openai_tools or ()),
            aliases=aliases_of(alias or ()),
            reasoning=openai_reasoning,
            schema=openai_schema,
            stored_responses=openai_stored,
            url_seconds=openai_url_seconds,
            url_megabytes=openai_url_megabytes,
            url_total_megabytes=openai_url_total_megabytes,
            public_url=openai_public_url.rstrip("/"),
            a1111=openai_a1111,
        )
        _run(options, GatewayOptions(host=openai_host, port=openai_port, rules=rules) if openai_port else None)
    except ServingError as error:
        fail(error)


class _StopRequestedError(BaseException):
    """SIGINT or SIGTERM asks to stop serving; no Exception, for supervision goes on after those, whatever they are."""


def _run(options: ServeOptions, gateway: GatewayOptions | None) -> None:
    running: list[Supervisor] = []
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        """The first signal drains, the next one does not wait for what is in flight."""
        nonlocal asked
        if not asked:
            asked = True
            raise _StopRequestedError
        for supervisor in running:
            supervisor.hurry()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    ending = "stopped"
    try:
        with console.status("starting Triton") as status:

            def show(processes: int, models: int) -> None:
                status.update(f"starting Triton: {models} models, {processes} Python processes run")

            supervisor = _supervisor(options, gateway, show)
            running.append(supervisor)
            supervisor.start()
            ending = "stopping"
        console.print(supervisor.load_table())
        _say_ready(options, gateway)
        supervisor.watch()
    except _StopRequestedError:
        console.print(ending)
    finally:
        for supervisor in running:
            supervisor.stop()


def _supervisor(options: ServeOptions, gateway: GatewayOptions | None, show: Progress) -> Supervisor:
    if gateway is None:
        return Supervisor(options, show)
    gateway.check(options)
    listener = gateway.bind()
    supervisor = Supervisor(options, show)
    supervisor.services.add(gateway_service(options, listener, supervisor.folder.environment("gateway"), rules=gateway.rules))
    return supervisor


def _say_ready(options: ServeOptions, gateway: GatewayOptions | None) -> None:
    address = options.address
    console.print(
        f"ready: HTTP {address}:{options.http_port}, gRPC {options.grpc_url}, "
        f"metrics {address}:{options.metrics_port}/metrics, health {address}:{options.health_port}/ready"
        + (f", OpenAI's API {gateway.address}:{gateway.port}/v1" if gateway is not None else ""),
        highlight=False,
        soft_wrap=True,
    )
