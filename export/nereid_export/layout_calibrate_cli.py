"""`nereid calibrate-layout`: the command line of what measures the reuse of a layout transformer's branches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nereid_export.bar import with_bar
from nereid_export.calibrate_cli import numbers_of_steps
from nereid_export.layout_adaptive import FULL
from nereid_export.layout_calibrate import BRIEFS, CalibrateLayoutOptions
from nereid_export.layout_calibrate import calibrate_layout as calibrate_model


def calibrate_layout(
    repository: Annotated[Path, typer.Argument(help="An exported repository.")] = Path("build/repository"),
    name: Annotated[str, typer.Option(help="The model's prefix, where the repository has several.")] = "",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler to calibrate for; may be repeated. The checkpoint's own where absent."),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Numbers of steps to calibrate for; the model's own where absent.")
    ] = "",
    adaptive: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Numbers of steps, below the model's default_steps, that sections may be given by their complexity, for "
            "requests' effort; none where absent.",
        ),
    ] = "",
    briefs: Annotated[
        int, typer.Option(help="Sections, of briefs such as it was trained on, that levels are measured on.")
    ] = BRIEFS,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibrations as a JSON list.")] = False,
) -> None:
    """Measure what attention and MLP may keep between steps, and give thresholds their names, for layout requests' cache.

    It wants a model that was exported with --cache. Each name (light, balanced, aggressive) stands for the quickest schedule
    whose layouts stay within its bounds: boxes that are off by 1, 2 and 4 CSS pixels from those without it (median), and a loss
    of 0.5, 1 and 2 points of layouts that pass all checks after repair. With --adaptive, four classes of sections are given the
    fewest steps that cost none of them more than a point of layouts that pass, before and after repair, with the whole
    transformer or, in an export with --widths, with dynamic width, whichever takes less time. Servers of the repository must
    be started again.
    """

    def work(bar: Any) -> list[dict[str, Any]]:
        options = CalibrateLayoutOptions(
            repository=repository,
            name=name,
            schedulers=tuple(scheduler or ()),
            steps=numbers_of_steps(steps),
            adaptive=numbers_of_steps(adaptive, "--adaptive"),
            briefs=briefs,
        )
        return calibrate_model(options, bar)

    with_bar(work, show, as_json)


def show(calibrations: list[dict[str, Any]]) -> None:
    """What each name stands for, and how many steps each class of sections takes."""
    for its in calibrations:
        if "adaptive" in its:
            show_adaptive(its["adaptive"])
    calibrations = [its for its in calibrations if "adaptive" not in its]
    if not calibrations:
        return
    table = Table(title="branches kept between steps", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for column in ("scheduler", "steps", "level", "threshold", "attention", "MLP", "reused", "off", "passed"):
        table.add_column(column, justify="left" if column in ("scheduler", "level") else "right")
    for its in calibrations:
        steps = its["steps"]
        table.add_row(its["scheduler"], str(steps), "off", "", str(steps), str(steps), "0%", "", f"{its['passed']:.1f}%")
        for level, found in its["levels"].items():
            attention, mlp = found["computed"]["attention"], found["computed"]["mlp"]
            reused = f"{100 * (1 - (attention + mlp) / (2 * steps)):.0f}%"
            cells = (f"{found['threshold']:.3g}", str(attention), str(mlp), reused, f"{found['off_px']:.2f} px")
            table.add_row("", "", level, *cells, f"{found['passed']:.1f}%")
    Console().print(table)


def show_adaptive(found: dict[str, Any]) -> None:
    """Steps by complexity."""
    table = Table(title="steps by complexity", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for column in (
        "complexity",
        "briefs",
        "steps",
        "width",
        "passed before",
        f"with {found['whole']}",
        "passed",
        f"with {found['whole']}",
    ):
        table.add_column(column, justify="right")
    for its in found["classes"]:
        shares = (its[name] for name in ("passed_before", "passed_before_whole", "passed", "passed_whole"))
        most = "above" if its["up_to"] is None else f"up to {its['up_to']:.3g}"
        width = its.get("width", FULL)
        steps = its["steps"] if width == FULL else its["dynamic_steps"]
        table.add_row(most, str(its["briefs"]), str(steps), width, *(f"{share:.1f}%" for share in shares))
    Console().print(table)
