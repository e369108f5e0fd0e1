"""Writes a Llama checkpoint as a GGUF file with Q4_0 matrices, for llama.cpp as a peer; needs the package `gguf`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, file: Path) -> None:
    """Every matrix in Q4_0 (blocks of 32, as our int4 engines'), embeddings included; no tokenizer: ids go in and out."""
    import gguf  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("none")
    for part in sorted(checkpoint.glob("*.safetensors")):
        for name, weight in load_file(part).items():
            values = weight.astype(np.float32)
            if "q_proj" in name or "k_proj" in name:
                values = _interleave(values, heads if "q_proj" in name else kv_heads)
            kind = gguf.GGMLQuantizationType.Q4_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            packed = gguf.quants.quantize(values, kind) if values.ndim == 2 else values
            writer.add_tensor(_name(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    name = name.removesuffix(".weight")
    match name.removeprefix("model.").split("."):
        case ["embed_tokens"]:
            return "token_embd.weight"
        case ["norm"]:
            return "output_norm.weight"
        case ["lm_head"]:
            return "output.weight"
        case ["layers", layer, *rest]:
            return f"blk.{layer}.{_NAMES['.'.join(rest)]}.weight"
    raise ValueError(f"{name}: not a tensor of a Llama")


def _interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring values of a head, transformers those half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
