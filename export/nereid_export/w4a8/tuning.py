"""A layer's stored numbers as parameters that can be trained: they are rounded in every forward, and gradients pass through that.

What a trained layer computes is what `ProductInEight` does of the layer that it gives, but in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nereid_export.w4a8.codes import GROUP, Codes
from nereid_export.w4a8.factors import Factors
from nereid_export.w4a8.layers import FACTOR_BITS, SMALLEST_SCALE, QuantisedLayer

CODE_RATE = 0.005
"""The highest learning rate of codes, which are whole numbers a step apart; others' in shares of it."""
_BETWEEN = 0.45
"""How far a code is from its whole number at most when training begins: it stays, until it is drawn to the other."""
_FACTORS, _OTHERS = 0.5, 0.1


class _Rounded(torch.autograd.Function):
    """To whole numbers; the gradient is passed on as it is (straight-through, Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def rounded(x: Tensor) -> Tensor:
    """What rounding makes of it, with the gradient of x."""
    apply: Any = _Rounded.apply
    made: Tensor = apply(x)
    return made


class TunedProduct(nn.Module):
    """As `ProductInEight` of a layer: the codes, the channels' steps and the factors are trained.

    Groups' steps, bits, components' worths and how inputs are rounded stay as they are. Where `exact` says what the smoothed
    weights were before they were rounded, each code begins on their side of its whole number.
    """

    def __init__(self, layer: QuantisedLayer, exact: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.given = layer
        self.codes = None if layer.codes is None else _TunedCodes(layer.codes, None if exact is None else exact - layer.stored)
        self.factors = None if layer.factors is None else _TunedFactors(layer.factors)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs are smoothed and divided by their range's gain already."""
        rounding = self.given.rounding
        scale, zero = float(rounding.scale), float(rounding.zero)
        whole = torch.clamp(rounded(x / scale) + zero, 0, 255) - zero
        return (whole * scale) @ self._weights().T

    def layer(self) -> QuantisedLayer:
        """What is stored of it now."""
        with torch.no_grad():
            codes = None if self.codes is None else self.codes.stored()
            factors = None if self.factors is None else self.factors.stored()
        return replace(self.given, codes=codes, factors=factors)

    def rated(self) -> list[tuple[nn.Parameter, float]]:
        """Each parameter, and the share of `CODE_RATE` at which it is trained."""
        return [pair for part in (self.codes, self.factors) if part is not None for pair in part.rated()]

    def _weights(self) -> Tensor:
        """N x K, of 8 bits."""
        stored = sum(part.matrix() for part in (self.codes, self.factors) if part is not None)
        assert isinstance(stored, Tensor)
        eighths = (stored.detach().abs().amax(1, keepdim=True) / 127).clamp(min=float(SMALLEST_SCALE))
        return rounded(stored / eighths) * eighths


class _TunedCodes(nn.Module):
    steps: Tensor
    rows: Tensor
    low: Tensor

    def __init__(self, codes: Codes, off: NDArray[np.float32] | None) -> None:
        """`off` is what the exact weights have more than those that are stored."""
        super().__init__()
        self.given = codes
        beginning = codes.codes.astype(np.float32)
        if off is not None:
            scales = np.repeat(codes.scales, GROUP, 1)[:, : codes.inputs]
            beginning[:, : codes.inputs] += np.clip(off / scales, -_BETWEEN, _BETWEEN)
        self.whole = nn.Parameter(torch.from_numpy(beginning))
        self.gain = nn.Parameter(torch.ones(len(codes.bits), 1))
        self.register_buffer("steps", torch.from_numpy(codes.steps.astype(np.float32)))
        self.register_buffer("rows", torch.from_numpy(codes.rows.astype(np.float32))[:, None])
        self.register_buffer("low", torch.from_numpy(-(2.0 ** (codes.bits - 1))).float()[:, None])

    def matrix(self) -> Tensor:
        scales = (self.steps * (self._rows() * float(self.given.unit))).repeat_interleave(GROUP, 1)
        return (self._codes() * scales)[:, : self.given.inputs]

    def stored(self) -> Codes:
        return replace(self.given, codes=_int8(self._codes()), rows=self._rows().numpy()[:, 0].astype(np.uint8))

    def rated(self) -> list[tuple[nn.Parameter, float]]:
        return [(self.whole, 1.0), (self.gain, _OTHERS)]

    def _codes(self) -> Tensor:
        return rounded(torch.maximum(torch.minimum(self.whole, -self.low - 1), self.low))

    def _rows(self) -> Tensor:
        return rounded((self.rows * self.gain).clamp(1, 255))


class _TunedFactors(nn.Module):
    worths: Tensor

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.given = factors
        self.left = nn.Parameter(torch.from_numpy(factors.left.astype(np.float32)))
        self.right = nn.Parameter(torch.from_numpy(factors.right.astype(np.float32)))
        self.register_buffer("worths", torch.from_numpy(factors.worths.astype(np.float32) * factors.scale))

    def matrix(self) -> Tensor:
        return (self._whole(self.left) * self.worths) @ self._whole(self.right)

    def stored(self) -> Factors:
        return replace(self.given, left=_int8(self._whole(self.left)), right=_int8(self._whole(self.right)))

    def rated(self) -> list[tuple[nn.Parameter, float]]:
        share = _FACTORS * 2.0 ** (self.given.bits - FACTOR_BITS)  # their steps are so much smaller
        return [(self.left, share), (self.right, share)]

    def _whole(self, values: Tensor) -> Tensor:
        most = 2 ** (self.given.bits - 1) - 1
        return rounded(values.clamp(-most, most))


def _int8(values: Tensor) -> np.ndarray:
    return values.numpy().astype(np.int8)
