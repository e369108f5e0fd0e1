"""The parts of a pipeline as torch modules with the inputs and outputs that the engines have; knows nothing of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nereid.diffusion.feature_cache import FEATURES, SHALLOW
from nereid.diffusion.inpainting import MASK, MASKED_IMAGE_LATENTS
from nereid.diffusion.settings import Decoder
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.errors import ExportError
from nereid_export.families import export_family
from nereid_export.silence import quiet
from nereid_export.split_unet import ShallowUnet, Unet, attends, features_channels

TINY_DECODER = Decoder.TINY.component
"""The component of a tiny VAE that was given beside the checkpoint."""

_OF_TOKENS = ("tokens", "places")
"""Named dimensions that have nothing to do with a picture's size."""
# Odd on purpose: a UNet traced at sizes that its levels divide evenly fails at all others.
TRACE_HEIGHT, TRACE_WIDTH = 37, 29


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of an engine, without its batch dimension. Dimensions are sizes, or names where they vary.

    `scale` and `high` say what random test data looks like: normal with this scale, or whole numbers below `high`.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    high: int = 0

    def random(self, rows: int, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        shape = [rows, *(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)]
        if self.high:
            whole = torch.randint(0, self.high, shape, generator=generator)
            return whole.to(self.dtype)
        return torch.randn(shape, generator=generator) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part to export: `name` is its Triton model's, `load` gives the module in float32."""

    name: str
    source: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    load: Callable[[], nn.Module]
    keep_fp32: bool = False
    example: dict[str, int]
    checks: tuple[tuple[int, dict[str, int]], ...]
    derived: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    """Of random inputs, those that are no random numbers where it runs: they follow from the others."""
    opset: int | None = None
    """Of the graph that ONNX Runtime has in float; None: that of all others."""

    @property
    def denoises(self) -> bool:
        """Whether the denoising loop calls it, with two rows for a guided picture."""
        return self.source == "unet"

    @property
    def spatial(self) -> bool:
        """Whether its runs grow with the picture."""
        return any(isinstance(dim, str) and dim not in _OF_TOKENS for spec in self.inputs for dim in spec.dims)


def sizes_at(component: Component, side: int, scale: int) -> dict[str, int]:
    """The named dimensions for square pictures of `side` pixels, where a latent is `scale` pixels wide."""
    return sizes_of(component, side, side, scale)


def sizes_of(component: Component, width: int, height: int, scale: int) -> dict[str, int]:
    """The same for pictures of `width` x `height` pixels."""
    own = scale if component.denoises else 1
    tokens = component.example.get("tokens", 77)
    latents = {"latent_height": height // scale, "latent_width": width // scale}
    return {**component.example, **latents, "tokens": tokens, "height": height // own, "width": width // own}


class TextEncoder(nn.Module):
    """Token ids to the hidden states that the UNet attends to, and, for XL's second encoder, the pooled embedding."""

    def __init__(self, encoder: nn.Module, layer: int | None, pooled: bool) -> None:
        super().__init__()
        self.encoder, self.layer, self.pooled = encoder, layer, pooled

    def forward(self, input_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        made = self.encoder(input_ids.long(), output_hidden_states=self.layer is not None)
        states = made.last_hidden_state if self.layer is None else made.hidden_states[self.layer]
        return (states.float(), made.text_embeds.float()) if self.pooled else states.float()


class VaeDecoder(nn.Module):
    """Latents as the denoising loop keeps them to an image in -1..1; a tiny VAE's own latents are these (its scale is 1)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale, self.shift = vae, vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def forward(self, latents: Tensor) -> Tensor:
        unscaled = latents / self.scale + self.shift
        return self.vae.decode(unscaled.to(self.vae.dtype), return_dict=False)[0].float()


class VaeEncoder(nn.Module):
    """An image in -1..1 to mean and standard deviation of its latents, scaled as the denoising loop keeps them."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.scale, self.shift = vae, vae.config.scaling_factor, vae.config.shift_factor or 0.0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(image.to(self.vae.dtype)).latent_dist
        mean = (posterior.mean.float() - self.shift) * self.scale
        return mean, posterior.std.float() * self.scale


def components_of(checkpoint: Checkpoint) -> tuple[Component, ...]:
    """Every part of the checkpoint that becomes an engine."""
    encoders = export_family(checkpoint.family).serving.encoders
    vae = checkpoint.config("vae")
    channels = int(vae.get("latent_channels", 4))
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    sizes = {"height": TRACE_HEIGHT, "width": TRACE_WIDTH}
    pixels = {"height": 12 * scale, "width": 10 * scale}
    latents = TensorSpec(name="latents", dims=(channels, "latent_height", "latent_width"))
    image = TensorSpec(name="image", dims=(3, "height", "width"), scale=0.5)
    small = {"latent_height": 12, "latent_width": 10}
    decoder = Component(
        name="vae_decoder",
        source="vae",
        inputs=(latents,),
        outputs=(image,),
        load=lambda: VaeDecoder(_load_vae(checkpoint)),
        keep_fp32=bool(vae.get("force_upcast", False)),
        example=small,
        checks=((1, small), (3, {"latent_height": 9, "latent_width": 16})),
    )
    tiny = checkpoint.tiny_vae

    def tiny_decoder() -> nn.Module:
        assert tiny is not None
        return VaeDecoder(tiny.load())

    return (
        *(_text_encoder(checkpoint, encoder.model, encoder.pooled) for encoder in encoders),
        *_unets(checkpoint, sizes),
        decoder,
        *(() if tiny is None else (replace(decoder, name=TINY_DECODER, source="tiny_vae", load=tiny_decoder, keep_fp32=False),)),
        Component(
            name="vae_encoder",
            source="vae",
            inputs=(image,),
            outputs=tuple(
                TensorSpec(name=name, dims=(channels, "latent_height", "latent_width"))
                for name in ("latents_mean", "latents_std")
            ),
            load=lambda: VaeEncoder(_load_vae(checkpoint)),
            keep_fp32=bool(vae.get("force_upcast", False)),
            example=pixels,
            checks=((1, pixels), (2, {"height": 9 * scale, "width": 16 * scale})),
        ),
    )


def _text_encoder(checkpoint: Checkpoint, name: str, pooled: bool) -> Component:
    config = checkpoint.config(name)
    width, length = int(config["hidden_size"]), int(config["max_position_embeddings"])
    outputs = [TensorSpec(name="prompt_embeds", dims=(length, width))]
    if pooled:
        outputs.append(TensorSpec(name="pooled_prompt_embeds", dims=(int(config["projection_dim"]),)))
    ids = TensorSpec(name="input_ids", dims=(length,), dtype=torch.int32, high=int(config["vocab_size"]))

    def load() -> nn.Module:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModelWithProjection if pooled else CLIPTextModel
        # Attention as plain matrix products: the other kernels of transformers do not trace at every batch size.
        encoder = _quiet_load(
            checkpoint, name, lambda path, **how: kind.from_pretrained(path, attn_implementation="eager", **how)
        )
        return TextEncoder(encoder, export_family(checkpoint.family).text_layer, pooled)

    return Component(
        name=name, source=name, inputs=(ids,), outputs=tuple(outputs), load=load, example={}, checks=((1, {}), (3, {}))
    )


def _unets(checkpoint: Checkpoint, sizes: dict[str, int]) -> Iterator[Component]:
    """The UNet, and its outer part alone where the checkpoint was opened with a branch for feature caching."""
    config, branch = checkpoint.config("unet"), checkpoint.cache_branch
    spatial = (checkpoint.latent_channels, "height", "width")
    inputs = [
        TensorSpec(name="sample", dims=spatial),
        TensorSpec(name="timestep", dims=(1,), high=1000),
        TensorSpec(name="encoder_hidden_states", dims=("tokens", int(config["cross_attention_dim"]))),
    ]
    for extra in export_family(checkpoint.family).extra_inputs(checkpoint.config):
        inputs.append(TensorSpec(name=extra.name, dims=(extra.width,), high=extra.high))
    if config.get("time_cond_proj_dim"):
        inputs.append(TensorSpec(name="timestep_cond", dims=(int(config["time_cond_proj_dim"]),)))
    if checkpoint.inpainting:
        inputs += [TensorSpec(name=MASK, dims=(1, *spatial[1:])), TensorSpec(name=MASKED_IMAGE_LATENTS, dims=spatial)]
    names = tuple(spec.name for spec in inputs[3:])
    length = int(checkpoint.config("text_encoder")["max_position_embeddings"])
    out = TensorSpec(name="out_sample", dims=spatial)

    def load() -> Any:
        from diffusers import UNet2DConditionModel

        return _quiet_load(checkpoint, "unet", UNet2DConditionModel.from_pretrained)

    whole = Component(
        name="unet",
        source="unet",
        inputs=tuple(inputs),
        outputs=(out,),
        load=lambda: Unet(load(), names, branch),
        example={**sizes, "tokens": length},
        checks=(
            (1, {"height": 16, "width": 16, "tokens": length}),
            (3, {"height": 13, "width": 18, "tokens": length}),
        ),
    )
    if branch is None:
        yield whole
        return
    width = features_channels(config, branch, checkpoint.folder / "unet")
    features = TensorSpec(name=FEATURES, dims=(width, "height", "width"))
    yield replace(whole, outputs=(out, features))
    outer = tuple(spec for spec in whole.inputs if spec.name != "encoder_hidden_states" or attends(config, branch))
    taken = (*outer, features)
    yield replace(whole, name=SHALLOW, inputs=taken, load=lambda: ShallowUnet(load(), tuple(spec.name for spec in taken), branch))


def _load_vae(checkpoint: Checkpoint) -> Any:
    from diffusers import AutoencoderKL

    return _quiet_load(checkpoint, "vae", AutoencoderKL.from_pretrained)


def _quiet_load(checkpoint: Checkpoint, component: str, load: Callable[..., Any]) -> Any:
    """A component in float32, with all that is fused into it; raises ExportError where its weights do not fit its config."""
    folder = checkpoint.folder / component
    with understood(folder), quiet():
        module = load(str(folder), variant=checkpoint.variant(component)).eval().float()
        for item in checkpoint.fused:
            item.fuse(checkpoint.config("unet"), component, module)
        return finite(folder, module)


def finite(folder: Path, module: Any) -> Any:
    """The module; raises ExportError where a weight is none that can be computed with."""
    for name, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{folder}: {name} holds NaN or infinite values; weights must be finite")
    return module
