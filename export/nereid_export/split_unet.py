"""A UNet cut in two for feature caching: `unet` also gives the features that `unet_shallow` goes on from.

Ma et al., 2023 (DeepCache): what the last up block gets from below changes slowly from step to step. With branch b, the features
are the hidden states that enter the last block's layer before its b last ones; a shallow call computes conv_in, the first b
layers of the first down block, those b + 1 last layers and conv_out. With features of the same step it is the whole UNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nereid.diffusion.feature_cache import FEATURES
from nereid.diffusion.inpainting import TOLD
from nereid_export.errors import ExportError

_ROUNDING = 1e-5
"""Relative error of the same sums in another order, at most."""
_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")


def features_channels(config: Mapping[str, Any], branch: int, source: object) -> int:
    """Channels of the features, which are as high and wide as the latents; raises ExportError where there is no such branch.

    `config` is the UNet's; `source` names it in errors.
    """
    for side, block, known in (("down", config["down_block_types"][0], _DOWN), ("up", config["up_block_types"][-1], _UP)):
        if block not in known:
            raise ExportError(
                f"--cache-branch: {branch} is not allowed for {source}, whose outermost {side} block is a {block}; "
                f"it must be one of {', '.join(known)}"
            )
    for name in ("center_input_sample", "time_embedding_act_fn", "encoder_hid_dim_type"):
        if config.get(name):
            raise ExportError(
                f"--cache-branch: {branch} is not allowed for {source}, whose {name} is {config[name]!r}: its outer part is not "
                "known with it"
            )
    layers = config.get("layers_per_block", 2)
    most = layers if isinstance(layers, int) else layers[0]
    if not 0 <= branch <= most:
        raise ExportError(f"--cache-branch: {branch} is not allowed for {source}; it must be 0 to {most}")
    widths = config["block_out_channels"]
    return int(widths[0] if branch < most else widths[min(1, len(widths) - 1)])


def attends(config: Mapping[str, Any], branch: int) -> bool:
    """Whether the outer part has attention, so that it takes the prompt's states."""
    blocks = [config["up_block_types"][-1], *config["down_block_types"][: min(branch, 1)]]
    return any(block.startswith("CrossAttn") for block in blocks)


def require_equal(whole: nn.Module, outer: nn.Module, inputs: Sequence[Tensor], of_outer: Sequence[int]) -> None:
    """Raise ExportError where the outer part, with the whole's own features, is not the whole.

    `of_outer` are the places of its other inputs among the whole's.
    """
    with torch.no_grad():
        out, features = whole(*inputs)
        shallow = outer(*(inputs[place] for place in of_outer), features)
    error = float((shallow - out).norm() / out.norm())
    if not error <= _ROUNDING:
        raise ExportError(
            f"--cache-branch: the UNet's outer part is not the whole with the same features (relative error {error:.2g}); this "
            "UNet has something that it does not know"
        )


class Unet(nn.Module):
    """The UNet with one timestep a row; with a `branch`, its features beside its output."""

    def __init__(self, unet: Any, extra: tuple[str, ...], branch: int | None = None) -> None:
        super().__init__()
        self.unet, self.extra, self.branch = unet, extra, branch

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *extra: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        dtype: torch.dtype = self.unet.dtype
        seen: list[Tensor] = []
        watching: Any = None
        if self.branch is not None:
            entered = self.unet.up_blocks[-1].resnets[-1 - self.branch]
            watching = entered.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        made = self.unet(
            _with_picture(sample, dict(zip(self.extra, extra, strict=True))).to(dtype),
            timestep[:, 0],
            encoder_hidden_states.to(dtype),
            return_dict=False,
            **_arguments(self.extra, extra, dtype),
        )[0].float()
        if self.branch is None:
            return made
        watching.remove()
        skip = self.unet.config.block_out_channels[0]
        return made, seen[0][:, : seen[0].shape[1] - skip].float()


class ShallowUnet(nn.Module):
    """The UNet's outer part alone. Takes sample, timestep and what else `inputs` names; cuts the rest off `unet`."""

    def __init__(self, unet: Any, inputs: tuple[str, ...], branch: int) -> None:
        super().__init__()
        down, up = unet.down_blocks[0], unet.up_blocks[-1]
        for block, kept in ((down, slice(branch)), (up, slice(len(up.resnets) - 1 - branch, None))):
            block.resnets = block.resnets[kept]
            block.attentions = block.attentions[kept] if hasattr(block, "attentions") else [None] * len(block.resnets)
        down.downsamplers, unet.mid_block = None, None
        unet.down_blocks, unet.up_blocks = nn.ModuleList([down]), nn.ModuleList([up])
        self.unet, self.inputs = unet, inputs

    def forward(self, sample: Tensor, timestep: Tensor, *others: Tensor) -> Tensor:
        unet, dtype = self.unet, self.unet.dtype
        given = dict(zip(self.inputs[2:], others, strict=True))
        features, states = given.pop(FEATURES).to(dtype), given.pop("encoder_hidden_states", None)
        arguments = _arguments(tuple(given), tuple(given.values()), dtype)
        added = arguments.get("added_cond_kwargs")
        sample, states = _with_picture(sample, given).to(dtype), None if states is None else states.to(dtype)
        embedding = unet.time_embedding(unet.get_time_embed(sample, timestep[:, 0]), arguments.get("timestep_cond"))
        more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=states, added_cond_kwargs=added)
        embedding = embedding if more is None else embedding + more
        hidden = unet.conv_in(sample)
        skipped = [hidden]
        for layer in _layers(unet.down_blocks[0]):
            hidden = _through(layer, hidden, embedding, states)
            skipped.append(hidden)
        hidden = features
        for layer in _layers(unet.up_blocks[0]):
            hidden = _through(layer, torch.cat([hidden, skipped.pop()], dim=1), embedding, states)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))).float()


def _layers(block: Any) -> list[tuple[Any, Any]]:
    return list(zip(block.resnets, block.attentions, strict=True))


def _through(layer: tuple[Any, Any], hidden: Tensor, embedding: Tensor, states: Tensor | None) -> Tensor:
    resnet, attention = layer
    hidden = resnet(hidden, embedding)
    return hidden if attention is None else attention(hidden, encoder_hidden_states=states, return_dict=False)[0]


def _with_picture(sample: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """What the first convolution takes: of a UNet that draws parts of pictures, what it is told of one, too."""
    told = [given[name] for name in TOLD if name in given]
    return torch.cat([sample, *told], dim=1) if told else sample


def _arguments(names: tuple[str, ...], extra: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Any]:
    """What diffusers' forward takes beside sample, timestep and states."""
    given = {name: value.to(dtype) for name, value in zip(names, extra, strict=True)}
    arguments: dict[str, Any] = {}
    if "text_embeds" in given:
        arguments["added_cond_kwargs"] = {"text_embeds": given["text_embeds"], "time_ids": given["time_ids"]}
    if "timestep_cond" in given:
        arguments["timestep_cond"] = given["timestep_cond"]
    return arguments
