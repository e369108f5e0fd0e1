"""`nereid zoo score plans` and `nereid zoo score page-pictures`: what pages need is scored on what training never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nereid_client.terminal import say
from nereid_zoo.page import score as pages
from nereid_zoo.sections.score import torch_writer
from nereid_zoo.shapes.score import CHECKPOINT, DrawingSettings, score, scorer_for, torch_drawer
from nereid_zoo.shown import bar


def score_plans(
    count: Annotated[int, typer.Option(min=1, help="Held-out briefs to plan for.")] = 200,
    path: Annotated[Path, typer.Option(help="The transformers folder of a planner.")] = pages.CHECKPOINT,
    show_wrong: Annotated[bool, typer.Option(help="List the plans that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out briefs whose plan fits and is complete, greedily; beside it that of the plans that rules make."""
    writers: dict[str, Any] = {"rules": pages.rules_planner}
    if (path / "config.json").is_file():
        writers["PyTorch"] = torch_writer(path)
    elif path != pages.CHECKPOINT:
        raise typer.BadParameter(
            f"{path} is not allowed; it must be a planner, as `zoo train planner` writes it", param_hint="--path"
        )
    else:
        say(f"no planner is scored: there is none in {path} (`nereid zoo train planner`)")
    rows = []
    for planner, write in writers.items():
        with bar(planner, count) as done:
            made = pages.score_plans(write, pages.held_out_pages(count), done)
        rows.append({"planner": planner, "planned": made.planned, "percent": made.percent})
        _show_wrong(made.wrong if show_wrong else ())
    _show("plans: held-out briefs planned right", "planner", "planned", rows, as_json)


def score_pictures(
    count: Annotated[int, typer.Option(min=1, help="Pictures that pages ask for.")] = 100,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint's own scheduler; 20, and 4 of a student.")] = None,
    path: Annotated[Path, typer.Option(help="The diffusers folder of a painter of shapes.")] = CHECKPOINT,
    show_wrong: Annotated[bool, typer.Option(help="List the pictures that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of pages' picture prompts that are drawn right, by PyTorch, as the shapes' analyser finds."""
    if scorer_for(path) is None:
        raise typer.BadParameter(
            f"{path} is not allowed; it must be a painter of shapes, as `zoo train shapes` writes it", param_hint="--path"
        )
    usual = DrawingSettings.of(path)
    rows = []
    for guidance in usual.guidance:
        with bar(f"guidance {guidance:g}", count) as done:
            made = score(torch_drawer(path, steps=steps or usual.steps, guidance=guidance), pages.page_captions(count), done)
        rows.append({"guidance": f"{guidance:g}", "drawn": made.drawn, "percent": made.percent})
        _show_wrong(made.wrong if show_wrong else ())
    _show("pictures of pages drawn right", "guidance", "drawn", rows, as_json)


def _show_wrong(wrong: tuple[tuple[str, list[str]], ...]) -> None:
    for text, found in wrong:
        say(f"  {text}: {'; '.join(found)}")


def _show(title: str, first: str, counted: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"title": title, "scores": rows}))
        return
    table = Table(title=title)
    for column in (first, counted, "right"):
        table.add_column(column, justify="left" if column == first else "right")
    for row in rows:
        table.add_row(str(row[first]), str(row[counted]), f"{row['percent']:.1f}%")
    Console().print(table)
