"""Exports a language model: an engine built, quantised and checked against PyTorch, published at once with all it needs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from nereid.llm.settings import DRAFT_FOLDER, LLM_FILE
from nereid_export import configs
from nereid_export.chat_templates import special_tokens_of, write_chat_templates
from nereid_export.choice import Row
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.llm_adapters import check_adapters, read_branches
from nereid_export.llm_auto import candidates, dropped, elect, measured
from nereid_export.llm_built import EngineBuilder
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_onnx import OnnxBuilder
from nereid_export.llm_openvino import OpenVinoBuilder
from nereid_export.llm_options import LlmEngine, LlmExportOptions, LlmPrecision
from nereid_export.publish import adopt, destination, locked, publish, readable_failures, require_space, staging_folder
from nereid_export.resume import RECORD, Record, resume_key

__all__ = ["LlmEngine", "LlmExportOptions", "LlmPrecision", "export_llm"]

HOME = "llm"
SAMPLE_TOKENS = 256
BUILDERS: dict[LlmEngine, EngineBuilder] = {LlmEngine.ONNXRUNTIME: OnnxBuilder(), LlmEngine.OPENVINO: OpenVinoBuilder()}


def export_llm(options: LlmExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    check_name(options.name)
    options.check()
    check_adapters(options.adapters, configs.prefixed(HOME, options.name))
    options = replace(options, out=destination(options.out))
    checkpoint = LlmCheckpoint.open(options.checkpoint)
    draft = _open_draft(checkpoint, options.draft) if options.draft is not None else None
    context = checkpoint.served_context(options.context_length)
    parts = {HOME: checkpoint} if draft is None else {HOME: checkpoint, DRAFT_FOLDER: draft}
    read_branches(checkpoint, options.adapters)  # one that does not fit is told before anything slow begins
    engines, refused = candidates(options, tuple(parts.values()), BUILDERS)
    samples = {part: _sample_ids(of, options.sample_text)[:context] for part, of in parts.items()}
    progress.total(2 + (4 * len(parts) + (options.engine is LlmEngine.AUTO)) * len(engines))
    progress.step("reading the checkpoint")
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            parameters = checkpoint.parameters() + (0 if draft is None else draft.parameters())
            adapters = sum(adapter.file.stat().st_size for adapter in options.adapters)
            require_space(options.out.parent, (2 * 4 * parameters + 4 * adapters) * len(engines))
            staging.mkdir(exist_ok=True)
            built, rows = {}, refused
            for engine in engines:
                own = {HOME: replace(options, engine=engine, step_rows=())}
                # What it proposes is checked by the large one, and nobody asks for its hidden states.
                own[DRAFT_FOLDER] = replace(own[HOME], adapters=(), embeddings=False)
                try:
                    its = {
                        part: _build(of, own[part], samples[part], staging / engine / part, progress)
                        for part, of in parts.items()
                    }
                except OSError:  # of the disk, which another engine would meet, too
                    raise
                except Exception as error:  # the engines' have no class in common
                    if options.engine is not LlmEngine.AUTO:
                        raise
                    rows.append(dropped(engine, options, error))
                    continue
                built[engine] = its
            served = options.engine
            if options.engine is LlmEngine.AUTO:
                for engine, its in built.items():
                    progress.step(f"measuring {engine}")
                    _write_facts(checkpoint, draft, options, its[HOME], context, staging / engine / HOME)
                    rows.insert(0, measured(engine, staging / engine / HOME, options, its[HOME]))
                served = elect(rows, options.expected_rows)
            progress.step("publishing the repository")
            manifest = _assemble(checkpoint, draft, options, served, built[served], rows, context, staging)
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
        raise ExportError(f"--sample-text: {file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
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
        "architecture": checkpoint.architecture,
    }
    adapters = [[adapter.name, adapter.digest()] for adapter in options.adapters]
    # `draft` is an engine with a record of its own.
    without_effect = ("checkpoint", "out", "name", "draft", "context_length", "adapters")
    builder = BUILDERS[options.engine]
    made_of = {**source, "sample": sample, "adapters": adapters}
    key = resume_key(options, made_of, builder.packages, without_effect=without_effect)
    record = Record(folder / RECORD, key)
    if (done := record.read()) is not None:
        for what in ("built", "quantised", "checked", "compared"):
            progress.step(f"{what} before")
        return done
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    engine = builder.build(checkpoint, options, sample, folder, progress)
    engine_bytes = sum(file.stat().st_size for pattern in builder.files for file in folder.glob(pattern))
    figures: dict[str, Any] = {
        **engine.figures(),
        "sample": options.sample_text.name if options.sample_text else "random tokens",
        "source": source,
        "engine_bytes": engine_bytes,
        "compression": 4 * checkpoint.parameters() / engine_bytes,
        "seconds": round(time.monotonic() - start, 1),
    }
    record.write(figures, sorted({file for pattern in builder.files for file in folder.glob(pattern)}))
    return figures


def _assemble(
    checkpoint: LlmCheckpoint,
    draft: LlmCheckpoint | None,
    options: LlmExportOptions,
    engine: LlmEngine,
    built: dict[str, dict[str, Any]],
    measured: Sequence[Row],
    context: int,
    staging: Path,
) -> dict[str, Any]:
    """Lay the whole repository out in `staging`, other models of `out` included."""
    figures, repository = built[HOME], staging / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    config = configs.read_config(configs.SOURCE / HOME / "config.pbtxt")
    config.name = configs.prefixed(HOME, options.name)
    config.parameters["engine"].string_value = str(engine)
    config.parameters["max_rows"].string_value = str(BUILDERS[engine].max_rows)
    if options.device is Device.CUDA:
        place_on_gpu(config)
    folder = configs.write_model(config, HOME, repository)
    for part, target in ((HOME, folder / "1"), (DRAFT_FOLDER, folder / "1" / DRAFT_FOLDER)):
        for pattern in BUILDERS[engine].files if part in built else ():
            target.mkdir(exist_ok=True)
            for file in sorted((staging / engine / part).glob(pattern)):
                (target / file.name).hardlink_to(file)
    (folder / "1" / "tokenizer.json").write_bytes((checkpoint.folder / "tokenizer.json").read_bytes())
    write_chat_templates(checkpoint.folder, folder / "1")
    _write_facts(checkpoint, draft, options, figures, context, folder / "1")
    manifest = {
        "version": MANIFEST_VERSION,
        "source": figures["source"],
        "arguments": {
            key: str(value)
            for key, value in asdict(options).items()
            if key not in ("checkpoint", "out", "sample_text", "draft", "adapters")
        },
        "versions": versions(BUILDERS[engine].packages),
        "engine": {"engine": str(engine), **figures},
        **({} if draft is None else {"draft": built[DRAFT_FOLDER]}),
        **({"candidates": {config.name: [row.written() for row in measured]}} if measured else {}),
        "models": [config.name],
        "files": file_digests(repository),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, {config.name} | models_of(options.out, config.name))
    return manifest


def _write_facts(
    checkpoint: LlmCheckpoint,
    draft: LlmCheckpoint | None,
    options: LlmExportOptions,
    figures: dict[str, Any],
    context: int,
    folder: Path,
) -> None:
    """What serving reads of the model."""
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
        "special_tokens": special_tokens_of(checkpoint.folder),
        "adapters": [adapter.name for adapter in options.adapters],
        "embedding_width": checkpoint.config["hidden_size"] if options.embeddings else 0,
    }
    (folder / LLM_FILE).write_text(json.dumps(facts, indent=1))
