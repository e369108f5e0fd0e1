"""`nereid export llm`: the command line of the language models' export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nereid_export.bar import with_bar
from nereid_export.candidates import parse_step_rows
from nereid_export.frame import Device
from nereid_export.llm import LlmEngine, LlmExportOptions, LlmPrecision, export_llm
from nereid_export.llm_adapters import Adapter
from nereid_export.shown import show_llm


def llm(
    path: Annotated[
        Path, typer.Argument(help="A local transformers folder (Llama, Mistral, Qwen2, Qwen3, Phi-3 and 4-mini, SmolLM3, Gemma).")
    ],
    engine: Annotated[
        LlmEngine,
        typer.Option(help="What computes it; openvino has paged attention. auto builds both and takes the faster one here."),
    ] = LlmEngine.ONNXRUNTIME,
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
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="A LoRA adapter that PEFT has saved, served beside the model under a name of its own, which requests choose by "
            "lora_name, and at the gateway by model; may be repeated.",
        ),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Keep the last hidden states, of which /v1/embeddings gives the mean.")
    ] = False,
    context_length: Annotated[
        int | None, typer.Option(help="Tokens that prompt and answer may have; the checkpoint's own context where absent.")
    ] = None,
    sample_text: Annotated[
        Path | None, typer.Option(help="Text that errors and perplexity are measured on; random tokens where absent.")
    ] = None,
    step_rows: Annotated[
        str,
        typer.Option(metavar="N[,N...]", help="Answers that will be decoded together (--engine auto); 1,4,8 where absent."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export a language model: one engine with its KV cache in place, checked against PyTorch.

    Nothing appears at OUT until everything is built and checked; an interrupted export resumes where it stopped.
    """

    def asked() -> LlmExportOptions:
        return LlmExportOptions(
            checkpoint=path,
            out=out,
            engine=engine,
            precision=precision,
            block_size=block_size,
            symmetric=symmetric,
            eight_bit_share=eight_bit_share,
            device=device,
            name=name,
            sample_text=sample_text,
            draft=draft,
            context_length=context_length,
            step_rows=parse_step_rows(step_rows),
            adapters=tuple(Adapter.parse(text) for text in adapter or []),
            embeddings=embeddings,
        )

    with_bar(lambda bar: export_llm(asked(), bar), lambda manifest: show_llm(manifest, out), as_json)
