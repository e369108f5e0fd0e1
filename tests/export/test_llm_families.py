"""Gemma 3, SmolLM3 and Phi-4-mini with every engine: logits and greedy tokens are transformers', beyond windows, in 4 bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("openvino")

from openvino_llm import engine_of as openvino_engine

from nereid.engines.kv_blocks import Piece
from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.llm.engine import longest_row
from nereid.llm.settings import LlmFacts
from nereid_export.errors import ExportError
from nereid_export.llm import BUILDERS, LlmEngine
from nereid_export.llm_quantize import Scheme, round_trip

import checkpoints as make
from conftest import export_llm

pytestmark = pytest.mark.torch

LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 0.5}),
    "gemma3 scaled": ("gemma3", {"rope_parameters": {**make.GEMMA3["rope_parameters"], "full_attention": LINEAR}}),
    "smollm3": ("smollm3", {"use_sliding_window": True, "sliding_window": 8}),
    "phi4-mini": ("phi4-mini", {}),
}
"""SmolLM3's windows are those of layers that do not rotate; transformers leaves the attention of Gemma 3 uncapped."""
CONTEXT = 50
"""Of Phi-4-mini, the length up to which its keys stay as they were rotated."""
PROMPTS = [np.random.default_rng(length).integers(3, 250, length).tolist() for length in (29, 3, 21)]
ANSWER = CONTEXT - 29
ENGINES = list(BUILDERS)

Decode = Callable[[Sequence[int], Sequence[int]], np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def made(kind: str) -> Path:
        family, settings = KINDS[kind]
        return make.make_llm(tmp_path_factory.mktemp("llm") / family, family, **settings)

    return made


def context_of(kind: str) -> dict[str, int]:
    return {"context_length": CONTEXT} if kind == "phi4-mini" else {}


def with_settings(folder: Path, changed: dict[str, object]) -> Path:
    """The checkpoint with other settings in config.json; those that are None are taken out."""
    config = {**json.loads((folder / "config.json").read_text()), **changed}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def filled(engine: LlmEngine, repository: Path, prompts: Sequence[list[int]]) -> tuple[np.ndarray, Decode]:
    """Every prompt in a row of its own, read in chunks of 7: its last logits, and what decodes one token of each row."""
    rows: list[np.ndarray] = []
    if engine is LlmEngine.ONNXRUNTIME:
        onnx = OnnxCausalEngine.load(repository / "llm" / "1" / "model.onnx", tokens=2048, threads=1)
        onnx.arrange(len(prompts), longest_row(LlmFacts.read(repository / "llm" / "1").context_length, 256))
        for row, ids in enumerate(prompts):
            for start in range(0, len(ids), 7):
                logits = onnx.extend(row, start, ids[start : start + 7])
            rows.append(logits[0].copy())
        return np.stack(rows), onnx.decode
    paged = openvino_engine(repository)
    tables = [range(1 + 2 * row, 3 + 2 * row) for row in range(len(prompts))]
    for table, ids in zip(tables, prompts, strict=True):
        for start in range(0, len(ids), 7):
            logits = paged.run([Piece(table, start, ids[start : start + 7])])
        rows.append(logits[0].copy())

    def decode(tokens: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        given = zip(tables, lengths, tokens, strict=True)
        return paged.run([Piece(table, length, [token], decoded=True) for table, length, token in given])

    return np.stack(rows), decode


def greedy(engine: LlmEngine, repository: Path) -> tuple[list[list[int]], np.ndarray]:
    """Answers to all prompts, decoded together, and the logits that every token was chosen by."""
    logits, decode = filled(engine, repository, PROMPTS)
    answers: list[list[int]] = [[] for _ in PROMPTS]
    seen = [logits]
    for step in range(ANSWER):
        for answer, row in zip(answers, seen[-1], strict=True):
            answer.append(int(row.argmax()))
        lengths = [len(ids) + step for ids in PROMPTS]
        seen.append(decode([answer[-1] for answer in answers], lengths).copy())
    return answers, np.stack(seen[:-1], axis=1)


def greedy_of(model: Any) -> tuple[list[list[int]], np.ndarray]:
    """The same of a transformers model that is given the whole sequence at every step."""
    answers, seen = [], []
    with torch.no_grad():
        for ids in PROMPTS:
            whole = list(ids)
            for _ in range(ANSWER):
                logits = model(torch.tensor([whole])).logits[0]
                whole.append(int(logits[-1].argmax()))
            answers.append(whole[len(ids) :])
            seen.append(logits[len(ids) - 1 :].numpy())
    return answers, np.stack(seen)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def distance(made: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(made - expected) / np.linalg.norm(expected))


CASES = [(kind, engine) for kind in KINDS for engine in ENGINES if (kind, engine) != ("gemma3 scaled", LlmEngine.ONNXRUNTIME)]


@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_answers_are_transformers(tmp_path: Path, checkpoint: Callable[[str], Path], kind: str, engine: LlmEngine) -> None:
    """Three rows together, prompts in chunks, far beyond windows of 8, to the last token that LongRoPE allows."""
    manifest: Any = export_llm(checkpoint(kind), tmp_path / "out", "fp32", engine=engine, **context_of(kind))
    assert manifest["engine"]["unquantised_error"] <= 2e-6
    answers, logits = greedy(engine, tmp_path / "out")
    expected_answers, expected = greedy_of(loaded(checkpoint(kind)))
    assert answers == expected_answers
    assert distance(logits, expected) <= 5e-6


@pytest.mark.parametrize(
    ("kind", "engine"),
    [*((kind, LlmEngine.OPENVINO) for kind in ("gemma3", "smollm3", "phi4-mini")), ("gemma3", LlmEngine.ONNXRUNTIME)],
)
def test_four_bits_are_the_rounded_matrices(
    tmp_path: Path, checkpoint: Callable[[str], Path], kind: str, engine: LlmEngine
) -> None:
    settings: dict[str, Any] = {"block_size": 16, "eight_bit_share": 0.0, **context_of(kind)}
    export_llm(checkpoint(kind), tmp_path / "out", "int4", engine=engine, **settings)
    scheme, model = Scheme(bits=4, block_size=16, symmetric=True), loaded(checkpoint(kind))
    prompt = PROMPTS[0]
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = np.ascontiguousarray(module.weight.detach().numpy().T)
            module.weight.data.copy_(torch.from_numpy(round_trip(weight, scheme).T))
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].numpy()
        exact = loaded(checkpoint(kind))(torch.tensor([prompt])).logits[0, -1].numpy()
    logits, _ = filled(engine, tmp_path / "out", [prompt, prompt])
    assert distance(logits[0], expected) <= 3e-2  # activations may be rounded to 8 bits, too
    assert distance(logits[0], exact) > 3e-2


OLDER: dict[str, dict[str, object]] = {
    "gemma3": {
        **dict.fromkeys(("rope_parameters", "layer_types", "_sliding_window_pattern")),
        **{"rope_theta": 10_000.0, "rope_local_base_freq": 100.0, "sliding_window_pattern": 2},
    },
    "smollm3": {"rope_parameters": None, "rope_theta": 2_000_000.0, "layer_types": None},
    "phi4-mini": {
        **{"rope_parameters": None, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        "rope_scaling": {
            "type": "longrope",
            **{name: make.PHI4_MINI["rope_parameters"][name] for name in ("short_factor", "long_factor")},
        },
    },
}
"""The settings as the families' own checkpoints have them, written before transformers 5."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", list(OLDER))
def test_configurations_of_before_transformers_5_are_understood(tmp_path: Path, kind: str, engine: LlmEngine) -> None:
    family, _ = KINDS[kind]
    older = with_settings(make.make_llm(tmp_path / family, family), OLDER[kind])
    export_llm(older, tmp_path / "out", "fp32", engine=engine, **context_of(kind))
    logits, _ = filled(engine, tmp_path / "out", PROMPTS)
    with torch.no_grad():
        expected = np.stack([loaded(older)(torch.tensor([ids])).logits[0, -1].numpy() for ids in PROMPTS])
    assert distance(logits, expected) <= 5e-6


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("asked", [None, CONTEXT + 1])
def test_phi4_mini_is_refused_beyond_its_original_length(tmp_path: Path, engine: LlmEngine, asked: int | None) -> None:
    for older in (False, True):
        folder = make.make_llm(tmp_path / f"phi4-mini-{older}", "phi4-mini")
        with_settings(folder, OLDER["phi4-mini"] if older else {})
        with pytest.raises(ExportError, match=r"config\.json: beyond 50 tokens LongRoPE .* --context-length 50 or less"):
            export_llm(folder, tmp_path / "out", engine=engine, context_length=asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        (
            "gemma3",
            {"rope_parameters": {**make.GEMMA3["rope_parameters"], "full_attention": LINEAR}},
            r"rope_type 'linear' of full_attention is not allowed with --engine onnxruntime, .*; use --engine openvino",
        ),
        (
            "phi4-mini",
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75},
            },
            r"heads of 16 values, of which 12 are rotated, are not allowed with --engine onnxruntime, .*; use --engine openvino",
        ),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not allowed"),
    ],
)
def test_what_onnxruntime_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], words: str
) -> None:
    folder = make.make_llm(tmp_path / family, family, **{"rope_theta": 10_000.0, **settings})
    with pytest.raises(ExportError, match=rf"config\.json: {words}"):
        export_llm(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_longrope_of_one_kind_of_layer_bounds_the_context_too(tmp_path: Path) -> None:
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    folder = with_settings(
        make.make_llm(tmp_path / "gemma3", "gemma3"),
        {"rope_parameters": {**make.GEMMA3["rope_parameters"], "full_attention": longrope}},
    )
    with pytest.raises(ExportError, match=r"config\.json: beyond 64 tokens LongRoPE"):
        export_llm(folder, tmp_path / "out", engine=LlmEngine.OPENVINO)
