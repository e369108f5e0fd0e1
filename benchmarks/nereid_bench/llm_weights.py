"""The weights that language models are measured with: ours and the peers' exports of a checkpoint, and random checkpoints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nereid.llm.settings import LlmFacts
from nereid_bench.gguf_file import write_gguf
from nereid_bench.llm_peers import Weights, has_llama_cpp
from nereid_bench.optimum_cli import LLM, converted, has_openvino_genai

if TYPE_CHECKING:
    from nereid_export.llm import LlmExportOptions

LLAMA_200M = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""200 million parameters, random: what weights do not change can be measured on them."""


def prepare(checkpoint: Path, work: Path, say: Callable[[str], None], optimum_cli: Path | None = None) -> Weights:
    """Our int4 exports and the peers' own, all without 8-bit matrices, unless they are there."""
    from nereid_export.llm import LlmEngine, LlmExportOptions

    repository, openvino, genai = work / "repository", work / "openvino", work / "genai"
    for engine, out in ((LlmEngine.ONNXRUNTIME, repository), (LlmEngine.OPENVINO, openvino)):
        if not (out / "llm").is_dir():
            say(f"exporting {checkpoint} for {engine}")
            export(LlmExportOptions(checkpoint=checkpoint, out=out, engine=engine, eight_bit_share=0.0))
    if not (genai / "genai_config.json").is_file():
        say(f"building {checkpoint} for onnxruntime-genai")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(genai)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache"), "--extra_options", "block_size=32", "accuracy_level=4"]
        subprocess.run(command, check=True, capture_output=True)
    if has_openvino_genai():
        converted(checkpoint, work / "openvino-genai", optimum_cli, *LLM)
    gguf = work / "model-q4_0.gguf"
    if has_llama_cpp() and not gguf.is_file():
        write_gguf(checkpoint, gguf)
    facts = LlmFacts.read(repository / "llm" / "1")
    return Weights(
        engine=repository / "llm" / "1",
        openvino=openvino / "llm" / "1",
        genai=genai,
        openvino_genai=work / "openvino-genai",
        gguf=gguf,
        checkpoint=checkpoint,
        vocabulary=facts.vocabulary,
    )


def export(options: LlmExportOptions) -> None:
    """As the command does it, with its bar."""
    from nereid_export.bar import progress_bar
    from nereid_export.llm import export_llm

    with progress_bar() as bar:
        export_llm(options, bar)


def random_llama(folder: Path, tokenizer_from: Path) -> Path:
    """Write the 200 M Llama with random weights; its tokenizer is borrowed and never used."""
    if not (folder / "config.json").is_file():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**LLAMA_200M, bos_token_id=None, eos_token_id=2, pad_token_id=0)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return folder


def deepened(checkpoint: Path, folder: Path, layers: int = 60, noise: float = 0.1) -> Path:
    """Write the model with random layers behind its own, whose share of the residual stream is small: as slow as a large
    model, and mostly of the small one's opinion."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        config = type(small.config)(**{**small.config.to_dict(), "num_hidden_layers": layers})
        large = type(small)(config)
        large.load_state_dict(small.state_dict(), strict=False)
        with torch.no_grad():
            for layer in large.model.layers[small.config.num_hidden_layers :]:
                for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    matrix.weight *= noise
        large.save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder
