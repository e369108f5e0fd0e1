"""`nereid bench ladder` on the command line: options and their refusals, the table, the plot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nereid.engines.processors import available_processors
from nereid.serving.errors import ServingError
from nereid_bench.arguments import MAX_AT_ONCE, names, plot_file
from nereid_bench.ladder import Ladder
from nereid_bench.ladder_plot import plot
from nereid_bench.ladder_rungs import FEW_SOLVER, MODELS, LadderPlan, PeerName, Rung
from nereid_bench.tables import print_rows
from nereid_bench.workload import GUIDANCE, SCHEDULERS
from nereid_client import NereidError
from nereid_client.terminal import INTERRUPTED, fail, say, say_error
from nereid_export.engines import Engine
from nereid_export.engines.precision import parse_precisions
from nereid_export.errors import ExportError


def ladder_command(
    work: Annotated[
        Path, typer.Option(help="Where repositories are kept (about 15 GB with Stable Diffusion's sizes), exported once.")
    ] = Path("build/bench-ladder"),
    models: Annotated[
        str, typer.Option(help=f"What to measure, of {', '.join(MODELS)}; sd15 has random weights, and takes hours.")
    ] = "shapes",
    rungs: Annotated[str, typer.Option(help="Rungs to measure; the plainest always is.")] = ",".join(Rung),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns; medians are told.")] = 3,
    pictures: Annotated[
        int, typer.Option(min=1, help="Pictures of each rung, alone, shared by the rounds; their score and PSNR are told.")
    ] = 48,
    at_once: Annotated[int, typer.Option(min=2, max=MAX_AT_ONCE, help="Requests in flight under load.")] = 8,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Steps of the plainest way.")] = 50,
    few_steps: Annotated[int, typer.Option(min=3, max=200, help="Steps of the rungs after it.")] = 20,
    few_solver: Annotated[str, typer.Option(help=f"Their scheduler, of {', '.join(SCHEDULERS)}.")] = FEW_SOLVER,
    guidance: Annotated[float, typer.Option(min=1, max=50, help="Guidance of all but the students.")] = GUIDANCE,
    cache_interval: Annotated[
        int, typer.Option(min=1, max=1000, help="Of peers that cache, and of rungs where calibrated levels have no meaning.")
    ] = 3,
    peers: Annotated[str, typer.Option(help="Peers to measure beside the rungs, by name; none where empty.")] = ",".join(
        PeerName
    ),
    engine: Annotated[Engine, typer.Option(help="What the rung `precision` and those beyond it run in.")] = Engine.AUTO,
    precision: Annotated[
        str, typer.Option(help="Their precision, as `nereid export diffusion` takes it; automatic takes hours of sd15.")
    ] = "auto",
    optimum_cli: Annotated[
        Path | None,
        typer.Option(help="Hugging Face's optimum-cli, in an environment of its own, which makes OpenVINO GenAI's models."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/ladder.json"),
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="Where the plot goes (.png, .svg, .pdf); beside the report where absent.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away the turns that earlier runs have kept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """From plain diffusers to all of Nereid, rung by rung: time, images a second, memory, PSNR, score; peers beside.

    Turns are kept: an interrupted run goes on where it stopped, and what it has measured stands in the report.
    """
    picture = plot_file(plot_to or out.with_suffix(".png"))
    if pictures < rounds:
        raise typer.BadParameter(
            f"{pictures} is not allowed with --rounds {rounds}; it must be {rounds} at least", param_hint="--pictures"
        )
    if few_solver not in SCHEDULERS:
        raise typer.BadParameter(
            f"{few_solver!r} is not one that every peer has; it must be one of {', '.join(SCHEDULERS)}", param_hint="--few-solver"
        )
    if optimum_cli is not None and shutil.which(optimum_cli) is None:
        raise typer.BadParameter(f"{optimum_cli} is no command that can be run", param_hint="--optimum-cli")
    try:
        parse_precisions(precision)
    except ExportError as error:
        raise typer.BadParameter(str(error), param_hint="--precision") from None
    plan = LadderPlan(
        work=work,
        models=names("--models", models, tuple(MODELS), "is not a model; it "),
        rungs=names("--rungs", rungs, tuple(Rung), "is not a rung; it "),
        rounds=rounds,
        pictures=pictures,
        at_once=at_once,
        steps=steps,
        few_steps=few_steps,
        few_solver=few_solver,
        guidance=guidance,
        cache_interval=cache_interval,
        engine=engine,
        precision=precision,
        peers=names("--peers", peers, tuple(PeerName), "is not a peer; it ", blank=True),
        optimum_cli=optimum_cli,
        threads=available_processors(),
        fresh=fresh,
    )

    def keep(report: dict[str, Any]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f"{out.name}.new")  # whole or not at all: it may be interrupted here
        beside.write_text(json.dumps(report, indent=1))
        beside.replace(out)

    try:
        report = Ladder(plan, say).measure(keep)
    except (ExportError, ServingError, NereidError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error("stopped; the turns that were finished are kept, and the same command goes on after them")
        raise typer.Exit(INTERRUPTED) from None
    plot(report["rungs"], picture)
    report["plot"] = str(picture)
    keep(report)
    if not as_json:
        title = (
            f"{plan.threads} threads; {plan.at_once} requests in flight under load; PSNR against {plan.steps} steps ({picture})"
        )
        print_rows(title, [_shown(row) for row in report["rungs"]])
    print(json.dumps(report))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the table has it."""
    student = "yes" if row["uses_student"] else ""
    quality = {name: f" ({psnr:.1f} dB)" for name, psnr in row["peers_psnr"].items()}
    peers = ", ".join(f"{name} {ms:.3g} ms{quality.get(name, '')}" for name, ms in row["peers"].items())
    shown = {**row, "uses_student": student, "peers": peers}
    return {name: value for name, value in shown.items() if name != "peers_psnr"}
