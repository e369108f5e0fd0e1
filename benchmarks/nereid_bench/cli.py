"""`nereid bench`: the command line of this room."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from nereid.serving.errors import ServingError
from nereid_bench.compare import Plan, compare
from nereid_bench.llm import PARTS, LlmPlan, measure
from nereid_bench.peers import PeerSettings
from nereid_bench.perf import perf
from nereid_client.terminal import console, fail
from nereid_export.errors import ExportError
from nereid_zoo.sections.score import CHECKPOINT as SECTIONS
from nereid_zoo.shapes.score import CHECKPOINT

app = typer.Typer(help="Measure, peers side by side.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
REPOSITORY = Path("build/repository")


@app.command("compare")
def compare_command(
    checkpoint: Annotated[Path, typer.Option(help="The diffusers folder that REPOSITORY was exported from.")] = CHECKPOINT,
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = REPOSITORY,
    jobs: Annotated[int, typer.Option(help="Requests per load.")] = 64,
    steps: Annotated[str, typer.Option(help="Step counts to draw from.")] = "10,20,30",
    loads: Annotated[str, typer.Option(help="Arrival rates, as multiples of diffusers' capacity.")] = "0.7,1.2,4",
    side: Annotated[int, typer.Option(help="Width and height of the pictures.")] = 128,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/compare.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Nereid against diffusers and against batching servers, under the same Poisson load."""
    _compare(checkpoint, repository, jobs, _numbers(steps, int), _numbers(loads, float), side, out, as_json)


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
    from nereid_bench.random_checkpoint import make_sd15
    from nereid_export.cli import Bar
    from nereid_export.diffusion import ExportOptions, export_diffusion

    checkpoint, repository = work / "checkpoint", work / "repository"
    if not (checkpoint / "model_index.json").is_file():
        console.print("writing a random checkpoint")
        make_sd15(checkpoint, CHECKPOINT / "tokenizer")
    if not repository.is_dir():
        from rich.progress import Progress

        with Progress(console=console, transient=True) as progress:
            try:
                export_diffusion(ExportOptions(checkpoint=checkpoint, out=repository), Bar(progress))
            except ExportError as error:
                _fail(error)
    _compare(checkpoint, repository, jobs, _numbers(steps, int), _numbers(loads, float), 256, out, as_json)


@app.command("llm")
def llm_command(
    checkpoint: Annotated[Path, typer.Option(help="The transformers folder of the small model.")] = SECTIONS,
    work: Annotated[Path, typer.Option(help="Where engines are kept (about 2 GB).")] = Path("build/bench-llm"),
    batches: Annotated[str, typer.Option(help="Rows decoded at once.")] = "1,2,4,8,16",
    tokens: Annotated[int, typer.Option(help="Tokens decoded in one measurement of an engine.")] = 48,
    requests: Annotated[int, typer.Option(help="Requests of the served workloads.")] = 32,
    only: Annotated[str, typer.Option(help=f"Parts to run, of {', '.join(PARTS)}; all where absent.")] = "",
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/llm.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The language model: engines side by side, served against bare, in-flight against static batches, features on and off."""
    plan = LlmPlan(
        work=work,
        checkpoint=checkpoint,
        threads=os.cpu_count() or 1,
        batches=_numbers(batches, int),
        tokens=tokens,
        requests=requests,
        parts=_parts(only),
    )
    try:
        report = measure(plan, _say)
    except (ExportError, ServingError) as error:
        _fail(error)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    if not as_json:
        for part in plan.parts:
            _print_rows(f"{part}, {plan.threads} threads", _llm_rows(report[part]))
    print(json.dumps(report))


def _llm_rows(found: Any) -> list[dict[str, Any]]:
    """One part of the report as rows of a table: it is a list of rows, rows by name, or one row."""
    if isinstance(found, list):
        return found
    rows = found.get("rows", found)
    if all(isinstance(row, dict) for row in rows.values()):
        return [{"": name, **row} for name, row in rows.items()]
    return [rows]


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(",")) if text else PARTS
    if unknown := [part for part in chosen if part not in PARTS]:
        raise typer.BadParameter(f"{unknown[0]!r} is not a part; it must be one of {', '.join(PARTS)}", param_hint="--only")
    return chosen


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
        report = perf(repository, out, _numbers(concurrencies, int), steps, seconds, _say)
    except ServingError as error:
        _fail(error)
    if not as_json:
        for model, rows in report["models"].items():
            _print_rows(f"{model} ({out / 'perf.png'})", rows)
    print(json.dumps(report))


def _compare(
    checkpoint: Path,
    repository: Path,
    jobs: int,
    steps: tuple[int, ...],
    loads: tuple[float, ...],
    side: int,
    out: Path,
    as_json: bool,
) -> None:
    settings = PeerSettings(checkpoint=checkpoint, repository=repository, threads=os.cpu_count() or 1, side=side)
    rounds = 15 if side <= 128 else 3
    plan = Plan(settings=settings, jobs=jobs, steps=steps, loads=loads, overhead_rounds=rounds)
    try:
        report = compare(plan, _say)
    except ServingError as error:
        _fail(error)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"plan": asdict(plan), **report}, indent=1, default=str))
    if not as_json:
        _print_rows(f"{jobs} requests, steps {steps}, {side} x {side}, {settings.threads} threads", report["rows"])
        lone = report["lone_request"]
        Console().print(
            f"one lone request of {lone['steps']} steps: {lone['seconds']:.3f} s, its engines {lone['engines']:.3f} s, "
            f"everything else {100 * lone['overhead']:.1f}%"
        )
    print(json.dumps(report))


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _numbers(text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2,4") from None


def _say(text: str) -> None:
    console.print(text, highlight=False)


def _fail(error: Exception) -> NoReturn:
    fail(error)
