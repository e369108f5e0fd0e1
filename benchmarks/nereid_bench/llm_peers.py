"""Decode loops of the peers, each in a process of its own: tokens a second at a batch size, same weights and threads."""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nereid_bench.optimum_cli import has_openvino_genai

PROMPT_TOKENS = 32


class Engine(StrEnum):
    NEREID = "Nereid's engine, int4"
    NEREID_VARIANT = "Nereid's engine, int4, not batch-invariant"
    NEREID_OPENVINO = "Nereid's engine on OpenVINO, int4"
    NEREID_OPENVINO_VARIANT = "Nereid's engine on OpenVINO, int4, 8-bit KV cache, not batch-invariant"
    GENAI = "onnxruntime-genai, int4"
    OPENVINO_GENAI = "OpenVINO GenAI, int4, its own choice of precision and KV cache"
    OPENVINO_GENAI_FP32 = "OpenVINO GenAI, int4, fp32 KV cache"
    LLAMA_CPP = "llama.cpp, Q4_0"
    TRANSFORMERS = "transformers, fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One model as its peers read it: ours (two repositories' `llm/1`), the folders of onnxruntime-genai and of OpenVINO GenAI,
    llama.cpp's file, the checkpoint."""

    engine: Path
    openvino: Path
    genai: Path
    openvino_genai: Path
    gguf: Path
    checkpoint: Path
    vocabulary: int


def has_llama_cpp() -> bool:
    """It is built from source when it is installed, so it is a peer only where somebody did so."""
    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def installed(weights: Weights) -> list[Engine]:
    """The peers that can be measured here."""
    converted = (weights.openvino_genai / "openvino_model.xml").is_file()
    genai = has_openvino_genai() and converted
    missing = {
        Engine.LLAMA_CPP: not has_llama_cpp(),
        Engine.OPENVINO_GENAI: not genai,
        Engine.OPENVINO_GENAI_FP32: not genai,
    }
    return [engine for engine in Engine if not missing.get(engine)]


Step = Callable[[int, int], float]
"""Prefills `rows` prompts and decodes so many tokens of each; seconds of the decoding alone."""


DecodeSpeed = Callable[[int, int], float]
"""Tokens a second of all rows together, given the rows and how many tokens each decodes."""


@contextmanager
def loaded(engine: Engine, weights: Weights, threads: int) -> Iterator[DecodeSpeed]:
    """The engine in a process of its own, which uses no processor time between two calls."""
    with ProcessPoolExecutor(1, mp.get_context("spawn"), _load, (engine, weights, threads)) as pool:

        def speed(rows: int, tokens: int) -> float:
            return rows * tokens / pool.submit(_decode, rows, tokens).result()

        yield speed


def bare_speed(weights: Weights, prompt: list[int], rows: int, tokens: int, threads: int) -> float:
    """Tokens a second of our engine alone, the reading of the prompt for every row included; in a fresh process."""
    with ProcessPoolExecutor(1, mp.get_context("spawn"), _set_threads, (threads,)) as pool:
        return pool.submit(_measure_bare, weights, prompt, rows, tokens, threads).result()


def _measure_bare(weights: Weights, prompt: list[int], rows: int, tokens: int, threads: int) -> float:
    from nereid.engines.onnx_causal import OnnxCausalEngine

    capacity = 256
    while capacity < len(prompt) + tokens + 2:  # as the scheduler's rows grow
        capacity *= 2
    engine = OnnxCausalEngine.load(weights.engine / "model.onnx", tokens=17 * capacity, threads=threads)
    taken = []
    for _ in range(2):  # the first is to warm up
        engine.arrange(16, capacity)
        start = time.perf_counter()
        last = [int(engine.extend(row, 0, prompt)[0].argmax()) for row in range(rows)]
        for place in range(len(prompt), len(prompt) + tokens - 1):
            last = engine.decode(last, [place] * rows).argmax(axis=1).tolist()
        taken.append(time.perf_counter() - start)
    return rows * tokens / taken[-1]


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)


_loaded: list[Step] = []
"""In an engine's own process: the engine."""


def _load(engine: Engine, weights: Weights, threads: int) -> None:
    _set_threads(threads)
    makers: dict[Engine, Callable[[Weights, int], Step]] = {
        Engine.NEREID: _nereid,
        Engine.NEREID_VARIANT: partial(_nereid, batch_invariant=False),
        Engine.NEREID_OPENVINO: _nereid_openvino,
        Engine.NEREID_OPENVINO_VARIANT: partial(_nereid_openvino, exact=False),
        Engine.GENAI: _genai,
        Engine.OPENVINO_GENAI: _openvino_genai,
        Engine.OPENVINO_GENAI_FP32: partial(_openvino_genai, precision="f32"),
        Engine.LLAMA_CPP: _llama_cpp,
        Engine.TRANSFORMERS: _transformers,
    }
    _loaded.append(makers[engine](weights, threads))


def _decode(rows: int, tokens: int) -> float:
    return _loaded[0](rows, tokens)


def _prompts(weights: Weights, rows: int) -> Any:
    return np.random.default_rng(0).integers(3, weights.vocabulary - 1, (rows, PROMPT_TOKENS))


def _nereid(weights: Weights, threads: int, batch_invariant: bool = True) -> Step:
    from nereid.engines.onnx_causal import OnnxCausalEngine

    engine = OnnxCausalEngine.load(
        weights.engine / "model.onnx", tokens=17 * 256, threads=threads, batch_invariant=batch_invariant
    )

    def step(rows: int, tokens: int) -> float:
        engine.arrange(16, 256)
        prompts = _prompts(weights, rows)
        last = [int(engine.extend(row, 0, prompts[row].tolist())[0].argmax()) for row in range(rows)]
        start = time.perf_counter()
        for place in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            last = engine.decode(last, [place] * rows).argmax(axis=1).tolist()
        return time.perf_counter() - start

    return step


def _nereid_openvino(weights: Weights, threads: int, exact: bool = True) -> Step:
    from nereid.engines.kv_blocks import Piece
    from nereid.engines.openvino_causal import OpenVinoCausalEngine

    engine = OpenVinoCausalEngine.load(
        weights.openvino / "model.xml",
        tokens=16 * 256,
        threads=threads,
        batch_invariant=exact,
        kv_cache_precision="fp32" if exact else "int8",
    )
    size = 256 // engine.block_size
    tables = [range(1 + row * size, 1 + (row + 1) * size) for row in range(16)]

    def step(rows: int, tokens: int) -> float:
        prompts = _prompts(weights, rows).tolist()
        last = engine.run([Piece(tables[row], 0, prompts[row]) for row in range(rows)]).argmax(axis=1).tolist()
        start = time.perf_counter()
        for place in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            pieces = [Piece(tables[row], place, [last[row]], decoded=True) for row in range(rows)]
            last = engine.run(pieces).argmax(axis=1).tolist()
        return time.perf_counter() - start

    return step


def _openvino_genai(weights: Weights, threads: int, precision: str | None = None) -> Step:
    import openvino as ov
    import openvino_genai as og  # pyright: ignore[reportMissingImports]

    scheduler = og.SchedulerConfig()
    scheduler.max_num_batched_tokens = scheduler.max_num_seqs = 16 * PROMPT_TOKENS  # all prompts are read in the first step
    scheduler.cache_size = 1
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if precision is not None:
        properties |= {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
    pipeline = og.ContinuousBatchingPipeline(str(weights.openvino_genai), scheduler, "CPU", properties)
    numbers = itertools.count()

    def step(rows: int, tokens: int) -> float:
        settings = og.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = tokens + 1, True, False
        prompts = [ov.Tensor(prompt[None]) for prompt in _prompts(weights, rows)]
        kept = [pipeline.add_request(next(numbers), prompt, settings) for prompt in prompts]
        pipeline.step()
        start = time.perf_counter()
        while pipeline.has_non_finished_requests():
            pipeline.step()
        taken = time.perf_counter() - start
        del kept  # a request whose handle is gone is dropped
        return taken

    return step


def _genai(weights: Weights, threads: int) -> Step:
    import onnxruntime_genai as og

    config = og.Config(str(weights.genai))
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
    model = og.Model(config)

    def step(rows: int, tokens: int) -> float:
        parameters = og.GeneratorParams(model)
        longest = PROMPT_TOKENS + tokens + 2
        parameters.set_search_options(do_sample=False, max_length=longest, min_length=longest, batch_size=rows)
        generator = og.Generator(model, parameters)
        generator.append_tokens(_prompts(weights, rows).astype(np.int32))
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        return time.perf_counter() - start

    return step


def _llama_cpp(weights: Weights, threads: int) -> Step:
    import ctypes

    import llama_cpp as lc  # pyright: ignore[reportMissingImports]

    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    model = lc.llama_model_load_from_file(str(weights.gguf).encode(), lc.llama_model_default_params())
    most = 16
    batch = lc.llama_batch_init(PROMPT_TOKENS, 0, 1)

    def run(context: Any, tokens: list[tuple[int, int, int]], wanted: int) -> list[int]:
        """Decode (token, place, row)s; the likeliest next tokens of the last `wanted`."""
        batch.n_tokens = len(tokens)
        for i, (token, place, row) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place, 1, row
            batch.logits[i] = i >= len(tokens) - wanted
        if lc.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode")
        logits = (lc.llama_get_logits_ith(context, i) for i in range(len(tokens) - wanted, len(tokens)))
        return [int(np.ctypeslib.as_array(values, (weights.vocabulary,)).argmax()) for values in logits]

    def step(rows: int, tokens: int) -> float:
        options = lc.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch = most * 256, rows, 512
        options.n_threads = options.n_threads_batch = threads
        context = lc.llama_init_from_model(model, options)
        prompts, last = _prompts(weights, rows).tolist(), []
        for row, prompt in enumerate(prompts):
            last += run(context, [(token, place, row) for place, token in enumerate(prompt)], 1)
        start = time.perf_counter()
        for place in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens):
            last = run(context, [(token, place, row) for row, token in enumerate(last)], rows)
        taken = time.perf_counter() - start
        lc.llama_free(context)
        return taken

    step.keep = silent  # type: ignore[attr-defined]
    return step


def _transformers(weights: Weights, threads: int) -> Step:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(weights.checkpoint, dtype=torch.float32).eval()

    def step(rows: int, tokens: int) -> float:
        with torch.no_grad():
            made = model(torch.from_numpy(_prompts(weights, rows)), use_cache=True)
            start = time.perf_counter()
            for _ in range(tokens):
                last = made.logits[:, -1].argmax(-1, keepdim=True)
                made = model(last, past_key_values=made.past_key_values, use_cache=True)
            return time.perf_counter() - start

    return step
