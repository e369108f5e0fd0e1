"""`nereid export layout`: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nereid_export.bar import with_bar
from nereid_export.engines import Engine
from nereid_export.engines.precision import Precision
from nereid_export.layout import LayoutExportOptions, export_layout
from nereid_export.layout_w4a8 import said_of_quality
from nereid_export.shown import show_diffusion


def layout(
    path: Annotated[Path, typer.Argument(help="A local folder as `nereid zoo train layout` writes it.")],
    engine: Annotated[
        Engine,
        typer.Option(
            metavar="onnxruntime|openvino|auto",
            help="What runs the transformer: onnxruntime, openvino, or auto, which measures both here and takes the faster one.",
        ),
    ] = Engine.ONNXRUNTIME,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call; the library's own choice where 0. auto tries several.")
    ] = 2,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Layouts in one call of the engine.")] = 8,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="Four more engines, in which attention and MLP are computed or reused from an earlier step; requests switch "
            "them on by cache, whose levels nereid calibrate-layout measures.",
        ),
    ] = False,
    widths: Annotated[
        bool,
        typer.Option(
            "--widths",
            help="Up to three more engines, slices of the transformer for ranges of noise levels, from a folder as nereid zoo "
            "train layout-dynamic writes it; requests switch them on by transformer_width.",
        ),
    ] = False,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens",
            help="More engines, whose MLPs pass over tokens that can do without: of a transformer trained by nereid zoo train "
            "layout-dynamic --tokens, and with --widths of its slices; requests switch them on by transformer_tokens.",
        ),
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="fp32|w4a8",
            help="fp32, or w4a8: weights stored in about 4 bits and products of 8-bit numbers, calibrated on sections such as "
            "the transformer was trained on; with onnxruntime, without --cache, --widths and --tokens.",
        ),
    ] = Precision.FP32,
    fine_tune_minutes: Annotated[
        float,
        typer.Option(
            help="Minutes in which w4a8's rounded numbers are fine-tuned, the float32 transformer being their teacher (relation "
            "distillation); none where 0.",
        ),
    ] = 0.0,
    name: Annotated[str, typer.Option(help="Prefix of the model's name, for several in one repository.")] = "",
    out: Annotated[Path, typer.Option(help="The repository to write; other models in it are kept.")] = Path("build/repository"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a layout transformer: one engine in the model that runs it, checked against PyTorch.

    Nothing appears at OUT until everything is built and checked; an interrupted export resumes where it stopped.
    """
    asked = LayoutExportOptions(
        checkpoint=path,
        out=out,
        engine=engine,
        max_batch_size=max_batch_size,
        threads=threads,
        cache=cache,
        widths=widths,
        tokens=tokens,
        precision=precision,
        fine_tune_minutes=fine_tune_minutes,
        name=name,
    )

    def show(manifest: dict[str, Any]) -> None:
        show_diffusion(manifest, out)
        for engine_said in manifest["engines"].values():
            if "pass_rate" in engine_said:
                print(said_of_quality(engine_said))

    with_bar(lambda bar: export_layout(asked, bar), show, as_json)
