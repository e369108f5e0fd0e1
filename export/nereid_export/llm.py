"""Exports a language model: built by onnxruntime-genai's builder, quantised, checked against PyTorch, published at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nereid.llm.settings import DRAFT_FOLDER, LLM_FILE
from nereid_export import configs
from nereid_export.checkpoint import read_json, read_text
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_figures import compare, feeds
from nereid_export.llm_graph import fix_cache_size, keep_some_logits, save, set_window
from nereid_export.llm_quantize import MatrixError, Scheme, measure, most_sensitive, quantize
from nereid_export.publish import adopt, locked, publish, readable_failures, require_space, staging_folder
from nereid_export.resume import RECORD, Record, resume_key

VERSIONED = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "tokenizers", "numpy")
HOME = "llm"
BLOCK_SIZES = (16, 32, 64, 128, 256)
FP32_BOUND = 1e-4
FP16_BOUND = 1e-2
SAMPLE_TOKENS = 256


class LlmPrecision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmExportOptions:
    """What `nereid export llm` was asked for.

    `eight_bit_share` is the share of the weights kept in 8 bits in an int4 engine; `draft` is the checkpoint of a smaller model
    with the same tokens, the draft model of speculative decoding; `context_length` bounds prompt and answer together, the
    checkpoint's own context where it is None.
    """

    checkpoint: Path
    out: Path
    precision: LlmPrecision = LlmPrecision.INT4
    block_size: int = 32
    symmetric: bool = True
    eight_bit_share: float = 0.15
    device: Device = Device.CPU
    name: str = ""
    sample_text: Path | None = None
    draft: Path | None = None
    context_length: int | None = None


def export_llm(options: LlmExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    check_name(options.name)
    if options.block_size not in BLOCK_SIZES:
        raise ExportError(
            f"--block-size: {options.block_size} is not allowed; it must be one of {', '.join(map(str, BLOCK_SIZES))}"
        )
    if not 0 <= options.eight_bit_share <= 1:
        raise ExportError(f"--eight-bit-share: {options.eight_bit_share} is not allowed; it must be 0 to 1")
    if options.precision is LlmPrecision.FP16 and options.device is Device.CPU:
        raise ExportError("--precision: fp16 needs --device cuda; ONNX Runtime's processor kernels take fp32, int8 and int4")
    checkpoint = LlmCheckpoint.open(options.checkpoint)
    draft = _open_draft(checkpoint, options.draft) if options.draft is not None else None
    context = checkpoint.served_context(options.context_length)
    parts = {HOME: checkpoint} if draft is None else {HOME: checkpoint, DRAFT_FOLDER: draft}
    samples = {part: _sample_ids(of, options.sample_text)[:context] for part, of in parts.items()}
    progress.total(6 if draft is None else 10)
    progress.step("reading the checkpoint")
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            parameters = checkpoint.parameters() + (0 if draft is None else draft.parameters())
            require_space(options.out.parent, 2 * 4 * parameters)
            staging.mkdir(exist_ok=True)
            built = {part: _build(of, options, samples[part], staging / part, progress) for part, of in parts.items()}
            progress.step("publishing the repository")
            manifest = _assemble(checkpoint, draft, options, built, context, staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


def _open_draft(checkpoint: LlmCheckpoint, folder: Path) -> LlmCheckpoint:
    """The draft model's checkpoint, whose tokens must be the large one's, and its logits wide enough for them.

    What a vocabulary has beyond its tokens is padding, and may be wider in one model than in the other.
    """
    from tokenizers import Tokenizer

    draft = LlmCheckpoint.open(folder)
    large, small = (Tokenizer.from_file(str(of.folder / "tokenizer.json")).get_vocab() for of in (checkpoint, draft))
    if large != small:
        raise ExportError(f"--draft: {folder} has other tokens than {checkpoint.folder}; a draft model must share its tokenizer")
    width, tokens = draft.config["vocab_size"], max(small.values()) + 1
    if width < tokens:
        raise ExportError(f"--draft: {folder} has logits for {width} tokens, and its tokenizer has {tokens}")
    return draft


def _sample_ids(checkpoint: LlmCheckpoint, file: Path | None) -> list[int]:
    """Tokens that errors and perplexity are measured on: of a text file, or random ones where none is given."""
    from tokenizers import Tokenizer

    if file is None:
        return np.random.default_rng(0).integers(0, checkpoint.config["vocab_size"], SAMPLE_TOKENS).tolist()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--sample-text: {file} cannot be read ({error.__class__.__name__})") from None
    ids = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).encode(text).ids
    if len(ids) < 32:
        raise ExportError(f"--sample-text: {file} has {len(ids)} tokens; it must have at least 32")
    return list(ids[: 4 * SAMPLE_TOKENS])


def _build(
    checkpoint: LlmCheckpoint, options: LlmExportOptions, sample: list[int], folder: Path, progress: Progress
) -> dict[str, Any]:
    """The engine and its figures in `folder`, unless an interrupted export has left them there."""
    source = {
        "name": checkpoint.folder.resolve().name,
        "sha256": checkpoint.digest(),
        "architecture": checkpoint.config["architectures"][0],
    }
    # `draft` is an engine with a record of its own.
    without_effect = ("checkpoint", "out", "name", "draft", "context_length")
    key = resume_key(options, {**source, "sample": sample}, VERSIONED, without_effect=without_effect)
    record = Record(folder / RECORD, key)
    if (done := record.read()) is not None:
        for what in ("built", "quantised", "checked", "compared"):
            progress.step(f"{what} before")
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    progress.step("building the graph")
    plain = folder / "plain"
    precision = "fp16" if options.device is Device.CUDA and options.precision is not LlmPrecision.FP32 else "fp32"
    _run_builder(checkpoint, plain, folder / "cache", precision, options.device)
    progress.step("measuring and quantising the matrices" if options.precision.startswith("int") else "preparing the engine")
    errors, eight_bit = _write_engine(checkpoint, options, plain, folder, sample)
    progress.step("checking against PyTorch")
    bound = FP16_BOUND if options.device is Device.CUDA and options.precision is not LlmPrecision.FP32 else FP32_BOUND
    figures: dict[str, Any] = dict(compare(checkpoint, plain, folder, options.device, sample, bound))
    figures["sample"] = options.sample_text.name if options.sample_text else "random tokens"
    progress.step("comparing with fp32")
    engine_bytes = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    figures |= {
        "source": source,
        "engine_bytes": engine_bytes,
        "compression": 4 * checkpoint.parameters() / engine_bytes,
        "eight_bit": eight_bit,
        "matrices": [asdict(error) for error in errors],
        "seconds": round(time.monotonic() - start, 1),
    }
    for made in (plain, folder / "cache", folder / "checkpoint"):
        shutil.rmtree(made, ignore_errors=True)
    record.write(figures)
    return figures


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
    if options.precision in (LlmPrecision.INT4, LlmPrecision.INT8):
        bits = 4 if options.precision is LlmPrecision.INT4 else 8
        scheme = Scheme(bits=bits, block_size=options.block_size, symmetric=options.symmetric)
        errors = measure(model, scheme, feeds(checkpoint, sample, model))
        if bits == 4:
            eight_bit = most_sensitive(errors, options.eight_bit_share)
        model = quantize(model, scheme, eight_bit)
    keep_some_logits(model)
    fix_cache_size(model, checkpoint.head_size)
    save(model, folder)
    return errors, eight_bit


def _assemble(
    checkpoint: LlmCheckpoint,
    draft: LlmCheckpoint | None,
    options: LlmExportOptions,
    built: dict[str, dict[str, Any]],
    context: int,
    repository: Path,
) -> dict[str, Any]:
    """Lay the whole repository out in `repository`, other models of `out` included."""
    figures = built[HOME]
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    config = configs.read_config(configs.SOURCE / HOME / "config.pbtxt")
    config.name = configs.prefixed(HOME, options.name)
    if options.device is Device.CUDA:
        place_on_gpu(config)
    folder = configs.write_model(config, HOME, repository)
    for part, target in ((HOME, folder / "1"), (DRAFT_FOLDER, folder / "1" / DRAFT_FOLDER)):
        for file in sorted((repository.parent / part).glob("model.onnx*")) if part in built else ():
            target.mkdir(exist_ok=True)
            (target / file.name).hardlink_to(file)
    (folder / "1" / "tokenizer.json").write_bytes((checkpoint.folder / "tokenizer.json").read_bytes())
    template = chat_template_of(checkpoint.folder)
    if template is not None:
        (folder / "1" / "chat_template.jinja").write_text(template, encoding="utf-8")
    layers = checkpoint.config["num_hidden_layers"]
    heads = checkpoint.config.get("num_key_value_heads") or checkpoint.config["num_attention_heads"]
    element = 2 if options.device is Device.CUDA and options.precision is not LlmPrecision.FP32 else 4
    facts = {
        "architecture": figures["source"]["architecture"],
        "precision": str(options.precision),
        "context_length": context if draft is None else min(context, draft.longest_context),
        "vocabulary": checkpoint.config["vocab_size"],
        "eos_token_ids": checkpoint.eos_token_ids(),
        "head_size": checkpoint.head_size,
        "weight_bytes": figures["engine_bytes"],
        "flops_per_token": 2 * checkpoint.active_parameters(),
        "kv_bytes_per_token": 2 * layers * heads * checkpoint.head_size * element,
        **_chat_tokens(checkpoint),
    }
    (folder / "1" / LLM_FILE).write_text(json.dumps(facts, indent=1))
    manifest = {
        "version": MANIFEST_VERSION,
        "source": figures["source"],
        "arguments": {
            key: str(value) for key, value in asdict(options).items() if key not in ("checkpoint", "out", "sample_text", "draft")
        },
        "versions": versions(VERSIONED),
        "engine": figures,
        **({} if draft is None else {"draft": built[DRAFT_FOLDER]}),
        "models": [config.name],
        "files": file_digests(repository),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, {config.name} | models_of(options.out, config.name))
    return manifest


def _chat_tokens(checkpoint: LlmCheckpoint) -> dict[str, str]:
    """What chat templates call `bos_token` and `eos_token`; the first is empty where the tokenizer adds it by itself."""
    from tokenizers import Tokenizer

    settings = checkpoint.folder / "tokenizer_config.json"
    known = read_json(settings) if settings.is_file() else {}

    def text(name: str) -> str:
        value = known.get(name) or ""
        return str(value.get("content", "")) if isinstance(value, dict) else str(value)

    adds_bos = bool(Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json")).encode("").ids)
    return {"bos_token": "" if adds_bos else text("bos_token"), "eos_token": text("eos_token")}


def chat_template_of(folder: Path) -> str | None:
    """The checkpoint's chat template; None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    settings = folder / "tokenizer_config.json"
    found = read_json(settings).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):  # several by name, of which transformers takes this one where nothing else is said
        found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}.get("default")
    return found if isinstance(found, str) else None
