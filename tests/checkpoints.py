"""Tiny checkpoints with random weights, of every family that export knows, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nereid_zoo.shapes.model import train_tokenizer

LENGTH, WIDTH = 16, 32
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def _unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def _vae(channels: tuple[int, ...] = (8, 16, 16), **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        **changes,
    )


def _text_config(tokenizer: Any, width: int = WIDTH, layers: int = 3) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_sd(folder: Path, *, scheduler: Any = None, **unet: Any) -> Path:
    """A Stable Diffusion 1.x or 2.x style checkpoint; returns its folder."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(folder / "bpe")
    tokenizer.model_max_length = LENGTH
    pipeline = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=_unet(**unet),
        scheduler=scheduler or PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def make_inpainting(folder: Path, *, xl: bool = False) -> Path:
    """A checkpoint whose UNet is told a mask and the rest of a picture."""
    kind = StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline
    checkpoint = (make_sdxl if xl else make_sd)(folder, in_channels=9, out_channels=4)
    index = json.loads((checkpoint / "model_index.json").read_text())
    (checkpoint / "model_index.json").write_text(json.dumps({**index, "_class_name": kind.__name__}))
    return checkpoint


def make_tiny_vae(folder: Path, *, levels: int = 3, **changes: Any) -> Path:
    """A tiny VAE for the latents of `make_sd`; returns its folder."""
    torch.manual_seed(0)
    halves = {f"{half}_block_out_channels": (8,) * levels for half in ("encoder", "decoder")}
    blocks = {f"num_{half}_blocks": (1,) * levels for half in ("encoder", "decoder")}
    AutoencoderTiny(**halves, **blocks, **changes).save_pretrained(folder)
    return folder


def make_lcm(folder: Path) -> Path:
    """A guidance-distilled latent consistency model."""
    return make_sd(folder, scheduler=LCMScheduler(**SCHEDULER), time_cond_proj_dim=32)


def make_v_prediction(folder: Path) -> Path:
    return make_sd(folder, scheduler=PNDMScheduler(**SCHEDULER, skip_prk_steps=True, prediction_type="v_prediction"))


def make_sdxl(folder: Path, vae: AutoencoderKL | None = None, text_layers: int = 3, **changes: Any) -> Path:
    """A Stable Diffusion XL style checkpoint: two text encoders, pooled embeddings, time ids."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(folder / "bpe")
    tokenizer.model_max_length = LENGTH
    settings: dict[str, Any] = {
        "cross_attention_dim": WIDTH + 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "transformer_layers_per_block": (1, 2),
    }
    unet = _unet(**{**settings, **changes})
    pipeline = StableDiffusionXLPipeline(
        vae=vae or _vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, layers=text_layers)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, 24, text_layers)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
        force_zeros_for_empty_prompt=True,
    )
    pipeline.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


GEMMA3: dict[str, Any] = {
    "head_dim": 16,
    "hidden_size": 80,  # whose root is no whole number
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
PHI4_MINI: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "original_max_position_embeddings": 50,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1 + 0.2 * i for i in range(8)],
        "long_factor": [3.0 + i for i in range(8)],
    },
}


def make_llm(folder: Path, family: str, **settings: object) -> Path:
    """A transformers folder of a tiny decoder with random weights and a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GemmaConfig,
        GemmaForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Phi3Config,
        Phi3ForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        SmolLM3Config,
        SmolLM3ForCausalLM,
    )

    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": 256,
    }
    kinds = {
        "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 16}),
        "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 16}),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, GEMMA3),
        "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
        "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
        "phi3": (Phi3Config, Phi3ForCausalLM, {"original_max_position_embeddings": 256}),
        "phi4-mini": (Phi3Config, Phi3ForCausalLM, PHI4_MINI),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
        "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0]}),
    }
    config, kind, extra = kinds[family]
    torch.manual_seed(0)
    model = kind(config(**{**sizes, **extra, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():  # larger than a fresh model's, biases too, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, safe_serialization=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return folder


def make_smallest_sdxl(folder: Path) -> Path:
    """The same with one layer of each kind, and only the VAE of two resolutions, for engines that take long to compile."""
    return make_sdxl(
        folder,
        vae=_vae((8, 8), mid_block_add_attention=False),
        text_layers=1,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        transformer_layers_per_block=1,
    )


def make_layout(folder: Path, **settings: Any) -> Path:
    """A layout transformer whose zeros are replaced: as training starts with it, it answers nothing."""
    from nereid_zoo.layout.folders import save
    from nereid_zoo.layout.model import LayoutTransformer

    torch.manual_seed(0)
    transformer = LayoutTransformer(**(settings or {"width": 48, "layers": 2, "heads": 3, "mlp_ratio": 2}))
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    save(transformer, folder)
    return folder


def make_dynamic_layout(folder: Path, *, tokens: bool = False, **settings: Any) -> Path:
    """The same with a dynamic transformer beside it, of three widths and with weights of its own.

    With `tokens`, its MLPs pass over about a third of them.
    """
    from nereid_zoo.layout.dynamic import DynamicLayoutTransformer
    from nereid_zoo.layout.dynamic_train import save_dynamic
    from nereid_zoo.layout.folders import load

    make_layout(folder, **settings)
    network = DynamicLayoutTransformer.of(load(folder), groups=6)
    with torch.no_grad():
        network.transformer.last.weight.mul_(1.1)
    widths = [
        {"up_to": 200.0, "heads": [[0, 1, 2], [1]], "groups": [[0, 1, 2, 3, 4, 5], [0, 3]]},
        {"up_to": 500.0, "heads": [[2], [0, 2]], "groups": [[5], [0, 1, 2]]},
        {"up_to": None, "heads": [[0, 1, 2], [0, 1, 2]], "groups": [[0, 1, 2, 3, 4], [*range(6)]]},
    ]
    network.register_to_config(widths=widths)
    if tokens:
        network = network.with_token_routers()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for block in network.transformer.blocks:
                block.router.weight.normal_(std=0.1, generator=generator)
                block.router.bias.fill_(0.3)
    save_dynamic(network, folder, folder)
    return folder


EVERY_OTHER = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "max_window_layers": 1}
"""Settings of a model whose layers look at a window and at all, in turn."""


def with_settings(checkpoint: Path, settings: dict[str, object]) -> Path:
    """The checkpoint with other settings in its config.json."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **settings}))
    return checkpoint
