"""onnxruntime-genai's builder: what it is told of a checkpoint, what of its graph is put right, what it cannot build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx

from nereid_export.checkpoint import understood
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_graph import leave_unrotated, set_embedding_scale, set_window
from nereid_export.silence import quiet

BUILDER = "onnxruntime_genai.models.builder"
_ROTATED_STEP = 16
"""GroupQueryAttention turns whole groups of so many values of a head."""


def refuse_what_it_cannot_build(checkpoint: LlmCheckpoint) -> None:
    """Raise ExportError where the graph could not be what transformers computes."""
    config, file = _transformers_config(checkpoint), checkpoint.folder / "config.json"
    rope = config.rope_parameters
    if "full_attention" in rope:
        for kind in ("full_attention", "sliding_attention"):
            if rope[kind]["rope_type"] != "default":
                raise ExportError(
                    f"{file}: rope_type {rope[kind]['rope_type']!r} of {kind} is not allowed with --engine onnxruntime, whose "
                    "builder scales all layers of Gemma 3 alike; use --engine openvino"
                )
        return
    rotated = int(checkpoint.head_size * rope.get("partial_rotary_factor", 1.0))
    if rotated % _ROTATED_STEP:
        raise ExportError(
            f"{file}: heads of {checkpoint.head_size} values, of which {rotated} are rotated, are not allowed with --engine "
            f"onnxruntime, whose attention rotates a multiple of {_ROTATED_STEP}; use --engine openvino"
        )


def build_graph(checkpoint: LlmCheckpoint, target: Path, cache: Path, precision: str, device: Device) -> None:
    """Write model.onnx to `target`, by the builder in a process of its own: it prints, and keeps memory."""
    config = _transformers_config(checkpoint)
    source = checkpoint.with_settings(_as_the_builder_reads_it(checkpoint, config), target.with_name("checkpoint"))
    arguments = ["-i", str(source), "-o", str(target), "-p", precision, "-e", str(device), "-c", str(cache)]
    # Sliding windows over whole caches: a cache of the window alone would have places of its own, apart from the mask's.
    done = run_builder([*arguments, "--extra_options", "windowed_kv_cache=false"])
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ExportError(f"{checkpoint.folder}: onnxruntime-genai's builder has failed: {last}")
    model = onnx.load(str(target / "model.onnx"), load_external_data=False)
    if (window := checkpoint.unlisted_window) is not None:  # the builder heeds `layer_types` alone
        set_window(model, window)
    if checkpoint.architecture.startswith("Gemma"):
        set_embedding_scale(model, config.hidden_size**0.5)
    if checkpoint.architecture == "SmolLM3ForCausalLM":
        leave_unrotated(model, [number for number, rotates in enumerate(config.no_rope_layers) if not rotates])
    onnx.save_model(model, str(target / "model.onnx"))


def run_builder(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The builder's process, at its end, and what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-m", BUILDER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _transformers_config(checkpoint: LlmCheckpoint) -> Any:
    from transformers import AutoConfig

    with understood(checkpoint.folder / "config.json"), quiet():
        return AutoConfig.from_pretrained(checkpoint.folder)


def _as_the_builder_reads_it(checkpoint: LlmCheckpoint, config: Any) -> dict[str, Any]:
    """Settings of config.json in the builder's terms, where they are not transformers 5's."""
    if checkpoint.architecture == "Gemma3ForCausalLM":
        rope = config.rope_parameters
        thetas = {
            "rope_theta": rope["full_attention"]["rope_theta"],
            "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        }
        # Transformers caps no attention of Gemma 3, whatever the setting says.
        return {"rope_parameters": {**rope, "rope_type": "default", **thetas}, "attn_logit_softcapping": None}
    if checkpoint.architecture == "SmolLM3ForCausalLM":  # it stumbles over layers without rotation: they are made afterwards
        return {"no_rope_layers": [1] * config.num_hidden_layers, "layer_types": config.layer_types}
    return {
        key: {**rope, "type": rope["rope_type"]}  # transformers 5 writes a RoPE's kind as `rope_type` alone
        for key in ("rope_parameters", "rope_scaling")
        if isinstance(rope := checkpoint.config.get(key), dict) and "rope_type" in rope and "type" not in rope
    }
