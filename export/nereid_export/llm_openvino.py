"""A language model's OpenVINO engine: written from transformers' modules, quantised by the formulas of the ONNX Runtime one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid_export.checkpoint import understood
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.llm_adapters import read_branches
from nereid_export.llm_built import BuiltEngine
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_figures import (
    FP32_BOUND,
    Pair,
    compare,
    compare_adapters,
    compare_states,
    load_torch,
    told,
    torch_states,
)
from nereid_export.llm_options import BLOCK_SIZES, LlmExportOptions
from nereid_export.llm_quantize import MatrixError, Scheme, error_of, most_sensitive, worst_first

MODEL_FILE = "model.xml"
_GEMMA2_CAP = 50.0
"""Transformers' default, where config.json does not say it."""


class OpenVinoBuilder:
    packages: tuple[str, ...] = ("torch", "transformers", "openvino", "tokenizers", "numpy")
    files: tuple[str, ...] = (MODEL_FILE, "model.bin")
    max_rows: int = 64

    def check(self, checkpoint: LlmCheckpoint, options: LlmExportOptions) -> None:
        try:
            from nereid_export.llm_ir import ACTIVATIONS
        except ImportError:
            raise ExportError("--engine openvino needs OpenVINO; install it with `pip install 'nereid[serve]'`") from None
        file, config = checkpoint.folder / "config.json", checkpoint.config
        caps = checkpoint.architecture == "Gemma2ForCausalLM"
        if caps and (cap := config.get("attn_logit_softcapping", _GEMMA2_CAP)) is not None:
            raise ExportError(
                f"{file}: attn_logit_softcapping {cap} is not allowed with --engine openvino, whose paged attention has no cap; "
                "use --engine onnxruntime"
            )
        activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
        if activation not in ACTIVATIONS:
            raise ExportError(f"{file}: hidden_act {activation!r} is not supported; it must be one of {', '.join(ACTIVATIONS)}")
        if options.scheme is not None:
            with understood(file):
                _check_blocks(checkpoint, options.block_size)

    def build(
        self, checkpoint: LlmCheckpoint, options: LlmExportOptions, sample: list[int], folder: Path, progress: Progress
    ) -> BuiltEngine:
        import openvino as ov

        from nereid_export.llm_ir import build_graph, matrices

        progress.step("building the graph")
        branches = read_branches(checkpoint, options.adapters)
        model = load_torch(checkpoint)
        plain, engine = folder / "plain.xml", folder / MODEL_FILE
        # Not `convert_model`, which sends telemetry; `save_model` does not.
        keeps = options.embeddings
        ov.save_model(build_graph(model, {}, branches, states=keeps), plain, compress_to_fp16=False)
        progress.step(options.preparing)
        scheme, linear = options.scheme, matrices(model)
        reference, seen = _logits(model, sample, {} if scheme is None else linear)
        errors: list[MatrixError] = []
        eight_bit: list[str] = []
        if scheme is not None:
            errors = _measured(linear, seen, scheme)
            eight_bit = most_sensitive(errors, options.share_in_eight_bits)
            graph = build_graph(model, _rounded(linear, scheme, eight_bit), branches, states=keeps)
            ov.save_model(graph, engine, compress_to_fp16=False)
            del graph
        states = torch_states(model, sample) if keeps else None
        progress.step("checking against PyTorch")
        del model, linear, seen

        def both(adapter: int) -> Pair:
            plainly = _engine_logits(plain, sample, adapter)
            return plainly, plainly if scheme is None else _engine_logits(engine, sample, adapter)

        checks: dict[str, Any] = dict(compare(reference, *both(0), sample, FP32_BOUND))
        if states is not None:
            unrounded = _engine_states(plain, sample)
            rounded = unrounded if scheme is None else _engine_states(engine, sample)
            checks |= compare_states(states, unrounded, rounded, FP32_BOUND)
        adapters = compare_adapters(checkpoint, options.adapters, branches, both, sample, FP32_BOUND)
        for file in (plain, plain.with_suffix(".bin")):
            if scheme is None:
                file.rename(folder / f"model{file.suffix}")
            else:
                file.unlink()
        progress.step("comparing with fp32")
        checks["kv_cache_int8"] = told(reference, _engine_logits(engine, sample, kv_cache_precision="int8"), sample)
        return BuiltEngine(matrices=errors, eight_bit=eight_bit, checks=checks, adapters=adapters)


def _check_blocks(checkpoint: LlmCheckpoint, block_size: int) -> None:
    """Every matrix's inputs must be whole blocks."""
    config = checkpoint.config
    widths = {name: int(config[name]) for name in ("hidden_size", "intermediate_size")}
    widths["num_attention_heads x head_dim"] = int(config["num_attention_heads"]) * checkpoint.head_size
    for name, width in widths.items():
        if width % block_size:
            allowed = [size for size in BLOCK_SIZES if not any(other % size for other in widths.values())]
            others = f"it must be {' or '.join(map(str, allowed))}" if allowed else "export it in fp32"
            raise ExportError(
                f"--block-size: {block_size} is not allowed with --engine openvino: "
                f"{checkpoint.folder.name}'s {name} is {width}; {others}"
            )


def _logits(model: Any, sample: list[int], seen: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """What PyTorch makes of the sample: tokens x vocabulary; and what went into the matrices `seen`."""
    import torch

    inputs: dict[str, NDArray[np.float32]] = {}

    def note(name: str) -> Any:
        def hook(module: Any, given: Any) -> None:
            inputs[name] = given[0].reshape(-1, given[0].shape[-1]).numpy()

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in seen.items()]
    with torch.no_grad():
        logits = model(torch.tensor([sample])).logits[0].numpy()
    for hook in hooks:
        hook.remove()
    return logits, inputs


def _measured(linear: dict[str, Any], seen: dict[str, NDArray[np.float32]], scheme: Scheme) -> list[MatrixError]:
    """The error of every matrix, worst first."""
    errors = []
    for name, module in linear.items():
        weight = np.ascontiguousarray(module.weight.detach().numpy().T)
        errors.append(error_of(name, weight, seen[name], scheme))
    return worst_first(errors)


def _rounded(linear: dict[str, Any], scheme: Scheme, eight_bit: list[str]) -> dict[str, Any]:
    from nereid_export.llm_ir_weights import Matrix

    made = {}
    for name, module in linear.items():
        own = replace(scheme, bits=8) if name in eight_bit else scheme
        made[name] = Matrix.of(module.weight.detach().numpy(), own)
    return made


def _engine_logits(file: Path, sample: list[int], adapter: int = 0, *, kv_cache_precision: str = "fp32") -> NDArray[np.float32]:
    """What the served engine makes of the sample, in calls as a server makes them."""
    return np.concatenate([logits for logits, _ in _calls(file, sample, adapter, kv_cache_precision)])


def _engine_states(file: Path, sample: list[int]) -> NDArray[np.float32]:
    """The last hidden states that it gives of the sample, likewise."""
    return np.concatenate([states for _, states in _calls(file, sample, states=True)])


def _calls(
    file: Path, sample: list[int], adapter: int = 0, kv_cache_precision: str = "fp32", *, states: bool = False
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Call by call the logits of all tokens, or else their last hidden states."""
    from nereid.engines.kv_blocks import Piece
    from nereid.engines.openvino_causal import OpenVinoCausalEngine

    exact = kv_cache_precision == "fp32"
    try:
        engine = OpenVinoCausalEngine.load(
            file, tokens=len(sample) + 64, batch_invariant=exact, kv_cache_precision=kv_cache_precision
        )
    except ValueError as error:
        raise ExportError(str(error)) from None
    table = range(1, engine.blocks)
    for start in range(0, len(sample), 128):
        tokens = sample[start : start + 128]
        piece = Piece(table, start, tokens, keep=0 if states else len(tokens), adapter=adapter, states=states)
        logits, found = engine.run_with_states([piece])
        yield logits.copy(), found.copy()
