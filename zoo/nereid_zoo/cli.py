"""`nereid zoo`: the command line of the zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nereid.diffusion.solvers import ScheduleError
from nereid.layout.canvas import MAX_WIDTH, MIN_WIDTH
from nereid_client.terminal import say
from nereid_export.errors import ExportError
from nereid_zoo.layout import score as layout
from nereid_zoo.layout.batches import Task
from nereid_zoo.layout.draw import DYNAMIC, STEPS
from nereid_zoo.layout.weights import WeightsError
from nereid_zoo.page.cli import score_pictures, score_plans
from nereid_zoo.sections import score as sections
from nereid_zoo.shapes.score import (
    CHECKPOINT,
    DrawingSettings,
    held_out_captions,
    score,
    scorer_for,
    served_drawer,
    torch_drawer,
)
from nereid_zoo.shown import bar, maybe_serving
from nereid_zoo.train_cli import train as train_app

app = typer.Typer(
    help="Train and score this project's own small checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_score = typer.Typer(help="Score a checkpoint on what it was never trained on.", no_args_is_help=True)
app.add_typer(_score, name="score")
app.add_typer(train_app, name="train")
_score.command("plans")(score_plans)
_score.command("page-pictures")(score_pictures)


@_score.command("sections")
def score_sections(
    count: Annotated[int, typer.Option(help="Held-out briefs to answer.")] = 200,
    path: Annotated[Path, typer.Option(help="The transformers folder.")] = sections.CHECKPOINT,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository to score as well; a server is started for it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Prefix of the model in REPOSITORY.")] = "",
    show_wrong: Annotated[bool, typer.Option(help="List the sections that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out briefs answered right, greedily, by PyTorch and, with --repository, by the served engine."""
    rows = []
    with maybe_serving(repository, name) as client:
        writers = {"PyTorch": sections.torch_writer(path)}
        if client is not None:
            writers["served"] = sections.served_writer(client)
        for engine, write in writers.items():
            with bar(engine, count) as done:
                made = sections.score(write, sections.held_out_briefs(count), done)
            rows.append({"engine": engine, "written": made.written, "percent": made.percent})
            if show_wrong:
                for text, found in made.wrong:
                    say(f"  {text}: {'; '.join(found)}")
    if as_json:
        print(json.dumps({"checkpoint": "sections", "scores": rows}))
        return
    table = Table(title="sections: held-out briefs answered right, greedily")
    for column in ("engine", "written", "right"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        table.add_row(str(row["engine"]), str(row["written"]), f"{row['percent']:.1f}%")
    Console().print(table)


@_score.command("shapes")
def score_shapes(
    count: Annotated[int, typer.Option(help="Held-out captions to draw.")] = 200,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint's own scheduler; 20, and 4 of a student.")] = None,
    guidance: Annotated[
        list[float] | None, typer.Option(help="Guidance scales, each scored; 3, 5 and 7.5, and 1 of a student.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="The diffusers folder, drawn by PyTorch; the shipped one where nothing is named.")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository, alone or beside --path; a server is started for it.")
    ] = None,
    show_wrong: Annotated[bool, typer.Option(help="List the drawings that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out captions drawn right, by PyTorch, by served engines, or by both.

    Scheduler, steps and guidance are the checkpoint's own where nothing is said; of a repository alone, its pipeline's.
    """
    if path is None and repository is None:
        path = CHECKPOINT
    if path is not None and scorer_for(path) is None:
        raise typer.BadParameter(
            f"{path} is not allowed; it must be a painter of shapes, as `zoo train shapes` writes it", param_hint="--path"
        )
    usual = _usual(path, repository)
    steps = steps or usual.steps
    rows = []
    with maybe_serving(repository) as client:
        for scale in guidance or usual.guidance:
            drawers = {} if path is None else {"PyTorch": torch_drawer(path, steps=steps, guidance=scale)}
            if client is not None:
                drawers["served"] = served_drawer(client, steps=steps, guidance=scale)
            for name, draw in drawers.items():
                with bar(f"{name}, guidance {scale:g}", count) as done:
                    made = score(draw, held_out_captions(count), done)
                rows.append({"engine": name, "guidance": scale, "drawn": made.drawn, "percent": made.percent})
                if show_wrong:
                    for text, found in made.wrong:
                        say(f"  {text}: {'; '.join(found)}")
    if as_json:
        print(json.dumps({"checkpoint": "shapes", "scheduler": usual.scheduler, "steps": steps, "scores": rows}))
        return
    table = Table(title=f"shapes: held-out captions drawn right, {steps} steps of {usual.scheduler}")
    for column in ("engine", "guidance", "drawn", "right"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        table.add_row(str(row["engine"]), f"{row['guidance']:g}", str(row["drawn"]), f"{row['percent']:.1f}%")
    Console().print(table)


def _usual(path: Path | None, repository: Path | None) -> DrawingSettings:
    if path is not None or repository is None:
        return DrawingSettings.of(path or CHECKPOINT)
    try:
        return DrawingSettings.served(repository)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--repository") from None


@_score.command("layout")
def score_layout(
    count: Annotated[int, typer.Option(min=1, help="Held-out briefs to lay out.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Of the flow.")] = STEPS,
    seeds: Annotated[int, typer.Option(min=1, help="Layouts of each brief, for their diversity.")] = layout.SEEDS,
    task: Annotated[Task, typer.Option(help="What is given of each layout.")] = Task.ALL,
    canvas_width: Annotated[
        int | None, typer.Option(min=MIN_WIDTH, max=MAX_WIDTH, help="CSS pixels of all canvases; those of training without it.")
    ] = None,
    path: Annotated[Path, typer.Option(help="The diffusers folder.")] = layout.CHECKPOINT,
    features: Annotated[
        Path, typer.Option(help="The network that distances (FID) are measured by; none are where it is not there.")
    ] = layout.FEATURES,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository whose engine is scored as well, called in this process.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the layout model in REPOSITORY.")] = "layout",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out briefs whose layout passes all error checks, before and after repair; beside three baselines.

    A folder as `nereid zoo train layout-dynamic` writes it has a row with dynamic width as well, and where it has routers of
    tokens one with those and one with both.
    """
    if not (path / "transformer" / "config.json").is_file():
        raise typer.BadParameter(
            f"{path} is not allowed; it must be a layout transformer, as `zoo train layout` writes it", param_hint="--path"
        )
    if canvas_width is not None and task is Task.REFINE:
        raise typer.BadParameter(f"{canvas_width} is not allowed beside --task {task}", param_hint="--canvas-width")
    asked = layout.held_out_sections(count, task=task, width=canvas_width)
    try:
        drawers = {"transformer": layout.transformer_drawer(path, asked, steps=steps)}
        if (config := path / DYNAMIC / "config.json").is_file():
            drawers["dynamic width"] = layout.transformer_drawer(path, asked, steps=steps, widths=True)
            if json.loads(config.read_text(encoding="utf-8")).get("tokens"):
                drawers["dynamic tokens"] = layout.transformer_drawer(path, asked, steps=steps, tokens=True)
                drawers["dynamic width and tokens"] = layout.transformer_drawer(
                    path, asked, steps=steps, widths=True, tokens=True
                )
    except (WeightsError, ScheduleError) as error:
        raise typer.BadParameter(f"{path} is not allowed; {error}", param_hint="--path") from None
    if repository is not None:
        try:
            drawers["exported"] = layout.exported_drawer(repository / name, asked, steps=steps)
        except ExportError as error:
            raise typer.BadParameter(f"{repository} is not allowed; {error}", param_hint="--repository") from None
    try:
        distance = layout.training_distance(features) if (features / "config.json").is_file() else None
    except WeightsError as error:
        raise typer.BadParameter(f"{features} is not allowed; {error}", param_hint="--features") from None
    drawers |= layout.baselines(asked, task)
    rows = {}
    for name, drawer in drawers.items():
        with bar(name, count) as done:
            rows[name] = layout.score_layouts(drawer, asked.sections, done, seeds=seeds, distance=distance)
    if as_json:
        scores = [{"layouts": name, **row.as_json()} for name, row in rows.items()]
        print(
            json.dumps(
                {
                    "checkpoint": "layout",
                    "task": task,
                    "steps": steps,
                    "seeds": seeds,
                    "canvas_width": canvas_width,
                    "scores": scores,
                }
            )
        )
        return
    table = Table(title=f"layout: {count} held-out briefs, task {task}, {steps} steps")
    table.add_column("layouts", no_wrap=True)
    for column in ("pass", "repaired", "spotless", "move", "inversions", "diversity", "FID", "score"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        passed = f"{row.passed_before:.1f}%", f"{row.passed_after:.1f}%", f"{row.spotless:.1f}%"
        fid = "-" if row.fid is None else f"{row.fid:.2f}"
        rest = f"{row.median_move:.1f} px", str(row.inversions), f"{row.diversity:.3f}", fid, f"{row.score:.3f}"
        table.add_row(name, *passed, *rest)
    Console().print(table)
