"""The architecture of `shapes`: tokenizer, CLIP-type text encoder, AutoencoderKL and UNet2DConditionModel, all small."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nereid_zoo.shapes.captions import write_caption
from nereid_zoo.shapes.scenes import IMAGE_SIZE, sample_scene

MAX_TOKENS = 32
"""Longest prompt in tokens, begin and end marks included."""
VAE_SCALE_FACTOR = 8
LATENT_SIZE = IMAGE_SIZE // VAE_SCALE_FACTOR
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

SCHEDULER_CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn a byte-level BPE of CLIP's kind from 20,000 captions and write `vocab.json` and `merges.txt` to `folder`."""
    rng = Random(0)
    captions = [write_caption(sample_scene(rng), rng).text for _ in range(20_000)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False, min_frequency=20
        ),
    )
    merges = json.loads(bpe.to_str())["model"]["merges"]
    pairs = [tuple(merge.split()) if isinstance(merge, str) else tuple(merge) for merge in merges]
    symbols = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    vocabulary = [*dict.fromkeys([*symbols, *("".join(pair) for pair in pairs)]), BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(table, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three causal transformer layers, 128 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> AutoencoderKL:
    """Four levels: 128 x 128 pixels to 16 x 16 latents of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def make_tiny_vae() -> AutoencoderTiny:
    """The same sizes as `make_vae`; a decode takes less than a fifth of its multiplications, most of them at the small levels."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1, 1, 2, 2),
        num_decoder_blocks=(6, 6, 2, 0),
        latent_channels=4,
    )


def make_unet() -> UNet2DConditionModel:
    """Three levels (16, 8 and 4 latents wide); cross-attention to the caption on the lower two."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
    )
