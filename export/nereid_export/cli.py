"""`nereid export`: the command line of the exporter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nereid.engines import digests
from nereid_client.terminal import console, fail
from nereid_export.diffusion import ExportOptions, export_diffusion
from nereid_export.engines import Engine
from nereid_export.engines.base import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm import LlmExportOptions, LlmPrecision, export_llm

app = typer.Typer(
    help="Turn a checkpoint into engines inside a deployable Triton model repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Bar:
    """Progress on stderr: what is being done, how far, since when."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None)

    def total(self, steps: int) -> None:
        self._progress.update(self._task, total=steps)
        self._done = -1

    def step(self, text: str) -> None:
        self._done += 1
        self._progress.update(self._task, description=text, completed=self._done)
        if not self._progress.console.is_terminal:
            self._progress.console.print(text)

    def waiting(self, text: str) -> None:
        self._progress.console.print(text)


@app.callback()
def export() -> None:
    """Turn a checkpoint into engines inside a deployable Triton model repository."""


@app.command()
def diffusion(
    path: Annotated[Path, typer.Argument(help="A local diffusers folder (Stable Diffusion 1.x, 2.x or XL family).")],
    engine: Annotated[
        Engine, typer.Option(help="What runs the networks; tensorrt is built in the container, torch needs a C++ compiler.")
    ] = Engine.ONNXRUNTIME,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic of the engines: fp16 not with openvino, bf16 with openvino and torch."),
    ] = Precision.FP32,
    device: Annotated[Device, typer.Option(help="Where the engines will run.")] = Device.CPU,
    max_batch_size: Annotated[int, typer.Option(help="Images in one request, and half the UNet's rows.")] = 8,
    name: Annotated[str, typer.Option(help="Prefix of the models' names, for several pipelines in one repository.")] = "",
    out: Annotated[Path, typer.Option(help="The repository to write; other pipelines in it are kept.")] = Path(
        "build/repository"
    ),
    max_side: Annotated[int, typer.Option(help="Largest picture side in pixels that a TensorRT plan is built for.")] = 1024,
    max_autotune: Annotated[
        bool, typer.Option("--max-autotune", help="With torch: try several kernels for each matrix product, keep the fastest.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a diffusion pipeline: text encoder(s), UNet, VAE decoder and encoder, each checked against PyTorch.

    Nothing appears at OUT until everything is built and checked; an interrupted export resumes where it stopped.
    """
    options = ExportOptions(
        checkpoint=path,
        out=out,
        engine=engine,
        precision=precision,
        device=device,
        max_batch_size=max_batch_size,
        name=name,
        max_side=max_side,
        max_autotune=max_autotune,
    )
    manifest = _with_bar(lambda bar: export_diffusion(options, bar))
    if as_json:
        print(json.dumps(manifest))
    else:
        _show(manifest, out)


@app.command()
def llm(
    path: Annotated[Path, typer.Argument(help="A local transformers folder (Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma).")],
    precision: Annotated[LlmPrecision, typer.Option(help="Of the matrices; int4 and int8 are block-wise.")] = LlmPrecision.INT4,
    block_size: Annotated[int, typer.Option(help="Weights that share a scale: 16, 32, 64, 128 or 256.")] = 32,
    symmetric: Annotated[bool, typer.Option("--symmetric/--asymmetric", help="Without or with a zero point a block.")] = True,
    eight_bit_share: Annotated[
        float, typer.Option(help="Share of an int4 engine's weights kept in 8 bits: the matrices of largest measured error.")
    ] = 0.15,
    device: Annotated[Device, typer.Option(help="Where the engine will run.")] = Device.CPU,
    name: Annotated[str, typer.Option(help="Prefix of the model's name, for several in one repository.")] = "",
    out: Annotated[Path, typer.Option(help="The repository to write; other models in it are kept.")] = Path("build/repository"),
    draft: Annotated[
        Path | None,
        typer.Option(help="A smaller checkpoint with the same tokenizer: the draft model of speculative decoding."),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Tokens that prompt and answer may have; the checkpoint's own context where absent.")
    ] = None,
    sample_text: Annotated[
        Path | None, typer.Option(help="Text that errors and perplexity are measured on; random tokens where absent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a language model: one engine with its KV cache in place, checked against PyTorch.

    Nothing appears at OUT until everything is built and checked; an interrupted export resumes where it stopped.
    """
    options = LlmExportOptions(
        checkpoint=path,
        out=out,
        precision=precision,
        block_size=block_size,
        symmetric=symmetric,
        eight_bit_share=eight_bit_share,
        device=device,
        name=name,
        sample_text=sample_text,
        draft=draft,
        context_length=context_length,
    )
    manifest = _with_bar(lambda bar: export_llm(options, bar))
    if as_json:
        print(json.dumps(manifest))
    else:
        _show_llm(manifest, out)


@app.command()
def sign(
    repository: Annotated[Path, typer.Argument(help="A repository whose files were changed on purpose.")] = Path(
        "build/repository"
    ),
) -> None:
    """Accept a repository's files as they are now: after a change of a config.pbtxt by hand, for example.

    Nothing is served whose files differ from the digests that its export wrote; this writes them again.
    """
    try:
        changed = digests.sign(repository)
    except (digests.DigestError, OSError) as error:
        fail(error)
    console.print(f"signed: {', '.join(changed)}" if changed else "nothing was changed", highlight=False)


def _with_bar(work: Callable[[Bar], dict[str, Any]]) -> dict[str, Any]:
    """Run an export under a progress bar; its refusals are one sentence and exit status 1."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            return work(Bar(progress))
    except ExportError as error:
        fail(error)


def _show_llm(manifest: dict[str, Any], out: Path) -> None:
    engine = manifest["engine"]
    table = Table(title=f"{manifest['source']['name']} -> {out}")
    for column in ("precision", "MB", "compression", "logits error", "next-token agreement", "perplexity (fp32)", "in 8 bits"):
        table.add_column(column, justify="right")
    table.add_row(
        manifest["arguments"]["precision"],
        f"{engine['engine_bytes'] / 1e6:.1f}",
        f"{engine['compression']:.2f}x",
        f"{engine['logits_error']:.1e}",
        f"{100 * engine['next_token_agreement']:.1f}%",
        f"{engine['perplexity']:.3f} ({engine['perplexity_fp32']:.3f})",
        f"{len(engine['eight_bit'])} of {len(engine['matrices'])}",
    )
    Console().print(table)


def _show(manifest: dict[str, Any], out: Path) -> None:
    table = Table(title=f"{manifest['source']['name']} -> {out}")
    for column in ("model", "engine", "precision", "MB", "largest relative error", "bound", "same bits in any batch", "seconds"):
        table.add_column(column, justify="left" if column in ("model", "engine", "precision") else "right")
    for name, engine in manifest["engines"].items():
        worst = max(check["relative_error"] for check in engine["checks"])
        invariant = {None: "no", 1: "yes"}.get(engine["batch_invariant_from_rows"], "from 2 rows")
        table.add_row(
            name,
            engine["engine"],
            engine["precision"],
            f"{engine['bytes'] / 1e6:.1f}",
            f"{worst:.1e}",
            f"{engine['error_bound']:g}",
            invariant,
            f"{engine['seconds']:.1f}",
        )
    Console().print(table)
