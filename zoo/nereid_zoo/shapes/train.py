"""Trains `shapes` in four stages (tokenizer, text encoder, VAE, UNet), each resumable; about two hours on two CPU cores."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule, update_ema
from nereid_zoo.shapes import model
from nereid_zoo.shapes.captions import Demand, write_caption
from nereid_zoo.shapes.scenes import BACKGROUNDS, COLORS, POSITIONS, Layout, Scene, Shape, Size, render, sample_scene
from nereid_zoo.stages import finished_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How long each stage trains, and where. Budgets are in minutes of wall clock; a stage ends at its budget."""

    work: Path
    device: str = "cpu"
    text_minutes: float = 6
    vae_minutes: float = 21
    unet_minutes: float = 96
    scenes: int = 24_000
    batch_size: int = 32
    seed: int = 0


# --- text encoder: learns to understand captions before any picture is drawn ---

SLOTS: tuple[tuple[str, ...], ...] = (
    tuple(Layout),
    ("", *BACKGROUNDS),
    ("", *POSITIONS),
    *(choices for _ in range(2) for choices in (("", *COLORS), ("", *Shape), ("", *Size))),
)
"""What the text encoder's end token must tell of a caption, each a closed choice ('' where nothing is said)."""


def slot_labels(demand: Demand) -> list[int]:
    """The right choice of each of SLOTS."""
    values: list[str] = [demand.layout, demand.background or "", demand.objects[0].position or ""]
    for index in range(2):
        item = demand.objects[index] if index < len(demand.objects) else None
        values += [item.color, item.shape, item.size or ""] if item else ["", "", ""]
    return [choices.index(value) for choices, value in zip(SLOTS, values, strict=True)]


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids padded to the longest prompt: int64, rows x 32."""
    batch = tokenizer(texts, padding="max_length", max_length=model.MAX_TOKENS, truncation=True, return_tensors="pt")
    return batch.input_ids


def train_text_encoder(plan: TrainingPlan, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Predict every slot of a caption from the end token's last hidden state."""
    encoder = model.make_text_encoder(tokenizer).to(plan.device)
    head = nn.Linear(encoder.config.hidden_size, sum(map(len, SLOTS))).to(plan.device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = optimizer_of(parameters)
    rng = Random(plan.seed + 1)
    for step, rate in schedule("text encoder", plan.text_minutes, peak=1.5e-3):
        captions = [write_caption(sample_scene(rng), rng) for _ in range(128)]
        ids = tokenize(tokenizer, [caption.text for caption in captions])
        labels = torch.tensor([slot_labels(caption.demand) for caption in captions]).to(plan.device)
        hidden = encoder(ids.to(plan.device)).last_hidden_state
        ends = hidden[torch.arange(len(ids)), (ids == tokenizer.eos_token_id).int().argmax(1)]
        logits = head(ends).split([len(choices) for choices in SLOTS], dim=1)
        loss = sum((F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)), torch.zeros(()))
        optimizer_step(optimizer, loss, rate)
        if step % 50 == 0:
            right = torch.stack([part.argmax(1) == labels[:, i] for i, part in enumerate(logits)]).all(0)
            report("text encoder", step, loss=loss.item(), captions_understood=right.float().mean().item())
    return encoder


# --- VAE ---


def train_vae(plan: TrainingPlan) -> AutoencoderKL:
    """Reconstruct crops around objects (plain background teaches little), then whole pictures.

    The second phase cannot be left out: the statistics of group normalisation are those of the whole input.
    """
    vae = model.make_vae().to(plan.device)
    with torch.no_grad():  # start from a narrow posterior: a wide one drowns the picture for the first thousands of steps
        channels = vae.config.latent_channels
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = -5
    rng = Random(plan.seed + 2)
    reconstruct(plan, vae, rng, minutes=plan.vae_minutes * 0.55, crops=True)
    reconstruct(plan, vae, rng, minutes=plan.vae_minutes * 0.45, crops=False)
    with torch.no_grad():
        batches = [pixels_of([sample_scene(rng) for _ in range(16)]).to(plan.device) for _ in range(16)]
        latents = torch.cat([vae.encode(pixels).latent_dist.mean for pixels in batches])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae


def reconstruct(plan: TrainingPlan, vae: AutoencoderKL, rng: Random, *, minutes: float, crops: bool) -> None:
    """One phase of the VAE's training: on 24 crops of 32 x 32 pixels a step, or on 6 whole pictures."""
    optimizer = optimizer_of(vae.parameters())
    stage = "vae on crops" if crops else "vae on pictures"
    for step, rate in schedule(stage, minutes, peak=1.5e-3 if crops else 8e-4):
        scenes = [sample_scene(rng) for _ in range(24 if crops else 6)]
        pixels = (_crops(pixels_of(scenes), scenes, rng) if crops else pixels_of(scenes)).to(plan.device)
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample()).sample - pixels
        loss = 4 * error.square().mean() + 0.3 * error.abs().mean() + 1e-6 * posterior.kl().mean()
        optimizer_step(optimizer, loss, rate)
        if step % 50 == 0:
            psnr = 10 * math.log10(4 / error.square().mean().item())
            report(stage, step, loss=loss.item(), psnr=psnr, latent_std=posterior.mean.std().item())


def pixels_of(scenes: list[Scene]) -> Tensor:
    """Rendered scenes as float32 in -1..1: rows x 3 x 128 x 128."""
    pictures = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _crops(pixels: Tensor, scenes: list[Scene], rng: Random, size: int = 32) -> Tensor:
    """One square crop of each picture with its corner on a multiple of 8, near one of the objects."""
    crops = []
    for picture, scene in zip(pixels, scenes, strict=True):
        item = rng.choice(scene.objects)
        left, top = (
            min(max(round((at - size / 2 + rng.uniform(-16, 16)) / 8) * 8, 0), picture.shape[-1] - size)
            for at in (item.x, item.y)
        )
        crops.append(picture[:, top : top + size, left : left + size])
    return torch.stack(crops)


# --- UNet ---

UNET_PHASES = ((0.32, (0.1, 0.1), 1.2e-3), (0.39, (0.1, 0.4), 8e-4), (0.29, (0.1, 0.4), 5e-4))
"""Share of the UNet's minutes, how often captions are dropped (see fit_unet), highest learning rate."""


@torch.no_grad()
def encode_scenes(plan: TrainingPlan, vae: AutoencoderKL) -> tuple[list[Scene], Tensor]:
    """The training scenes and their scaled latents (scenes x 4 x 16 x 16), computed once."""
    rng = Random(3)
    scenes = [sample_scene(rng) for _ in range(plan.scenes)]
    digest = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in vae.state_dict().values())).hexdigest()
    file = plan.work / f"latents-{plan.scenes}-{digest[:12]}.safetensors"

    def encoded() -> Iterator[Tensor]:
        for start in range(0, len(scenes), 50):
            yield vae.encode(pixels_of(scenes[start : start + 50]).to(plan.device)).latent_dist.mean.cpu()
            if start % 2000 == 0:
                report("latents", start, of=float(len(scenes)))

    return scenes, kept_latents(file, encoded) * vae.config.scaling_factor


def kept_latents(file: Path, compute: Callable[[], Iterator[Tensor]]) -> Tensor:
    """The latents of `file`; computed batch by batch, once, where it is not there whole."""
    if not file.exists():
        beside = file.with_suffix(".unfinished")
        save_file({"latents": torch.cat(list(compute())).contiguous()}, beside)
        beside.rename(file)
    return load_file(file)["latents"]


def train_unet(plan: TrainingPlan, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, vae: AutoencoderKL) -> UNet2DConditionModel:
    """v-prediction with min-SNR weights (Hang et al., 2023), in three phases; returns the moving average.

    The first phase drops the caption from one row in ten, the others from four in ten of the less noisy half, where the
    picture itself tells what it shows: both halves of the guidance then agree there, and high scales do no harm.
    """
    unet = model.make_unet().to(plan.device)
    for number, (share, drop, peak) in enumerate(UNET_PHASES):
        phase = replace(plan, seed=plan.seed + number)
        unet = fit_unet(phase, tokenizer, encoder, vae, unet, minutes=plan.unet_minutes * share, drop=drop, peak=peak)
    return unet


def fit_unet(
    plan: TrainingPlan,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    *,
    minutes: float,
    drop: tuple[float, float],
    peak: float,
) -> UNet2DConditionModel:
    """One phase; `drop` is how often the caption is dropped in the noisier and in the less noisy half."""
    scenes, latents = encode_scenes(plan, vae)
    latents = latents.to(plan.device)
    scheduler = DPMSolverMultistepScheduler.from_config(model.SCHEDULER_CONFIG)
    alphas = scheduler.alphas_cumprod.to(plan.device)
    average = deepcopy(unet)
    optimizer = optimizer_of(unet.parameters())
    rng = Random(f"{plan.seed} {drop}")
    generator = torch.Generator(plan.device).manual_seed(plan.seed)
    for step, rate in schedule("unet", minutes, peak=peak):
        rows = [rng.randrange(len(scenes)) for _ in range(plan.batch_size)]
        # Stratified timesteps: the same spread of noise levels in every batch keeps the gradient calm.
        strata = torch.arange(len(rows), device=plan.device)
        offsets = torch.rand(len(rows), generator=generator, device=plan.device)
        timesteps = ((strata + offsets) / len(rows) * len(alphas)).long()
        lost = [rng.random() < drop[int(t) < len(alphas) * 0.6] for t in timesteps]
        texts = ["" if gone else write_caption(scenes[row], rng).text for row, gone in zip(rows, lost, strict=True)]
        with torch.no_grad():
            states = encoder(tokenize(tokenizer, texts).to(plan.device)).last_hidden_state
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator, device=plan.device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        predicted = unet(noisy, timesteps, states).sample
        ratio = (alpha / (1 - alpha)).flatten()
        weights = ratio.clamp(max=5) / (ratio + 1) + 0.1
        loss = (weights * (predicted - target).square().mean((1, 2, 3))).mean()
        optimizer_step(optimizer, loss, rate)
        update_ema(average, unet, decay=min(0.998, (step + 1) / (step + 20)))
        if step % 100 == 0:
            report("unet", step, loss=loss.item(), rate=rate)
    return average


# --- all of it ---


def train(plan: TrainingPlan, destination: Path) -> None:
    """Run the stages that `plan.work` does not hold yet and save a diffusers folder in fp16 to `destination`."""
    torch.manual_seed(plan.seed)
    plan.work.mkdir(parents=True, exist_ok=True)
    tokenizer = model.train_tokenizer(plan.work / "tokenizer")
    text_folder, vae_folder, unet_folder = (plan.work / name for name in ("text_encoder", "vae", "unet"))
    facts = {"minutes": [plan.text_minutes, plan.vae_minutes, plan.unet_minutes], "scenes": plan.scenes, "seed": plan.seed}
    finished_stage(text_folder, facts, lambda beside: train_text_encoder(plan, tokenizer).save_pretrained(beside))
    finished_stage(vae_folder, facts, lambda beside: train_vae(plan).save_pretrained(beside))
    encoder = CLIPTextModel.from_pretrained(text_folder, use_safetensors=True).to(plan.device).eval()
    vae = AutoencoderKL.from_pretrained(vae_folder, use_safetensors=True).to(plan.device).eval()
    finished_stage(unet_folder, facts, lambda beside: train_unet(plan, tokenizer, encoder, vae).save_pretrained(beside))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(unet_folder),
        scheduler=DPMSolverMultistepScheduler.from_config(model.SCHEDULER_CONFIG),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(destination, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # for readers that know nothing of tokenizer.json
        shutil.copy(plan.work / "tokenizer" / name, destination / "tokenizer" / name)
