"""What adapters cost: tokens a second of engines that were exported with none, one and several, by rows with and without them."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from nereid.llm.engine import Chunk, KvMemory
from nereid.llm.loading import load_model
from nereid.llm.sampling import Sampling
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.text import TextStream
from nereid_bench.llm_weights import export

COUNTS = (0, 1, 4, 16)
RANK = 16
_PROMPT_TOKENS = 32
_ROUNDS = 5


def adapter_speeds(
    checkpoint: Path,
    work: Path,
    batches: Sequence[int],
    tokens: int,
    threads: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """For both engines in int4, and each number of adapters of rank 16 on every linear layer but the head: medians of rounds.

    `rows N`: none of them has an adapter; `rows N, adapted`: each has the next one.
    """
    from nereid_export.llm import LlmEngine

    found = []
    for engine in (LlmEngine.ONNXRUNTIME, LlmEngine.OPENVINO):
        for count in COUNTS:
            say(f"{engine} with {count} adapters")
            version = _repository(checkpoint, work, engine, count) / "llm" / "1"
            facts = LlmFacts.read(version)
            most = max(batches)
            limits = LlmLimits(
                engine=str(engine), kv_tokens=(most + 1) * 512, max_rows=most, threads=threads, prefix_cache_megabytes=0
            )
            memory = load_model(version, facts, limits, None).memory
            row: dict[str, Any] = {"engine": str(engine), "adapters": count}
            for rows in batches:
                row[f"rows {rows}"] = _speed(memory, facts, [0] * rows, tokens)
                if count:
                    row[f"rows {rows}, adapted"] = _speed(memory, facts, [1 + place % count for place in range(rows)], tokens)
            found.append(row)
            del memory
            gc.collect()  # engines have threads that wait busily
    return found


def random_adapter(checkpoint: Path, folder: Path, seed: int) -> Path:
    """Write an adapter with random weights, as PEFT would."""
    from nereid_export.llm_checkpoint import LlmCheckpoint

    draw = np.random.default_rng(seed)
    tensors = {}
    for path, (outputs, inputs) in LlmCheckpoint.open(checkpoint).linear_layers().items():
        if path != "lm_head":
            lead = f"base_model.model.{path}.lora"
            tensors[f"{lead}_A.weight"] = draw.standard_normal((RANK, inputs), np.float32) / np.sqrt(inputs)
            tensors[f"{lead}_B.weight"] = draw.standard_normal((outputs, RANK), np.float32) * 0.01
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _repository(checkpoint: Path, work: Path, engine: Any, count: int) -> Path:
    from nereid_export.llm import LlmExportOptions
    from nereid_export.llm_adapters import Adapter

    out = work / f"{engine}-{count}-adapters"
    if not (out / "llm").is_dir():
        folders = [random_adapter(checkpoint, work / "adapters" / str(number), number) for number in range(count)]
        adapters = tuple(Adapter.parse(f"adapter-{number}={folder}") for number, folder in enumerate(folders))
        export(LlmExportOptions(checkpoint=checkpoint, out=out, engine=engine, eight_bit_share=0.0, adapters=adapters))
    return out


def _speed(memory: KvMemory, facts: LlmFacts, adapters: Sequence[int], tokens: int) -> float:
    """Tokens a second of rows by these adapters, all together."""
    draw = np.random.default_rng(0)
    answers = [_answer(draw.integers(0, facts.vocabulary, _PROMPT_TOKENS).tolist(), adapter) for adapter in adapters]
    for answer in answers:
        if not memory.begin(answer, _PROMPT_TOKENS + (_ROUNDS + 1) * tokens + 2):
            raise ValueError(f"{len(answers)} answers of {(_ROUNDS + 1) * tokens} tokens do not fit in the memory")
        memory.run([], [Chunk(answer, answer.prompt)])
        answer.computed = len(answer.prompt)
        memory.join(answer)
        answer.tokens.append(answer.prompt[0])
    taken = []
    for _ in range(_ROUNDS + 1):  # the first is to warm up
        start = time.perf_counter()
        for _ in range(tokens):
            memory.grow()
            memory.run(answers, [])
            for answer in answers:
                answer.computed += 1
                answer.tokens.append(answer.prompt[answer.computed % _PROMPT_TOKENS])
        taken.append(time.perf_counter() - start)
    for answer in answers:
        memory.release(answer)
    return len(answers) * tokens / statistics.median(taken[1:])


def _answer(prompt: list[int], adapter: int) -> GeneratedSequence:
    return GeneratedSequence(
        prompt=prompt,
        sampling=Sampling(temperature=0.0),
        max_tokens=10_000,
        stop_ids=frozenset(),
        text=TextStream(Tokenizer.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')),
        emit=_unheard,
        adapter=adapter,
    )


def _unheard(delta: object) -> None:
    """Nobody listens to an answer that is only timed."""
