"""`nereid calibrate`: the command line of what measures feature caching and the reuse of guidance's unconditional half."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nereid_export.bar import with_bar
from nereid_export.calibrate import CalibrateOptions
from nereid_export.calibrate import calibrate as calibrate_pipeline
from nereid_export.errors import ExportError
from nereid_export.lora import Lora
from nereid_export.tiny_vae import TinyVae


def calibrate(
    repository: Annotated[Path, typer.Argument(help="An exported repository.")] = Path("build/repository"),
    checkpoint: Annotated[
        Path, typer.Option(help="The diffusers folder that it was exported from: it has the prompts, and what scores pictures.")
    ] = ...,  # type: ignore[assignment]
    lora: Annotated[
        list[str] | None, typer.Option(metavar="PATH[:SCALE]", help="LoRA weights that were fused at export; may be repeated.")
    ] = None,
    tiny_vae: Annotated[Path | None, typer.Option(help="The tiny VAE's folder, where the export had one.")] = None,
    name: Annotated[str, typer.Option(help="The pipeline's prefix, where the repository has several.")] = "",
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="Scheduler to calibrate for; may be repeated. The pipeline's own where absent."),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Numbers of steps to calibrate for; the pipeline's own where absent.")
    ] = "",
    calibration_prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one a line; the scorer's, or random words of the tokenizer, where absent."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibrations as a JSON list.")] = False,
) -> None:
    """Measure what may be kept between steps, and give thresholds their names, for requests' cache and guidance_cache.

    Feature caching wants a UNet that was exported with --cache-branch. Each name (light, balanced, aggressive) stands for the
    quickest plan whose pictures stay within its bounds: a median PSNR of 30, 25 and 20 dB against the pictures without it, and
    a loss of 1, 2 and 5 points where the checkpoint has a scorer. Servers of the repository must be started again.
    """

    def work(bar: Any) -> list[dict[str, Any]]:
        options = CalibrateOptions(
            repository=repository,
            checkpoint=checkpoint,
            name=name,
            lora=tuple(Lora.parse(text) for text in lora or []),
            tiny_vae=None if tiny_vae is None else TinyVae.open(tiny_vae),
            schedulers=tuple(scheduler or ()),
            steps=numbers_of_steps(steps),
            prompts=calibration_prompts,
        )
        return calibrate_pipeline(options, bar)

    with_bar(work, show, as_json)


def show(calibrations: list[dict[str, Any]]) -> None:
    """What each name stands for."""
    scored = any("scored_by" in its for its in calibrations)
    table = Table(title="kept between steps", box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for column in ("field", "scheduler", "steps", "level", "threshold", "whole steps", "PSNR", *(["score"] if scored else [])):
        table.add_column(column, justify="left" if column in ("field", "scheduler", "level") else "right")
    for its in calibrations:
        score = [f"{its['score_uncached']:.1f}%"] if scored else []
        table.add_row(its["field"], its["scheduler"], str(its["steps"]), "off", "", str(its["steps"]), "", *score)
        for level, found in its["levels"].items():
            score = [f"{found['score']:.1f}%"] if scored else []
            cells = (level, f"{found['threshold']:.3g}", str(found["whole_steps"]), f"{found['psnr']:.1f} dB")
            table.add_row("", "", "", *cells, *score)
    Console().print(table)


def numbers_of_steps(text: str, option: str = "--steps") -> tuple[int, ...]:
    """What such an option says; raises ExportError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ExportError(f"{option}: {text!r} is not allowed; it must be whole numbers like 20,30") from None
