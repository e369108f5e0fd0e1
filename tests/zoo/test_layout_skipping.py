"""Blocks whose MLPs pass over tokens: exact against masks, in any company, and as an exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn

from nereid_export.components import Component, TensorSpec
from nereid_export.engines.onnx_graph import export_onnx, run_file
from nereid_export.engines.precision import Precision
from nereid_zoo.layout.model import Block
from nereid_zoo.layout.skipping import SkippingBlock

pytestmark = pytest.mark.torch
WIDTH, HEADS = 48, 3


class MaskedBlock(SkippingBlock):
    """The same in arithmetic: its MLP is computed for every token, and multiplied with 0 or 1."""

    def feed(self, x: Tensor, opened: Tensor | None = None) -> Tensor:
        return Block.feed(self, x, opened) * self.kept(x)[..., None]


def pair(threshold: float) -> tuple[SkippingBlock, MaskedBlock]:
    """Of equal weights."""
    torch.manual_seed(0)
    skipping, masked = SkippingBlock(WIDTH, HEADS, 2).eval(), MaskedBlock(WIDTH, HEADS, 2).eval()
    with torch.no_grad():
        skipping.modulation.normal_(std=0.3)
        skipping.threshold.fill_(threshold)
    masked.load_state_dict(skipping.state_dict())
    return skipping, masked


def given(rows: int, tokens: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    condition = torch.randn(rows, 6, WIDTH, generator=generator)
    return torch.randn(rows, tokens, WIDTH, generator=generator), condition, torch.zeros(rows, HEADS, tokens, tokens)


@pytest.mark.parametrize("threshold", [-100.0, -0.5, 0.0, 0.5, 100.0])
def test_what_is_passed_over_is_what_a_mask_would_close(threshold: float) -> None:
    skipping, masked = pair(threshold)
    x, condition, bias = given(3)
    with torch.inference_mode():
        (ours, (_, mlp)), (theirs, (_, wanted)) = (block(x, condition, bias) for block in (skipping, masked))
        kept = (mlp != 0).any(-1)  # type: ignore[union-attr]
        assert torch.equal(kept, (wanted != 0).any(-1))
        assert (ours - theirs).abs().max() < 1e-5
        whole = Block.feed(skipping, x)
        assert (whole != 0).any(-1).all()
    if abs(threshold) < 1:
        assert 0.2 < kept.float().mean() < 0.8
        assert len(set(kept.sum(1).tolist())) > 1  # rows keep as many as they do, not as others leave
    else:
        assert kept.all() if threshold < 0 else not kept.any()


def test_a_token_is_kept_or_passed_over_whatever_its_company() -> None:
    skipping, _ = pair(0.0)
    x, condition, bias = given(4)
    with torch.inference_mode():
        together, (_, mlp) = skipping(x, condition, bias)
        for row in range(4):
            part = slice(row, row + 1)
            alone, (_, own) = skipping(x[part], condition[part], bias[part])
            assert torch.equal((own != 0).any(-1), (mlp[part] != 0).any(-1))
            assert (alone - together[part]).abs().max() < 1e-5


def test_a_share_of_the_tokens_is_kept_where_one_is_sought() -> None:
    skipping, _ = pair(0.0)
    tokens = torch.randn(2, 50, WIDTH)
    with torch.inference_mode():
        skipping.keep(0.63)
        skipping.feed(tokens)
        skipping.keep(None)
        assert skipping.kept(tokens).float().mean().item() == pytest.approx(0.63, abs=0.01)
    with pytest.raises(ValueError, match="cannot be closed"):
        skipping.feed(tokens, torch.ones(2, 2 * WIDTH))


class Fed(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.feed(x)


def test_the_exported_graph_gathers_and_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    import onnx

    skipping, masked = pair(0.0)
    spec = TensorSpec(name="x", dims=("tokens", WIDTH))
    out = TensorSpec(name="out", dims=("tokens", WIDTH))
    module = Fed(skipping).eval()
    component = Component(
        name="fed", source="", inputs=(spec,), outputs=(out,), load=lambda: module, example={"tokens": 13}, checks=()
    )
    export_onnx(component, module, tmp_path / "model.onnx", Precision.FP32)
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node}
    assert {"NonZero", "ScatterND"} <= kinds
    assert "TopK" not in kinds
    run = run_file(tmp_path / "model.onnx", threads=1)
    x = torch.randn(5, 21, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = masked.feed(x).numpy()
    made = run({"x": x.numpy()}, ["out"])["out"]
    assert np.abs(made - expected).max() < 1e-5
    for start, end in ((0, 2), (1, 4), (3, 5)):
        part = run({"x": x[start:end].numpy()}, ["out"])["out"]
        assert part.tobytes() == made[start:end].tobytes()
