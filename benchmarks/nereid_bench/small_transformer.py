"""A diffusion transformer with random weights, of DiT-S/2's sizes (33 M parameters, 256 tokens)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nereid_export.components import Component, TensorSpec

SIDE = 256
"""Pixels of its pictures; a latent is eight wide, a token two latents."""
_LATENTS = SIDE // 8


class Transformer(nn.Module):
    """Latents N x 4 x 32 x 32, a timestep and a class a row, to the noise and its variance, N x 8 x 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(0)
        sizes = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "sample_size": _LATENTS}
        self.transformer = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, patch_size=2)
        for block in self.transformer.transformer_blocks:
            # As trained ones are: freshly made, every gate is zero and no block does anything.
            nn.init.normal_(block.norm1.linear.weight, std=0.02)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        made: Tensor = self.transformer(sample, timestep[:, 0], class_labels[:, 0].long(), return_dict=False)[0]
        return made


def small_transformer() -> Component:
    """The same weights every time; its pictures have one size."""
    return Component(
        name="transformer",
        source="transformer",
        inputs=(
            TensorSpec(name="sample", dims=(4, _LATENTS, _LATENTS)),
            TensorSpec(name="timestep", dims=(1,), scale=300.0),
            TensorSpec(name="class_labels", dims=(1,), dtype=torch.int32, high=1000),
        ),
        outputs=(TensorSpec(name="out_sample", dims=(8, _LATENTS, _LATENTS)),),
        load=lambda: Transformer().eval(),
        example={},
        checks=((1, {}), (3, {})),
    )
