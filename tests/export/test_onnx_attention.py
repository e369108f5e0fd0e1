"""Attention as one operator: equal in value, rows independent of their company, and no scores of all tokens in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_files import operators

pytest.importorskip("torch")
import torch
from torch import Tensor, nn

from nereid.engines.arena import peak_bytes, reset_peak
from nereid_export.engines.onnx_attention import fuse_attention
from nereid_export.engines.onnx_graph import run_file

pytestmark = pytest.mark.torch
WIDTH, HEADS = 48, 6


class Attention(nn.Module):
    """Tokens attend to themselves, and to a text if `crossed`; with `masked`, to those before them alone."""

    def __init__(self, *, crossed: bool = False, masked: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.crossed, self.masked = crossed, masked

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        other = text if self.crossed else tokens
        parts = (self.query(tokens), self.key(other), self.value(other))
        query, key, value = (part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for part in parts)
        made = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.masked)
        return self.out(made.transpose(1, 2).flatten(2)) + text.mean((1, 2), keepdim=True)


def exported(module: nn.Module, file: Path, *, newer: bool = False) -> Path:
    names = {"input_names": ["tokens", "text"], "output_names": ["made"]}
    example = (torch.randn(2, 9, WIDTH), torch.randn(2, 7, WIDTH))
    if newer:
        batch, tokens, others = (torch.export.Dim(name) for name in ("batch", "tokens", "others"))
        shapes = ({0: batch, 1: tokens}, {0: batch, 1: others})
        torch.onnx.export(
            module, example, str(file), dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False, **names
        )
    else:
        axes = {"tokens": {0: "batch", 1: "tokens"}, "text": {0: "batch", 1: "others"}}
        torch.onnx.export(module, example, str(file), dynamo=False, opset_version=18, dynamic_axes=axes, **names)
    return file


def inputs(rows: int, tokens: int = 130) -> dict[str, NDArray]:
    rng = np.random.default_rng(0)
    sizes = {"tokens": (rows, tokens, WIDTH), "text": (rows, 7, WIDTH)}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_attention_is_one_operator_and_equal(crossed: bool, newer: bool, tmp_path: Path) -> None:
    module = Attention(crossed=crossed)
    file = exported(module, tmp_path / "model.onnx", newer=newer)
    assert fuse_attention(file) == 1
    assert operators(file)["MultiHeadAttention"] == 1
    assert operators(file)["Softmax"] == 0
    given = inputs(3)
    with torch.no_grad():
        theirs = module(*(torch.from_numpy(value) for value in given.values())).numpy()
    ours = run_file(file)(given, ["made"])["made"]
    assert np.linalg.norm(ours - theirs) < 1e-6 * np.linalg.norm(theirs)
    assert fuse_attention(file) == 0


def test_rows_have_the_same_bits_in_any_company(tmp_path: Path) -> None:
    file = exported(Attention(), tmp_path / "model.onnx")
    fuse_attention(file)
    run, given = run_file(file), inputs(4)
    whole = run(given, ["made"])["made"]
    for rows in (1, 2, 3):
        some = run({name: value[:rows] for name, value in given.items()}, ["made"])["made"]
        assert some.tobytes() == whole[:rows].tobytes()


def test_scores_of_all_tokens_are_never_held(tmp_path: Path) -> None:
    held = {}
    given = inputs(1, tokens=3000)
    for name in ("plain", "fused"):
        file = exported(Attention(), tmp_path / f"{name}.onnx")
        if name == "fused":
            fuse_attention(file)
        run = run_file(file)
        before = reset_peak()
        run(given, ["made"])
        held[name] = peak_bytes() - before
    scores = HEADS * 3000 * 3000 * 4
    assert held["plain"] > scores
    assert held["fused"] < scores / 4


def test_attention_with_a_mask_and_other_softmaxes_stay_as_they_are(tmp_path: Path) -> None:
    class Weights(nn.Module):
        def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
            """The weights themselves are asked for, too."""
            weights = (tokens @ text.transpose(1, 2)).softmax(-1)
            return torch.cat([weights @ text, weights], -1)

    class Scores(nn.Module):
        def forward(self, tokens: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            """They are an output of the graph."""
            weights = (tokens @ text.transpose(1, 2)).softmax(-1)
            return weights @ text, weights

    for number, module in enumerate((Attention(masked=True), Weights(), Scores())):
        file = exported(module, tmp_path / f"{number}.onnx")
        before = file.read_bytes()
        assert fuse_attention(file) == 0
        assert file.read_bytes() == before


@pytest.mark.parametrize("newer", [False, True])
def test_attention_without_heads_is_one_operator_and_equal(newer: bool, tmp_path: Path) -> None:
    class Lone(nn.Module):
        def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
            return (tokens @ (2 * text).transpose(1, 2)).softmax(-1) @ (text + 1)

    module = Lone()
    file = exported(module, tmp_path / "model.onnx", newer=newer)
    assert fuse_attention(file) == 1
    given = inputs(3)
    theirs = module(*(torch.from_numpy(value) for value in given.values())).numpy()
    ours = run_file(file)(given, ["made"])["made"]
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
