"""A language model's ONNX Runtime engine: onnxruntime-genai's graph, quantised, given back as one with its KV cache in place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx

from nereid_export.errors import ExportError
from nereid_export.frame import Device, Progress
from nereid_export.llm_built import BuiltEngine
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_figures import FP16_BOUND, FP32_BOUND, compare, engine_logits, feeds, torch_logits
from nereid_export.llm_graph import fix_cache_size, keep_some_logits, save, set_window
from nereid_export.llm_options import LlmExportOptions, LlmPrecision
from nereid_export.llm_quantize import MatrixError, measure, most_sensitive, quantize


class OnnxBuilder:
    packages: tuple[str, ...] = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "tokenizers", "numpy")
    files: tuple[str, ...] = ("model.onnx*",)

    def check(self, checkpoint: LlmCheckpoint, options: LlmExportOptions) -> None:
        """Its packages are the exporter's own, and it computes every family."""

    def build(
        self, checkpoint: LlmCheckpoint, options: LlmExportOptions, sample: list[int], folder: Path, progress: Progress
    ) -> BuiltEngine:
        progress.step("building the graph")
        plain = folder / "plain"
        halves = options.device is Device.CUDA and options.precision is not LlmPrecision.FP32
        _run_builder(checkpoint, plain, folder / "cache", "fp16" if halves else "fp32", options.device)
        progress.step(options.preparing)
        errors, eight_bit = _write_engine(checkpoint, options, plain, folder, sample)
        progress.step("checking against PyTorch")
        reference = torch_logits(checkpoint, sample)
        unquantised = engine_logits(checkpoint, plain, options.device, sample, keep=False)
        made = engine_logits(checkpoint, folder, options.device, sample, keep=True)
        checks = compare(reference, unquantised, made, sample, FP16_BOUND if halves else FP32_BOUND)
        progress.step("comparing with fp32")
        for left in (plain, folder / "cache", folder / "checkpoint"):
            shutil.rmtree(left, ignore_errors=True)
        return BuiltEngine(matrices=errors, eight_bit=eight_bit, checks=checks)


def _run_builder(checkpoint: LlmCheckpoint, target: Path, cache: Path, precision: str, device: Device) -> None:
    """onnxruntime-genai's model builder, in a process of its own: it prints, and keeps memory."""
    source = checkpoint.with_older_names(target.with_name("checkpoint"))
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(target)]
    command += ["-p", precision, "-e", str(device), "-c", str(cache)]
    # Sliding windows over whole caches: a cache of the window alone would have places of its own, apart from the mask's.
    command += ["--extra_options", "windowed_kv_cache=false"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ExportError(f"{checkpoint.folder}: onnxruntime-genai's builder has failed: {last}")
    if (window := checkpoint.unlisted_window) is not None:  # the builder heeds `layer_types` alone
        model = onnx.load(str(target / "model.onnx"), load_external_data=False)
        set_window(model, window)
        onnx.save_model(model, str(target / "model.onnx"))


def _write_engine(
    checkpoint: LlmCheckpoint, options: LlmExportOptions, plain: Path, folder: Path, sample: list[int]
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
    save(model, folder)
    return errors, eight_bit
