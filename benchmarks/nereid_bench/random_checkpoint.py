"""A checkpoint of Stable Diffusion 1.5's real sizes with random weights, for measuring what weights do not change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from nereid_zoo.shapes.score import CHECKPOINT

SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": 512,
}


def sd15_at(folder: Path, say: Callable[[str], None], side: int = 512) -> Path:
    """The checkpoint in `folder`, written unless it is there; its pictures have `side` pixels a side where nothing is said."""
    if not (folder / "model_index.json").is_file():
        say("writing a random checkpoint of Stable Diffusion 1.5's sizes")
        make_sd15(folder, CHECKPOINT / "tokenizer", side)
    return folder


def tiny_vae_at(folder: Path) -> Path:
    """A tiny VAE of TAESD's sizes, which are diffusers' own, with random weights, written unless it is there."""
    import torch
    from diffusers import AutoencoderTiny

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        beside = folder.with_name(f"{folder.name}.new")  # whole or not at all
        shutil.rmtree(beside, ignore_errors=True)
        AutoencoderTiny().save_pretrained(beside)
        beside.replace(folder)
    return folder


def make_sd15(folder: Path, tokenizer_folder: Path, side: int = 512) -> None:
    """Write the checkpoint; the tokenizer is borrowed, its vocabulary padded to CLIP's 49,408 in the embedding alone."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49408,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SD15_TEXT,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**{**SD15_VAE, "sample_size": side}),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**{**SD15_UNET, "sample_size": side // 8}),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
