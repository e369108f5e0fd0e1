"""`nereid bench schedulers` on the command line: options and their refusals, the tables, the plot, the recommendation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nereid.diffusion.prompts import MAX_PROMPT_CHARACTERS
from nereid.diffusion.solvers import SCHEDULERS
from nereid.serving.errors import ServingError
from nereid_bench.arguments import names, numbers, plot_file
from nereid_bench.scheduler_choice import PSNR, SCORE
from nereid_bench.scheduler_pictures import SEED_STRIDE
from nereid_bench.scheduler_plot import plot
from nereid_bench.scheduler_settings import VARIATIONS
from nereid_bench.schedulers import Say, Schedulers, SchedulersPlan
from nereid_bench.tables import print_rows
from nereid_client import NereidError
from nereid_client.terminal import INTERRUPTED, fail, say, say_error
from nereid_export.bar import progress_bar
from nereid_export.checkpoint import Checkpoint
from nereid_export.configs import prefixed
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST
from nereid_export.scorers import Scorer, scorer_for
from nereid_zoo.shapes.score import CHECKPOINT


def schedulers_command(
    repository: Annotated[Path, typer.Option(help="The exported repository.")] = Path("build/repository"),
    name: Annotated[str, typer.Option(help="Prefix of the pipeline's models.")] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The diffusers folder that REPOSITORY was exported from, for its scorer; shapes' where absent."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line, instead of the scorer's captions; nothing is scored then.")
    ] = None,
    schedulers: Annotated[str, typer.Option(help="Schedulers to measure.")] = ",".join(SCHEDULERS),
    steps: Annotated[str, typer.Option(help="Step counts.")] = "5,10,20,30",
    variations: Annotated[
        str, typer.Option(help="Of each scheduler: own is the checkpoint's; eta is 1 for ddim, 0 for tcd.")
    ] = ",".join(VARIATIONS),
    captions: Annotated[int, typer.Option(help="Captions that each setting draws.", min=1, max=SEED_STRIDE)] = 48,
    seeds: Annotated[int, typer.Option(help="Pictures of each caption, each with a seed of its own.", min=1, max=100)] = 1,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance of all pictures; the checkpoint's where absent.", min=0)
    ] = None,
    recommend: Annotated[
        float | None, typer.Option(help="Print the cheapest setting with at least this score, in percent.", min=0, max=100)
    ] = None,
    recommend_psnr: Annotated[
        float | None, typer.Option(help="Print the cheapest setting with at least this PSNR, in dB.", min=0, max=100)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Draw everything anew, what an earlier run has kept included.")] = False,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON; pictures are kept in a folder beside it.")] = Path(
        "build/bench/schedulers.json"
    ),
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="Where the plot goes (.png, .svg, .pdf); beside the report where absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Every scheduler, step count and variation: time a picture, PSNR against 200 steps, score, memory; what is worth its time.

    An interrupted run goes on where it stopped.
    """
    picture = plot_file(plot_to or out.with_suffix(".png"))
    chosen_schedulers = names("--schedulers", schedulers, tuple(map(str, SCHEDULERS)), "is not a scheduler; it ")
    chosen_variations = names("--variations", variations, VARIATIONS, "is not a variation; it ")
    chosen_steps = numbers(steps, int)
    try:
        scorer = _scorer(repository, name, checkpoint, say)
        if prompts is not None and scorer is not None:
            say("nothing is scored: the scorer knows its own captions, and not the prompts of --prompts")
            scorer = None
        if recommend is not None and scorer is None:
            raise ServingError("--recommend: it has no meaning where nothing is scored; --recommend-psnr asks for a PSNR")
        plan = SchedulersPlan(
            repository=repository,
            name=name,
            scorer=scorer,
            prompts=() if prompts is None else _read_prompts(prompts),
            schedulers=chosen_schedulers,
            steps=chosen_steps,
            variations=chosen_variations,
            captions=captions,
            seeds=seeds,
            guidance=guidance,
            work=out.with_suffix(""),
            fresh=fresh,
        )
        work = Schedulers(plan, say)
        report, measured = work.report(_draw(work))
        told = {"scored_by": report["scored_by"], **work.reference.fields, "steps": work.reference.steps}
        plot(report["rows"], measured, told, picture)
        report["plot"] = str(picture)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1))
        if not as_json:
            _print(report, [kind for kind in (SCORE, PSNR) if kind in report["rows"][0]], picture)
        bounds = {kind: bound for kind, bound in ((SCORE, recommend), (PSNR, recommend_psnr)) if bound is not None}
        if bounds:
            report["recommended"] = work.recommended(measured, bounds)
            out.write_text(json.dumps(report, indent=1))
            if not as_json:
                _print_recommended(report["recommended"])
    except (ExportError, ServingError, NereidError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error("stopped; what was drawn is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    print(json.dumps(report))


def _draw(work: Schedulers) -> int:
    with progress_bar() as bar:
        bar.total(len(work.asked))
        return work.draw(bar.step)


def _print(report: Mapping[str, Any], kinds: list[str], picture: Path) -> None:
    rows = report["rows"]
    reference = report["reference"]
    print_rows(
        f"captions: {report['captions']}, seeds of each: {report['seeds']}, guidance {report['guidance_scale']:g}; PSNR against "
        f"{reference['num_inference_steps']} steps of {reference['scheduler']}, {reference['timestep_spacing']}",
        rows,
    )
    for kind in kinds:
        front = [{key: value for key, value in row.items() if key != "front"} for row in rows if kind in row["front"].split(", ")]
        print_rows(f"Pareto front of time and {kind} ({picture})", sorted(front, key=lambda row: row["seconds"]))
    nearness = reference["psnr_of_half_the_steps"]
    say(
        f"with half its steps the reference's own solver is {nearness:.1f} dB from it: a higher PSNR does not tell settings apart"
    )
    if report["kept_of_earlier_runs"]:
        say(f"{report['kept_of_earlier_runs']} of {report['pictures']} pictures were kept of earlier runs, with their times")


def _print_recommended(found: Mapping[str, Any]) -> None:
    score = f", score {found['score']:.1f}%" if "score" in found else ""
    say(f"\ncheapest with {found['wanted']}: {found['setting']}, {found['seconds']:.3f} s{score}, PSNR {found['psnr']:.1f} dB")
    say(f"  {found['sdk']}")
    say(f"  {found['command']}")


def _scorer(repository: Path, name: str, checkpoint: Path | None, say: Say) -> Scorer | None:
    """Of the checkpoint that the repository was exported from; raises ServingError or ExportError for another one."""
    manifest = repository / prefixed("text_to_image", name) / MANIFEST
    if not manifest.is_file():
        raise ServingError(f"{manifest} is missing; `make export` puts it there")
    told = json.loads(manifest.read_text(encoding="utf-8"))
    folder = checkpoint or CHECKPOINT
    # With fused LoRA weights or a tiny VAE the digest is of all: the checkpoint's own says nothing.
    same = told["source"]["sha256"] == Checkpoint.open(folder).digest() or (
        checkpoint is not None and bool(told["arguments"].keys() & {"lora", "tiny_vae"})
    )
    if not same and checkpoint is not None:
        raise ServingError(
            f"--checkpoint: {repository} was not exported from {checkpoint}; it must be the folder that the export had, "
            f"whose name was {told['source']['name']}"
        )
    scorer = scorer_for(folder) if same else None
    if scorer is None:
        say("nothing is scored: no scorer knows this checkpoint" + ("" if same else "; name its folder with --checkpoint"))
    return scorer


def _read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts, one a line; raises ServingError."""
    try:
        lines = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise ServingError(f"--prompts: {file} cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise ServingError(f"--prompts: {file} cannot be read: {str(error.strerror).lower()}") from None
    if not lines:
        raise ServingError(f"--prompts: {file} has no prompts; it must have one a line")
    if longest := [line for line in lines if len(line) > MAX_PROMPT_CHARACTERS]:
        raise ServingError(
            f"--prompts: {len(longest[0])} characters in a prompt of {file} are not allowed; "
            f"it must be at most {MAX_PROMPT_CHARACTERS}"
        )
    return lines
