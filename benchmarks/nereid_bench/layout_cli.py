"""`nereid bench layout`: the command line of what measures the layout transformer's accelerations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nereid.serving.errors import ServingError
from nereid_bench.arguments import numbers
from nereid_bench.layout import layout, title_of
from nereid_bench.layout_ways import LayoutPlan
from nereid_bench.random_dit import DitSizes
from nereid_bench.tables import report_rows
from nereid_client import NereidError
from nereid_client.terminal import fail, say
from nereid_export.engines import Engine
from nereid_export.errors import ExportError
from nereid_zoo.layout.score import CHECKPOINT


def layout_command(
    checkpoint: Annotated[
        Path, typer.Option(help="A folder as `nereid zoo train layout` or `layout-dynamic` writes it.")
    ] = CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where the repository is kept.")] = Path("build/bench-layout"),
    engine: Annotated[
        Engine, typer.Option(help="What runs the transformer: onnxruntime, openvino or auto.")
    ] = Engine.ONNXRUNTIME,
    threads: Annotated[int, typer.Option(min=0, help="Threads of one call; the library's own choice where 0.")] = 2,
    steps: Annotated[int, typer.Option(min=3, help="Steps of all but the yardstick.")] = LayoutPlan().steps,
    fewer: Annotated[str, typer.Option(help="Step counts that are the yardstick.")] = ",".join(map(str, LayoutPlan().fewer)),
    briefs: Annotated[int, typer.Option(min=1, help="Held-out sections that pass rates are of.")] = LayoutPlan().briefs,
    calibration_briefs: Annotated[
        int, typer.Option(min=1, help="Sections, of briefs trained on, that levels are calibrated on.")
    ] = LayoutPlan().calibration_briefs,
    timed: Annotated[
        int, typer.Option(min=1, help="Sections that are drawn one by one, here and by the server.")
    ] = LayoutPlan().timed,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second of the Poisson load.")] = LayoutPlan().rate,
    at_once: Annotated[
        int, typer.Option(min=1, help="Requests in flight, for the most that are answered.")
    ] = LayoutPlan().at_once,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = LayoutPlan().seconds,
    poisson_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Of the Poisson load, where it is to be another time than --seconds.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds in which all ways take turns; medians are told.")
    ] = LayoutPlan().rounds,
    served: Annotated[bool, typer.Option(help="Start a server and put it under load.")] = True,
    served_ways: Annotated[
        str, typer.Option(help="Rows that the server is put under load with, such as `off; w4a8, 8 steps`; all where absent.")
    ] = "",
    dit: Annotated[
        bool, typer.Option(help="Time the same schedules on a random DiT of DiT-XL/2's sizes (3 GB of memory).")
    ] = True,
    w4a8: Annotated[bool, typer.Option(help="Measure the transformer with weights of 4 bits and products of 8, too.")] = True,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/layout.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """The layout transformer with everything computed, with fewer steps, with attention and MLP reused between steps, and with
    dynamic width and tokens where the checkpoint has them.

    FLOPs, time and pass rate of held-out briefs; latencies and requests a second of a server.
    """
    plan = LayoutPlan(
        checkpoint=checkpoint,
        work=work,
        engine=engine,
        threads=threads,
        steps=steps,
        fewer=numbers(fewer, int) if fewer else (),
        briefs=briefs,
        calibration_briefs=calibration_briefs,
        timed=timed,
        rate=rate,
        at_once=at_once,
        seconds=seconds,
        poisson_seconds=poisson_seconds,
        rounds=rounds,
        served=served,
        served_ways=tuple(name.strip() for name in served_ways.split(";")) if served_ways else (),
        dit=DitSizes() if dit else None,
        w4a8=w4a8,
    )
    if any(count < 1 for count in plan.fewer):
        raise typer.BadParameter(f"{fewer} is not allowed; step counts must be 1 or more", param_hint="--fewer")
    if served_ways and not served:
        raise typer.BadParameter(f"{served_ways} is not allowed with --no-served", param_hint="--served-ways")
    try:
        rows = layout(plan, say)
    except (ExportError, ServingError, NereidError) as error:
        fail(error)
    report_rows(title_of(plan), rows, out, as_json)
