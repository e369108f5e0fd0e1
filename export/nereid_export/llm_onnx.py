"""A language model's ONNX Runtime engine: onnxruntime-genai's graph, quantised, given back as one with its KV cache in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from nereid.engines.hidden_states import HIDDEN_STATES
from nereid_export.frame import Device, Progress
from nereid_export.llm_adapter_graph import add_adapters
from nereid_export.llm_adapters import Branches, read_branches
from nereid_export.llm_built import BuiltEngine
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_figures import (
    FP16_BOUND,
    FP32_BOUND,
    Pair,
    compare,
    compare_adapters,
    compare_states,
    engine_logits,
    feeds,
    load_torch,
    torch_logits,
    torch_states,
)
from nereid_export.llm_genai import build_graph, refuse_what_it_cannot_build
from nereid_export.llm_graph import fix_cache_size, keep_hidden_states, keep_some_logits, save
from nereid_export.llm_options import LlmExportOptions, LlmPrecision
from nereid_export.llm_quantize import MatrixError, measure, most_sensitive, quantize


class OnnxBuilder:
    packages: tuple[str, ...] = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "tokenizers", "numpy")
    files: tuple[str, ...] = ("model.onnx*",)
    max_rows: int = 16

    def check(self, checkpoint: LlmCheckpoint, options: LlmExportOptions) -> None:
        refuse_what_it_cannot_build(checkpoint)

    def build(
        self, checkpoint: LlmCheckpoint, options: LlmExportOptions, sample: list[int], folder: Path, progress: Progress
    ) -> BuiltEngine:
        progress.step("building the graph")
        plain, branches = folder / "plain", read_branches(checkpoint, options.adapters)
        unrounded = folder / "adapted" if branches else plain
        halves = options.device is Device.CUDA and options.precision is not LlmPrecision.FP32
        build_graph(checkpoint, plain, folder / "cache", "fp16" if halves else "fp32", options.device)
        if options.embeddings:
            model = onnx.load(str(plain / "model.onnx"), load_external_data=False)
            keep_hidden_states(model, checkpoint.config["hidden_size"])
            onnx.save_model(model, str(plain / "model.onnx"))
            del model
        progress.step(options.preparing)
        errors, eight_bit = _write_engine(checkpoint, options, branches, plain, folder, sample)
        if branches:  # they are checked before anything is rounded, too
            unrounded.mkdir()
            model = onnx.load(str(plain / "model.onnx"))
            add_adapters(model, branches, checkpoint.linear_layers())
            save(model, unrounded)
            del model
        progress.step("checking against PyTorch")
        bound = FP16_BOUND if halves else FP32_BOUND

        def both(adapter: int) -> Pair:
            plainly = engine_logits(checkpoint, unrounded, options.device, sample, keep=False, adapter=adapter)
            return plainly, engine_logits(checkpoint, folder, options.device, sample, keep=True, adapter=adapter)

        reference = load_torch(checkpoint)
        checks = compare(torch_logits(reference, sample), *both(0), sample, bound)
        if options.embeddings:
            states = engine_logits(checkpoint, unrounded, options.device, sample, keep=False, output=HIDDEN_STATES)
            rounded = engine_logits(checkpoint, folder, options.device, sample, keep=True, output=HIDDEN_STATES)
            checks |= compare_states(torch_states(reference, sample), states, rounded, bound)
        del reference
        adapters = compare_adapters(checkpoint, options.adapters, branches, both, sample, bound)
        progress.step("comparing with fp32")
        for left in (plain, unrounded, folder / "cache", folder / "checkpoint"):
            shutil.rmtree(left, ignore_errors=True)
        return BuiltEngine(matrices=errors, eight_bit=eight_bit, checks=checks, adapters=adapters)


def _write_engine(
    checkpoint: LlmCheckpoint, options: LlmExportOptions, branches: Branches, plain: Path, folder: Path, sample: list[int]
) -> tuple[list[MatrixError], list[str]]:
    model = onnx.load(str(plain / "model.onnx"))
    errors: list[MatrixError] = []
    eight_bit: list[str] = []
    if (scheme := options.scheme) is not None:
        errors = measure(model, scheme, feeds(checkpoint, sample, model))
        eight_bit = most_sensitive(errors, options.share_in_eight_bits)
        model = quantize(model, scheme, eight_bit)
    keep_some_logits(model)
    fix_cache_size(model, checkpoint.head_size)
    add_adapters(model, branches, checkpoint.linear_layers())
    save(model, folder)
    return errors, eight_bit
