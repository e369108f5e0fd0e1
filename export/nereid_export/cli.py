"""`nereid export`: the command line of the exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nereid.engines import digests
from nereid_client.terminal import fail, say
from nereid_export.bar import with_bar
from nereid_export.candidates import AutoOptions, parse_candidates, parse_step_rows
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine
from nereid_export.engines.plan_options import PlanOptions, parse_buckets, parse_capabilities
from nereid_export.engines.precision import OF_PIPELINES, Precision, parse_precisions
from nereid_export.frame import Device
from nereid_export.layout_cli import layout
from nereid_export.llm_cli import llm
from nereid_export.lora import Lora
from nereid_export.options import ExportOptions
from nereid_export.page_cli import page
from nereid_export.remeasure import remeasure as remeasure_repository
from nereid_export.shown import show_diffusion
from nereid_export.tiny_vae import TinyVae

app = typer.Typer(
    help="Turn a checkpoint into engines inside a deployable Triton model repository.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def export() -> None:
    """Turn a checkpoint into engines inside a deployable Triton model repository."""


@app.command()
def diffusion(
    path: Annotated[Path, typer.Argument(help="A local diffusers folder (Stable Diffusion 1.x, 2.x or XL family).")],
    engine: Annotated[
        Engine,
        typer.Option(
            help="What runs the networks; tensorrt is built in the container, torch needs a C++ compiler. Plans of tensorrt-rtx "
            "are built anywhere and run on an RTX card by ONNX Runtime's plugin, in a Triton installed with pip: Triton's own "
            "backends do not read them. auto builds several, measures them here, and gives each component the fastest."
        ),
    ] = Engine.ONNXRUNTIME,
    precision: Annotated[
        str,
        typer.Option(
            metavar="PRECISION[,COMPONENT=PRECISION...]",
            help=f"Arithmetic of the engines ({', '.join(OF_PIPELINES)}), with exceptions like `int8,vae_decoder=fp32`. "
            "Below fp32, pictures are drawn and compared with PyTorch's. With --engine auto also auto: fp32, bf16 or int8 by "
            "measurement.",
        ),
    ] = Precision.FP32,
    calibration_prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts, one a line, that the engines are compared on, and that int8 takes its ranges from; "
            "what the checkpoint was trained on is best. Random words of the tokenizer where absent."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:SCALE]",
            help="LoRA weights to fuse (safetensors of diffusers, PEFT or kohya's scripts), at a scale, 1 where absent; may be "
            "repeated.",
        ),
    ] = None,
    cache_branch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cut the UNet for feature caching: its outer part becomes an engine of its own, unet_shallow, with this many "
            "layers besides the outermost one; 0 is the quickest. Requests switch it on by cache or cache_interval.",
        ),
    ] = None,
    tiny_vae: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an AutoencoderTiny (diffusers) for the checkpoint's latents: its decoder is served beside the VAE's, "
            "for requests with decoder=tiny and for previews. Pictures by both are compared."
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the engines will run.")] = Device.CPU,
    max_batch_size: Annotated[int, typer.Option(help="Images in one request, and half the UNet's rows.")] = 8,
    name: Annotated[str, typer.Option(help="Prefix of the models' names, for several pipelines in one repository.")] = "",
    out: Annotated[Path, typer.Option(help="The repository to write; other pipelines in it are kept.")] = Path(
        "build/repository"
    ),
    max_side: Annotated[int, typer.Option(min=64, help="Longest side in pixels that a TensorRT plan is built for.")] = 1024,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Picture size that the engines run at once when they are loaded, and that a TensorRT plan is optimised for "
            "beside the general range; may be repeated. The checkpoint's usual size where absent.",
        ),
    ] = None,
    compute_capability: Annotated[
        str,
        typer.Option(
            metavar="X.Y,...", help="Cards that tensorrt-rtx builds for, like 8.9,12.0; all from Ampere (8.0) on where absent."
        ),
    ] = "",
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of kernels that TensorRT has measured: read if it exists, and written back.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="A TensorRT plan that later versions read, too; Triton with --backend-config=tensorrt,version-compatible=true.",
        ),
    ] = False,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming",
            help="A plan whose weights a runtime may stream from the host; Triton's TensorRT backend sets no budget for it.",
        ),
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="A TensorRT plan whose weights can be replaced later.")] = False,
    max_autotune: Annotated[
        bool, typer.Option("--max-autotune", help="With torch: try several kernels for each matrix product, keep the fastest.")
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one call, with onnxruntime and openvino; the library's own choice where 0.")
    ] = 0,
    compiled_shapes_mib: Annotated[
        int,
        typer.Option(
            min=0,
            max=1 << 20,
            help="With openvino: memory of the server for graphs compiled for one shape each, which are faster; engines too "
            "large for four of them have one graph for all shapes, as all have with 0.",
        ),
    ] = 512,
    plain_attention: Annotated[
        bool,
        typer.Option(
            "--plain-attention",
            help="With onnxruntime on the processor: attention as the checkpoint has it, which holds the scores of all pixels "
            "with all others, instead of ONNX Runtime's operator.",
        ),
    ] = False,
    candidates: Annotated[
        str,
        typer.Option(
            metavar="ENGINE,...",
            help="With auto: engines to measure, of onnxruntime, openvino and torch, which compiles for minutes; the first two "
            "where absent.",
        ),
    ] = "",
    step_rows: Annotated[
        str,
        typer.Option(
            metavar="ROWS,...",
            help="With auto: rows of the UNet's calls that the server will see, two an image with guidance; those of one, two "
            "and four images where absent.",
        ),
    ] = "",
    max_engine_mib: Annotated[
        int, typer.Option(help="With auto: MiB of memory that one engine may take with its runs; what is free where 0.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a diffusion pipeline: text encoder(s), UNet, VAE decoder(s) and encoder, each checked against PyTorch.

    Nothing appears at OUT until everything is built and checked; an interrupted export resumes where it stopped.
    """

    def asked() -> ExportOptions:
        plan = PlanOptions(
            compute_capability=parse_capabilities(compute_capability),
            timing_cache=timing_cache,
            version_compatible=version_compatible,
            weight_streaming=weight_streaming,
            refit=refit,
            bucket=parse_buckets(bucket or []),
            max_autotune=max_autotune,
            threads=threads,
            compiled_shapes_mib=compiled_shapes_mib,
            plain_attention=plain_attention,
        )
        auto = AutoOptions(
            candidates=parse_candidates(candidates), step_rows=parse_step_rows(step_rows), max_engine_mib=max_engine_mib
        )
        return ExportOptions(
            checkpoint=path,
            out=out,
            engine=engine,
            precision=parse_precisions(precision),
            calibration_prompts=calibration_prompts,
            lora=tuple(Lora.parse(text) for text in lora or []),
            cache_branch=cache_branch,
            tiny_vae=None if tiny_vae is None else TinyVae.open(tiny_vae),
            device=device,
            max_batch_size=max_batch_size,
            name=name,
            max_side=max_side,
            plan=plan,
            auto=auto,
        )

    with_bar(lambda bar: export_diffusion(asked(), bar), lambda manifest: show_diffusion(manifest, out), as_json)


app.command()(llm)
app.command()(layout)
app.command()(page)


@app.command()
def remeasure(
    repository: Annotated[Path, typer.Argument(help="A repository that was exported with --engine auto.")] = Path(
        "build/repository"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifests as a JSON list.")] = False,
) -> None:
    """Measure the engines of an export with `--engine auto` on this machine, and serve those that are fastest here.

    Nothing is built, and no checkpoint is needed. Servers of the repository must be started again.
    """

    def show(manifests: list[dict[str, Any]]) -> None:
        for manifest in manifests:
            show_diffusion(manifest, repository)

    with_bar(lambda bar: remeasure_repository(repository, bar), show, as_json)


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
    say(f"signed: {', '.join(changed)}" if changed else "nothing was changed")
