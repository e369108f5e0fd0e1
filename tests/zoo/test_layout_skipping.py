"""Blocks whose MLPs pass over tokens: exact against masks, in any company, and as exported graphs that compute less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nereid.engines.engine_process_main import load_engine
from nereid_export.components import Component, TensorSpec
from nereid_export.engines.onnx_graph import export_onnx
from nereid_export.engines.precision import Precision
from nereid_zoo.layout.skipping import RoutedBlock, Routing, SkippingBlock, counted

pytestmark = pytest.mark.torch
WIDTH, HEADS, TOKENS = 48, 3, 21
MLP = 2 * 2 * WIDTH * 2 * WIDTH
"""FLOPs of one token's."""


class MaskedBlock(SkippingBlock):
    """The same in arithmetic: its MLP is computed for every token, and multiplied with 0 or 1."""

    def feed(self, x: Tensor, opened: Tensor | Routing | None = None) -> Tensor:
        assert isinstance(opened, Routing)
        logits = self.router(x)
        gates = opened.decide(logits) * opened.counts
        opened.gates.append(gates)
        return super().feed(x) * logits.sigmoid()[..., None] * gates[..., None]


def routed(bias: float) -> RoutedBlock:
    torch.manual_seed(0)
    block = RoutedBlock(WIDTH, HEADS, 2).eval()
    with torch.no_grad():
        block.modulation.normal_(std=0.3)
        block.router.weight.normal_(std=WIDTH**-0.5)
        block.router.bias.fill_(bias)
    return block


def cut(kind: type[SkippingBlock], block: RoutedBlock) -> SkippingBlock:
    """With all heads and channels."""
    return kind.of(block, range(HEADS), range(2 * WIDTH)).eval()


def given(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of rows that are not all as long: x, condition, bias, and which tokens count."""
    generator = torch.Generator().manual_seed(rows)
    condition = torch.randn(rows, 6, WIDTH, generator=generator)
    counts = (torch.arange(TOKENS) < torch.tensor([TOKENS - 4 * row for row in range(rows)])[:, None]).float()
    return torch.randn(rows, TOKENS, WIDTH, generator=generator), condition, torch.zeros(rows, HEADS, TOKENS, TOKENS), counts


def run(block: nn.Module, x: Tensor, condition: Tensor, bias: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What it gives, what of that the MLP has, and the gates."""
    routing = Routing(counts)
    with torch.inference_mode():
        made, (_, mlp) = block(x, condition, bias, opened=(None, routing))
    (gates,) = routing.gates
    return made, mlp, gates


@pytest.mark.parametrize("bias", [-100.0, -0.5, 0.0, 0.5, 100.0])
def test_what_is_passed_over_is_what_a_mask_would_close(bias: float) -> None:
    masked, told = routed(bias), given(3)
    (ours, mlp, gates), (theirs, _, expected) = run(cut(SkippingBlock, masked), *told), run(masked, *told)
    assert torch.equal(gates, expected)
    assert torch.equal((mlp != 0).any(-1), gates > 0)
    assert (ours - theirs).abs().max() < 1e-5
    assert not (mlp[told[3] == 0] != 0).any()  # padded tokens have none in any case
    if abs(bias) < 1:
        assert 0.1 < gates[told[3] > 0].mean() < 0.9
        assert len(set(gates.sum(1).tolist())) > 1  # rows keep as many as they do, not as others leave
    else:
        assert torch.equal(gates, told[3] if bias > 0 else torch.zeros_like(gates))


def test_the_mlp_is_scaled_by_the_routers_sigmoid_and_is_any_blocks_without_a_routing() -> None:
    block = routed(100.0)
    x, condition, bias, counts = given(2)
    with torch.inference_mode():
        plain = block(x, condition, bias)[1][1]
        block.router.bias.fill_(0.05)
        block.router.weight.zero_()
        mlp = run(block, x, condition, bias, counts)[1]
        assert torch.allclose(mlp, plain * torch.tensor(0.5).sigmoid() * counts[..., None], atol=1e-6)
        assert torch.equal(cut(SkippingBlock, block)(x, condition, bias)[1][1], plain)


def test_a_token_is_kept_or_passed_over_whatever_its_company() -> None:
    skipping, told = cut(SkippingBlock, routed(0.0)), given(4)
    together, _, gates = run(skipping, *told)
    for row in range(4):
        alone, _, own = run(skipping, *(its[row : row + 1] for its in told))
        assert torch.equal(own, gates[row : row + 1])
        assert (alone - together[row : row + 1]).abs().max() < 1e-5


def test_nothing_is_computed_for_what_is_passed_over() -> None:
    block, told = routed(0.0), given(3)
    counted_flops = {}
    for kind in (SkippingBlock, MaskedBlock):
        with FlopCounterMode(display=False) as counter:
            _, _, gates = run(cut(kind, block), *told)
        counted_flops[kind] = counter.get_total_flops()
    assert counted_flops[MaskedBlock] - counted_flops[SkippingBlock] == MLP * (gates.numel() - gates.sum().item())


def test_channels_of_a_block_that_passes_over_tokens_cannot_be_closed() -> None:
    x, condition, bias, counts = given(1)
    with pytest.raises(ValueError, match="cannot be closed"):
        cut(SkippingBlock, routed(0.0))(x, condition, bias, opened=(None, Routing(counts, channels=torch.ones(1, 2 * WIDTH))))


def test_the_canvas_counts_beside_valid_tokens() -> None:
    assert counted(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [[1, 1, 0], [1, 0, 0]]


class Fed(nn.Module):
    """Two MLPs in a row, so that rounding of the first would tell in what the second passes over."""

    def __init__(self, blocks: list[SkippingBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        routing = Routing(valid)
        for block in self.blocks:
            x = x + block.feed(x, routing)
        return x


Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def exported(kind: type[SkippingBlock], folder: Path, engine: str) -> tuple[Run, Path]:
    blocks = [cut(kind, routed(bias)) for bias in (0.1, 0.0)]
    specs = (TensorSpec(name="x", dims=("tokens", WIDTH)), TensorSpec(name="valid", dims=("tokens",)))
    module, out = Fed(blocks).eval(), TensorSpec(name="out", dims=("tokens", WIDTH))
    component = Component(
        name="fed", source="", inputs=specs, outputs=(out,), load=lambda: module, example={"tokens": 13}, checks=()
    )
    folder.mkdir(exist_ok=True)
    export_onnx(component, module, folder / "model.onnx", Precision.FP32)
    call = load_engine(folder / "model.onnx", engine, 1)
    return lambda x, valid: call({"x": x, "valid": valid}, ["out"])["out"], folder / "model.onnx"


def inputs(rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    lengths = rng.integers(1, tokens + 1, rows)
    valid = (np.arange(tokens) < lengths[:, None]).astype(np.float32)
    return rng.standard_normal((rows, tokens, WIDTH), np.float32), valid


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_exported_it_gathers_and_has_the_bits_of_the_masked_graph_in_any_company(tmp_path: Path, engine: str) -> None:
    """However many tokens of however many rows come into one product, which libraries may choose kernels by."""
    import onnx

    skipping, file = exported(SkippingBlock, tmp_path / "skipping", engine)
    masked, _ = exported(MaskedBlock, tmp_path / "masked", engine)
    kinds = [node.op_type for node in onnx.load(str(file)).graph.node]
    assert kinds.count("NonZero") == kinds.count("ScatterND") == 2
    assert "TopK" not in kinds
    for tokens in (1, 2, 3, 5, 9, 17, 33):
        x, valid = inputs(8, tokens)
        together = skipping(x, valid)
        assert together.tobytes() == masked(x, valid).tobytes()
        for start in range(8):
            for rows in (1, 2, 3, 5):
                part = slice(start, start + rows)
                assert skipping(x[part], valid[part]).tobytes() == together[part].tobytes()
    x, valid = inputs(2, 9)
    assert skipping(x, np.zeros_like(valid)).tobytes() == x.tobytes()  # nothing is kept at all
