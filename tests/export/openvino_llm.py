"""A language model exported for OpenVINO, its engine, and what transformers makes of the same tokens: what its tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from nereid.engines.kv_blocks import Piece
from nereid.engines.openvino_causal import OpenVinoCausalEngine
from nereid_export.llm import LlmEngine

from conftest import export_llm

TABLE = range(1, 9)
"""Room for a context of 256."""


IDS = np.random.default_rng(0).integers(3, 250, 60).tolist()


def export(checkpoint: Path, out: Path, precision: str = "fp32", **options: Any) -> Any:
    return export_llm(checkpoint, out, precision, engine=LlmEngine.OPENVINO, **options)


def engine_of(repository: Path, **options: Any) -> OpenVinoCausalEngine:
    return OpenVinoCausalEngine.load(repository / "llm" / "1" / "model.xml", tokens=256, threads=1, **options)


def transformers_logits(checkpoint: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy())


def served_logits(engine: OpenVinoCausalEngine, ids: list[int], decoded: int) -> np.ndarray:
    """Of a whole sequence: read in chunks of 16 but for the last `decoded`, which are decoded one by one."""
    made = []
    for start in range(0, len(ids) - decoded, 16):
        tokens = ids[start : min(start + 16, len(ids) - decoded)]
        made.append(engine.run([Piece(TABLE, start, tokens, keep=len(tokens))]).copy())
    for place in range(len(ids) - decoded, len(ids)):
        made.append(engine.run([Piece(TABLE, place, [ids[place]], decoded=True)]).copy())
    return np.concatenate(made)
