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

from nereid_export.w4a8.codes import GROUP
from nereid_export.w4a8.layers import FACTOR_BITS, SMALLEST_SCALE, Correction, QuantisedLayer
from nereid_export.w4a8.products import halved

CODE_RATE = 0.005
"""The highest learning rate of codes, which are whole numbers a step apart; others' in shares of it."""
_BETWEEN = 0.45
"""How far a code is from its whole number at most when training begins: it stays, until it is drawn to the other."""
_FACTORS, _OTHERS = 0.5, 0.02


class _Rounded(torch.autograd.Function):
    """To whole numbers; the gradient is passed on as it is (straight-through, Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def rounded(x: Tensor) -> Tensor:
    """What rounding makes of it, with the gradient of x."""
    apply: Any = _Rounded.apply
    made: Tensor = apply(x)
    return made


class TunedProduct(nn.Module):
    """As `ProductInEight` of a layer: the codes, the channels' steps and the correction's factors are trained.

    Groups' steps, bits and how inputs are rounded stay as they are. Where `exact` says what the smoothed weights were before they
    were rounded, each code begins on their side of its whole number.
    """

    steps: Tensor
    rows: Tensor
    low: Tensor

    def __init__(self, layer: QuantisedLayer, exact: NDArray[np.float32] | None = None) -> None:
        super().__init__()
        codes, correction = layer.codes, layer.correction
        self.given = layer
        beginning = codes.codes.astype(np.float32)
        if exact is not None:
            rest = codes.matrix() if correction is None else codes.matrix() + correction.matrix()
            off = (exact - rest) / np.repeat(codes.scales, GROUP, 1)[:, : codes.inputs]
            beginning[:, : codes.inputs] += np.clip(off, -_BETWEEN, _BETWEEN)
        self.codes = nn.Parameter(torch.from_numpy(beginning))
        self.gain = nn.Parameter(torch.ones(len(codes.bits), 1))
        self.register_buffer("steps", torch.from_numpy(codes.steps.astype(np.float32)))
        self.register_buffer("rows", torch.from_numpy(codes.rows.astype(np.float32))[:, None])
        self.register_buffer("low", torch.from_numpy(-(2.0 ** (codes.bits - 1))).float()[:, None])
        if correction is not None:
            self.left = nn.Parameter(torch.from_numpy(correction.left.astype(np.float32)))
            self.right = nn.Parameter(torch.from_numpy(correction.right.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs are smoothed and divided by their range's gain already."""
        rounding = self.given.rounding
        scale, zero = float(rounding.scale), float(rounding.zero)
        whole = torch.clamp(rounded(x / scale) + zero, 0, 255) - zero
        return (whole * scale) @ self._weights().T

    def layer(self) -> QuantisedLayer:
        """What is stored of it now."""
        codes, correction = self.given.codes, self.given.correction
        with torch.no_grad():
            rows = self._steps().numpy()[:, 0].astype(np.float16)
            made = replace(codes, codes=_int8(self._codes()), rows=rows)
            if correction is not None:
                correction = Correction(_int8(_factor(self.left)), _int8(_factor(self.right)), correction.scale)
        return replace(self.given, codes=made, correction=correction)

    def rated(self) -> list[tuple[nn.Parameter, float]]:
        """Each parameter, and the share of `CODE_RATE` at which it is trained."""
        factors = [] if self.given.correction is None else [(self.left, _FACTORS), (self.right, _FACTORS)]
        return [(self.codes, 1.0), (self.gain, _OTHERS), *factors]

    def _codes(self) -> Tensor:
        return rounded(torch.maximum(torch.minimum(self.codes, -self.low - 1), self.low))

    def _steps(self) -> Tensor:
        steps = self.rows * self.gain
        return steps + (halved(steps) - steps).detach()

    def _weights(self) -> Tensor:
        """N x K, of 8 bits."""
        scales = (self.steps * self._steps()).repeat_interleave(GROUP, 1)
        stored = (self._codes() * scales)[:, : self.given.codes.inputs]
        if (correction := self.given.correction) is not None:
            stored = stored + _factor(self.left) @ _factor(self.right) * float(correction.scale)
        eighths = (stored.detach().abs().amax(1, keepdim=True) / 127).clamp(min=float(SMALLEST_SCALE))
        return rounded(stored / eighths) * eighths


def _factor(values: Tensor) -> Tensor:
    most = 2 ** (FACTOR_BITS - 1) - 1
    return rounded(values.clamp(-most, most))


def _int8(values: Tensor) -> np.ndarray:
    return values.numpy().astype(np.int8)
