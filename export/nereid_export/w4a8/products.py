"""Linear layers whose products are of 8-bit numbers, as torch modules: what PyTorch computes is what the exported graph does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nereid_export.w4a8.layers import QuantisedLayer
from nereid_export.w4a8.tables import Table


class _Product(torch.autograd.Function):
    """Inputs rounded to 0..255, times int8 weights K x N; exact whole numbers, then scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, weight_scale: Tensor) -> Tensor:
        codes = torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero
        whole = codes.double() @ weight.double()  # float32 has too few bits for the longest sums
        return whole.float() * (scale * weight_scale)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, scale: Any, zero: Any, weight_scale: Any) -> Any:
        codes = g.op("QuantizeLinear", x, scale, zero)
        inputs = g.op("DequantizeLinear", codes, scale, zero)
        matrix = g.op("DequantizeLinear", weight, weight_scale, axis_i=1)
        return g.op("MatMul", inputs, matrix)


class ProductInEight(nn.Module):
    """The product of a layer, of inputs that are smoothed and divided by their range's gain already; no bias."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    weight_scale: Tensor

    def __init__(self, layer: QuantisedLayer) -> None:
        super().__init__()
        self.layer = layer
        for name, value in {
            "weight": torch.from_numpy(layer.multiplied.T.copy()),
            "scale": torch.tensor(float(layer.rounding.scale)),
            "zero": torch.tensor(layer.rounding.zero, dtype=torch.uint8),
            "weight_scale": torch.from_numpy(layer.scales),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        apply: Any = _Product.apply
        made: Tensor = apply(x, self.weight, self.scale, self.zero, self.weight_scale)
        return made


class LinearInEight(nn.Module):
    """A whole linear layer of B x K whose inputs have one range."""

    smooth: Tensor

    def __init__(self, layer: QuantisedLayer, bias: Tensor) -> None:
        super().__init__()
        self.product = ProductInEight(layer)
        self.register_buffer("smooth", torch.from_numpy(layer.smooth))
        self.bias = nn.Parameter(halved(bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # With three dimensions: ONNX Runtime makes a Gemm of a product of matrices and its bias, which it then computes in float.
        made: Tensor = self.product((x * self.smooth)[:, None]) + self.bias
        return made[:, 0]


def halved(value: Tensor) -> Tensor:
    """Rounded to what halves can hold, as it is stored."""
    return value.detach().half().float().clone()


def layers_of(module: nn.Module) -> dict[str, QuantisedLayer]:
    """By the names that their weights have in an exported graph."""
    return {f"{name}.weight": part.layer for name, part in module.named_modules() if isinstance(part, ProductInEight)}


def tables_of(module: nn.Module) -> list[Table]:
    """Those that its parts compute with, as they keep them in `tables`."""
    return [table for part in module.modules() for table in getattr(part, "tables", ())]
