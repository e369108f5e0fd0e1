"""`nereid bench`: the command line of the benchmarks."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from nereid.serving.errors import ServingError
from nereid_bench.arguments import names, numbers
from nereid_bench.batches_cli import batches_command
from nereid_bench.beside import BesidePlan, beside
from nereid_bench.compare import Plan, compare
from nereid_bench.deaths import SIGNALS, VICTIMS, DeathsPlan, deaths
from nereid_bench.engines import MODELS, PEERS, EnginesPlan, engines
from nereid_bench.kept_cli import cache_command
from nereid_bench.ladder_cli import ladder_command
from nereid_bench.layout_cli import layout_command
from nereid_bench.llm import PARTS, LlmPlan, measure
from nereid_bench.pages_cli import page_command
from nereid_bench.peers import PeerSettings
from nereid_bench.perf import perf
from nereid_bench.refusals import RefusalsPlan, refusals
from nereid_bench.schedulers_cli import schedulers_command
from nereid_bench.tables import print_rows, report_rows, rows_of
from nereid_bench.vae_tiles import VaeTilesPlan, vae_tiles
from nereid_client.terminal import fail, say
from nereid_export.engines import BUILDERS
from nereid_export.engines.precision import OF_PIPELINES
from nereid_export.errors import ExportError
from nereid_zoo.sections.score import CHECKPOINT as SECTIONS
from nereid_zoo.shapes.score import CHECKPOINT

app = typer.Typer(help="Measure, peers side by side.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("batches")(batches_command)
app.command("cache")(cache_command)
app.command("ladder")(ladder_command)
app.command("layout")(layout_command)
app.command("page")(page_command)
REPOSITORY = Path("build/repository")
OptimumCli = Annotated[
    Path | None,
    typer.Option(
        help="Hugging Face's optimum-cli (optimum-intel, in an environment of its own), which makes the models of OpenVINO GenAI."
    ),
]


@app.command("compare")
def compare_command(
    checkpoint: Annotated[Path, typer.Option(help="The diffusers folder that REPOSITORY was exported from.")] = CHECKPOINT,
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = REPOSITORY,
    jobs: Annotated[int, typer.Option(help="Requests per load.")] = 64,
    steps: Annotated[str, typer.Option(help="Step counts to draw from.")] = "10,20,30",
    loads: Annotated[str, typer.Option(help="Arrival rates, as multiples of diffusers' capacity.")] = "0.7,1.2,4",
    side: Annotated[int, typer.Option(help="Width and height of the pictures.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds of each load in which the peers take turns; medians are told.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/compare.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Nereid against diffusers and against batching servers, under the same Poisson load."""
    settings = PeerSettings(checkpoint=checkpoint, repository=repository, threads=os.cpu_count() or 1, side=side)
    plan = Plan(settings=settings, jobs=jobs, steps=numbers(steps, int), loads=numbers(loads, float), rounds=rounds)
    _compare(plan, out, as_json)


@app.command("sd15")
def sd15_command(
    work: Annotated[Path, typer.Option(help="Where checkpoint and repository are kept (about 9 GB).")] = Path("build/sd15"),
    jobs: Annotated[int, typer.Option(help="Requests per load.")] = 10,
    steps: Annotated[str, typer.Option(help="Step counts to draw from.")] = "2,3,4",
    loads: Annotated[str, typer.Option(help="Arrival rates, as multiples of diffusers' capacity.")] = "1.2",
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/sd15.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The same comparison at Stable Diffusion 1.5's real sizes, 256 x 256, random weights."""
    from nereid_bench.random_checkpoint import sd15_at
    from nereid_export.bar import progress_bar
    from nereid_export.diffusion import export_diffusion
    from nereid_export.options import ExportOptions

    checkpoint, repository = sd15_at(work / "checkpoint", say), work / "repository"
    if not repository.is_dir():
        with progress_bar() as bar:
            try:
                export_diffusion(ExportOptions(checkpoint=checkpoint, out=repository), bar)
            except ExportError as error:
                _fail(error)
    settings = PeerSettings(checkpoint=checkpoint, repository=repository, threads=os.cpu_count() or 1, side=256)
    plan = Plan(settings=settings, jobs=jobs, steps=numbers(steps, int), loads=numbers(loads, float), overhead_rounds=3)
    _compare(plan, out, as_json)


@app.command("engines")
def engines_command(
    work: Annotated[Path, typer.Option(help="Where engines are kept (about 13 GB with Stable Diffusion's sizes).")] = Path(
        "build/bench-engines"
    ),
    models: Annotated[str, typer.Option(help="What to measure; sd15 has random weights.")] = ",".join(MODELS),
    only: Annotated[
        str, typer.Option(help="Engines and peers to measure, by name; all that this machine has where absent.")
    ] = "",
    precisions: Annotated[str, typer.Option(help="Of engines and peers; all that each has where absent.")] = "",
    rows: Annotated[str, typer.Option(help="Rows of a call.")] = "1,2,4,8",
    rounds: Annotated[int, typer.Option(help="Rounds in which all take turns; medians are told.", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="Shortest time of one measurement.")] = 1.0,
    optimum_cli: OptimumCli = None,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/engines.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The UNet on every engine and precision: ms a step, load time, size, memory, error; beside PyTorch, eager and compiled."""
    plan = EnginesPlan(
        work=work,
        models=names("--models", models, tuple(MODELS), "is not a model; it "),
        rows=numbers(rows, int),
        rounds=rounds,
        seconds=seconds,
        only=names("--only", only, (*BUILDERS, *PEERS), "is not measured; it ", blank=True),
        precisions=names("--precisions", precisions, OF_PIPELINES, "is not a precision; it ", blank=True),
        optimum_cli=optimum_cli,
    )
    try:
        rows_found = engines(plan, say)
    except ExportError as error:
        _fail(error)
    if not rows_found:
        _fail(ServingError("nothing that was asked for could be measured on this machine"))
    report_rows("ms a step of the UNet", rows_found, out, as_json)


@app.command("vae-tiles")
def vae_tiles_command(
    work: Annotated[Path, typer.Option(help="Where the engine and the pictures are kept.")] = Path("build/bench-vae-tiles"),
    sides: Annotated[str, typer.Option(help="Width and height of the pictures.")] = "512,1024,2048",
    tile: Annotated[int, typer.Option(help="Width and height of a tile.", min=64)] = 512,
    overlap: Annotated[float, typer.Option(help="What two tiles share, as a part of a tile.", min=0.05, max=1 / 3)] = 0.25,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/vae-tiles.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The VAE's decode, whole and by tiles, beside diffusers' tiling: time, memory, difference from the whole in 1/255."""
    if tile % 8:
        raise typer.BadParameter(f"{tile} is not allowed; it must be a multiple of 8", param_hint="--tile")
    rows = vae_tiles(VaeTilesPlan(work=work, sides=numbers(sides, int), tile=tile, overlap=overlap), say)
    if not rows:
        _fail(ServingError("no decode ran to its end on this machine"))
    report_rows("decode of the VAE", rows, out, as_json)


@app.command("llm")
def llm_command(
    checkpoint: Annotated[Path, typer.Option(help="The transformers folder of the small model.")] = SECTIONS,
    work: Annotated[Path, typer.Option(help="Where engines are kept (about 2 GB).")] = Path("build/bench-llm"),
    batches: Annotated[str, typer.Option(help="Rows decoded at once.")] = "1,2,4,8,16",
    tokens: Annotated[int, typer.Option(help="Tokens decoded in one measurement of an engine.")] = 48,
    requests: Annotated[int, typer.Option(help="Requests of the served workloads.")] = 32,
    only: Annotated[str, typer.Option(help=f"Parts to run, of {', '.join(PARTS)}; all where absent.")] = "",
    optimum_cli: OptimumCli = None,
    vllm: Annotated[
        Path | None,
        typer.Option(help="vLLM's command (in an environment of its own); its server is measured in the part batching."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/llm.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The language model: engines side by side, served against bare, in-flight against static batches, features on and off."""
    plan = LlmPlan(
        work=work,
        checkpoint=checkpoint,
        threads=os.cpu_count() or 1,
        batches=numbers(batches, int),
        tokens=tokens,
        requests=requests,
        parts=names("--only", only, PARTS, "is not a part; it ") if only else PARTS,
        optimum_cli=optimum_cli,
        vllm=vllm,
    )
    try:
        report = measure(plan, say)
    except (ExportError, ServingError) as error:
        _fail(error)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    if not as_json:
        for part in plan.parts:
            print_rows(f"{part}, {plan.threads} threads", rows_of(report[part]))
    print(json.dumps(report))


@app.command("beside")
def beside_command(
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = REPOSITORY,
    small: Annotated[int, typer.Option(help="Width and height of the small pictures.")] = 128,
    large: Annotated[int, typer.Option(help="Width and height of the large one beside them.")] = 1024,
    count: Annotated[int, typer.Option(help="Small pictures measured, alone and beside.")] = 20,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/beside.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Small pictures beside a large one: latency alone, beside it, and against 1.5 x alone plus one large step."""
    plan = BesidePlan(repository=repository, small=small, large=large, count=count)
    try:
        row = beside(plan, say)
    except ServingError as error:
        _fail(error)
    report_rows(f"{small} x {small} beside {large} x {large}, seconds", [row], out, as_json)


@app.command("refusals")
def refusals_command(
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = REPOSITORY,
    requests: Annotated[int, typer.Option(help="Requests sent at once.")] = 200,
    rounds: Annotated[int, typer.Option(help="How often.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/refusals.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Many image requests at once, through the SDK and through the gateway: how soon those beyond the queue are refused."""
    try:
        rows = refusals(RefusalsPlan(repository=repository, requests=requests, rounds=rounds), say)
    except ServingError as error:
        _fail(error)
    report_rows("refusals, seconds", rows, out, as_json)


@app.command("deaths")
def deaths_command(
    repository: Annotated[Path, typer.Option(help="The exported repository, with `llm`.")] = REPOSITORY,
    victims: Annotated[
        str | None,
        typer.Option(help=f"Processes to kill, of {','.join(VICTIMS)}; all that are there where absent."),
    ] = None,
    signal_name: Annotated[str, typer.Option("--signal", help="KILL, or STOP: what hangs counts as dead.")] = "KILL",
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/deaths.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Kill one process after the other while 6 images and 4 texts run: what is lost, differs, and how soon it is back.

    First with the SDK's callers, then with the gateway's.
    """
    chosen = names("--victims", victims, VICTIMS, "") if victims is not None else ()
    if signal_name not in SIGNALS:
        raise typer.BadParameter(f"{signal_name!r} must be one of {', '.join(SIGNALS)}", param_hint="--signal")
    try:
        rows = deaths(DeathsPlan(repository=repository, victims=chosen, signal_name=signal_name), say)
    except ServingError as error:
        _fail(error)
    report_rows(f"SIG{signal_name} to", rows, out, as_json)


app.command("schedulers")(schedulers_command)


@app.command("perf")
def perf_command(
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = REPOSITORY,
    concurrencies: Annotated[str, typer.Option(help="Requests under way at once.")] = "1,2,4,8,16",
    steps: Annotated[int, typer.Option(help="Denoising steps of an image.")] = 10,
    seconds: Annotated[float, typer.Option(help="One measurement window.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Where CSV, JSON and plot go.")] = Path("build/perf"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """perf_analyzer against `text_to_image`, `unet` and `llm` (32 tokens an answer) over a range of concurrencies."""
    try:
        report = perf(repository, out, numbers(concurrencies, int), steps, seconds, say)
    except ServingError as error:
        _fail(error)
    if not as_json:
        for model, rows in report["models"].items():
            print_rows(f"{model} ({out / 'perf.png'})", rows)
    print(json.dumps(report))


def _compare(plan: Plan, out: Path, as_json: bool) -> None:
    try:
        report = compare(plan, say)
    except ServingError as error:
        _fail(error)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"plan": asdict(plan), **report}, indent=1, default=str))
    if not as_json:
        settings = plan.settings
        title = f"{plan.jobs} requests, steps {plan.steps}, {settings.side} x {settings.side}, {settings.threads} threads"
        print_rows(title, report["rows"])
        lone = report["lone_request"]
        Console().print(
            f"one lone request of {lone['steps']} steps: {lone['seconds']:.3f} s, its engines {lone['engines']:.3f} s, "
            f"everything else {100 * lone['overhead']:.1f}%"
        )
    print(json.dumps(report))


def _fail(error: Exception) -> NoReturn:
    fail(error)
