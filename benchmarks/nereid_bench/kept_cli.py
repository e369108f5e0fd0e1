"""`nereid bench cache`: the command line of what measures kept features and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from nereid.serving.errors import ServingError
from nereid_bench.arguments import MAX_AT_ONCE, numbers
from nereid_bench.kept import KeptPlan, kept, parse_modes
from nereid_bench.tables import report_rows
from nereid_client import NereidError
from nereid_client.terminal import fail, say
from nereid_zoo.shapes.analyse import analyse, mistakes
from nereid_zoo.shapes.scenes import IMAGE_SIZE
from nereid_zoo.shapes.score import held_out_captions


def cache_command(
    repository: Annotated[Path, typer.Option(help="A repository that was exported with --cache-branch.")] = Path(
        "build/repository"
    ),
    modes: Annotated[
        str,
        typer.Option(help="What requests ask for: fields joined by commas, modes by semicolons; without any comes by itself."),
    ] = "cache_interval=2;cache_interval=3;cache_interval=5;guidance_cache_interval=2;cache_interval=3,guidance_cache_interval=3",
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 30,
    side: Annotated[int | None, typer.Option(help="Width and height; the checkpoint's where absent.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="The checkpoint's where absent.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; the checkpoint's where absent.")] = None,
    score: Annotated[
        bool, typer.Option(help="Count the pictures that are right, of a model of shapes; one of 8 is 12.5 points.")
    ] = False,
    prompts: Annotated[int, typer.Option(min=1, help="Pictures of each mode and load.")] = 8,
    at_once: Annotated[str, typer.Option(help="Requests in flight, for each load.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns; medians are told.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/cache.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Feature caching, guidance that is reused or left out, beside none: the UNet's time and rows a picture, and what it costs.

    Whole rows are counted; those of a request for the UNet alone would be, too.
    """
    captions, loads = held_out_captions(prompts), numbers(at_once, int)
    if beyond := [load for load in loads if not 1 <= load <= MAX_AT_ONCE]:
        raise typer.BadParameter(f"{beyond[0]} is not allowed; it must be 1 to {MAX_AT_ONCE}", param_hint="--at-once")

    def right(number: int, picture: NDArray[np.uint8]) -> bool:
        if picture.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
            shown = " x ".join(map(str, picture.shape[1::-1]))
            raise ServingError(f"--score: pictures of {shown} are not allowed; it must be {IMAGE_SIZE} x {IMAGE_SIZE}, of shapes")
        return not mistakes(analyse(picture), captions[number].demand)

    try:
        plan = KeptPlan(
            repository=repository,
            modes=parse_modes(modes),
            prompts=[caption.text for caption in captions],
            steps=steps,
            side=side,
            scheduler=scheduler,
            at_once=loads,
            rounds=rounds,
            guidance=guidance,
            right=right if score else None,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        rows = kept(plan, say)
    except (ServingError, NereidError) as error:
        fail(error)
    report_rows(f"{repository}: {steps} steps", rows, out, as_json)
