"""Stored numbers of a quantised layer as parameters: what is computed, where gradients go, what is stored after a training."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from test_w4a8 import inputs_like, matrix
from torch import Tensor

from nereid_export.w4a8.layers import QuantisedLayer, quantise
from nereid_export.w4a8.products import ProductInEight
from nereid_export.w4a8.tuning import TunedProduct, rounded

pytestmark = pytest.mark.torch
RATE = 0.02
"""Higher than a training's: there are sixty steps."""


@pytest.fixture(scope="module")
def layer() -> QuantisedLayer:
    return quantise(matrix(48, 96), inputs_like(96))


@pytest.fixture(scope="module")
def smoothed(layer: QuantisedLayer) -> Tensor:
    return torch.from_numpy(inputs_like(96).rows * layer.smooth)


def test_rounding_passes_gradients_on() -> None:
    x = torch.tensor([0.4, 0.6, -1.7], requires_grad=True)
    made = rounded(x)
    (made * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert made.tolist() == [0, 1, -2]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3]


@pytest.mark.parametrize("rank", [0, 4])
def test_before_a_training_it_is_the_layer_itself(rank: int, smoothed: Tensor) -> None:
    given = quantise(matrix(48, 96), inputs_like(96), rank=rank)
    tuned = TunedProduct(given)
    assert torch.allclose(tuned(smoothed), ProductInEight(given)(smoothed), rtol=1e-4, atol=1e-4)
    made = tuned.layer()
    assert np.array_equal(made.multiplied, given.multiplied)
    assert np.array_equal(made.scales, given.scales)


def test_codes_begin_on_the_side_of_the_exact_weights(layer: QuantisedLayer) -> None:
    exact = matrix(48, 96) / layer.smooth
    tuned = TunedProduct(layer, exact)
    off = tuned.codes.whole.detach().numpy() - layer.codes.codes
    rest = (exact - layer.stored) / np.repeat(layer.codes.scales, 32, 1)
    assert 0 < np.abs(off).max() < 0.5
    assert (np.sign(off) == np.sign(rest))[np.abs(rest) > 1e-3].all()
    assert np.array_equal(tuned.layer().codes.codes, layer.codes.codes)


def trained(layer: QuantisedLayer, x: Tensor, wanted: Tensor) -> TunedProduct:
    tuned = TunedProduct(layer)
    optimizer = torch.optim.Adam([{"params": [parameter], "lr": RATE * share} for parameter, share in tuned.rated()])
    for _ in range(60):
        optimizer.zero_grad()
        ((tuned(x) - wanted) ** 2).mean().backward()
        optimizer.step()
    return tuned


def test_a_training_brings_it_nearer_and_what_is_stored_is_what_was_trained(layer: QuantisedLayer, smoothed: Tensor) -> None:
    rng = np.random.default_rng(3)
    moved = matrix(48, 96) + 0.01 * rng.standard_normal((48, 96)).astype(np.float32)
    wanted = torch.from_numpy(inputs_like(96).rows @ moved.T)

    def error(made: Tensor) -> float:
        return float((made - wanted).norm() / wanted.norm())

    tuned = trained(layer, smoothed, wanted)
    after = tuned.layer()
    assert (after.codes.codes != layer.codes.codes).mean() > 0.1
    assert after.codes.codes.min() >= -16
    assert np.array_equal(after.codes.steps, layer.codes.steps)
    assert np.array_equal(after.codes.bits, layer.codes.bits)
    low = -(2 ** (layer.codes.bits - 1))[:, None]
    assert (after.codes.codes >= low).all()
    assert (after.codes.codes < -low).all()
    simulated = ProductInEight(after)(smoothed)
    assert torch.allclose(simulated, tuned(smoothed), rtol=1e-3, atol=1e-3)
    assert error(simulated) < 0.8 * error(ProductInEight(layer)(smoothed))
