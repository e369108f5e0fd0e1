"""Distils `shapes` to few steps: a latent consistency model, then distribution matching from it; each stage resumable.

Consistency: Luo et al., 2023 (Latent Consistency Models), with the guidance of the teacher fixed, so that a step is one row.
It trains the whole UNet, or LoRA weights of it (LCM-LoRA, Luo et al., 2023b).
Distribution matching: Yin et al., 2024 (DMD2), without its adversarial part: the student's pictures are moved along the
difference of two score functions, the teacher's (guided) and that of a network which follows the student's own pictures.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule, update_ema
from nereid_zoo.shapes import model
from nereid_zoo.shapes.captions import write_caption
from nereid_zoo.shapes.learner import LORA_FILE, Adapters, Learner, Network, WholeNetwork, fuse
from nereid_zoo.shapes.scenes import sample_scene
from nereid_zoo.shapes.train import TrainingPlan, encode_scenes, tokenize
from nereid_zoo.stages import finished_stage, forget_places

GRID = 50
"""Steps of the teacher's DDIM; the student knows its timesteps, every twentieth from 19 to 999."""
GUIDANCE = 5.0
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary condition, as diffusers' LCMScheduler has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationPlan:
    """How long each stage trains. Matching is done at the timesteps that LCMScheduler has for so many `steps`, in turn."""

    work: Path
    teacher: Path
    student: Path | None = None
    """A student to go on from, instead of a consistency distillation from the teacher."""
    device: str = "cpu"
    steps: tuple[int, ...] = (2,)
    consistency_minutes: float = 60
    matching_minutes: float = 0
    lora_rank: int = 0
    """Of the LoRA weights that the consistency distillation trains; 0 where it trains the whole UNet. Not with matching."""
    batch_size: int = 32
    fake_updates: int = 2
    scenes: int = 24_000
    seed: int = 0


def weights_digest(folder: Path) -> str:
    """SHA-256 of a pipeline's weights."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*/*.safetensors")))).hexdigest()


class Teacher:
    """The pipeline that is distilled, with its noise schedule; all in float32 on one device."""

    def __init__(self, folder: Path, device: str) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).to(device)
        self.pipeline, self.unet, self.device = pipeline, pipeline.unet.eval().requires_grad_(False), device
        self.alphas: Tensor = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.to(device)
        self.empty = self.states([""])
        self.digest = weights_digest(folder)

    @torch.no_grad()
    def states(self, texts: list[str]) -> Tensor:
        """Of captions: rows x 32 x 128."""
        ids = tokenize(self.pipeline.tokenizer, texts).to(self.device)
        return self.pipeline.text_encoder(ids).last_hidden_state

    def scales(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise at timesteps, rows x 1 x 1 x 1."""
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, level = self.scales(timesteps)
        return signal * clean + level * noise

    def clean(self, unet: Network, sample: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """What a network takes for the clean latents; all of them predict v."""
        signal, level = self.scales(timesteps)
        return signal * sample - level * unet(sample, timesteps, states).sample

    @torch.no_grad()
    def guided(self, sample: Tensor, timesteps: Tensor, states: Tensor, guidance: float) -> Tensor:
        """The teacher's clean latents under classifier-free guidance."""
        both = torch.cat([states, self.empty.expand(len(states), -1, -1)])
        made = self.clean(self.unet, sample.repeat(2, 1, 1, 1), timesteps.repeat(2), both)
        conditional, unconditional = made.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def consistent(self, unet: Network, sample: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """A consistency model's clean latents: with the boundary condition of Song et al., 2023."""
        scaled = timesteps.view(-1, 1, 1, 1) * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        return skip * sample + out * self.clean(unet, sample, timesteps, states)


def batches(plan: DistillationPlan, teacher: Teacher, rng: Random) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that gives clean latents and states of fresh captions of the same scenes."""
    source = TrainingPlan(work=plan.work, device=plan.device, scenes=plan.scenes)
    scenes, latents = encode_scenes(source, teacher.pipeline.vae)

    def draw() -> tuple[Tensor, Tensor]:
        rows = [rng.randrange(len(scenes)) for _ in range(plan.batch_size)]
        texts = [write_caption(scenes[row], rng).text for row in rows]
        return latents[rows].to(plan.device), teacher.states(texts)

    return draw


def captions(plan: DistillationPlan, teacher: Teacher, rng: Random) -> Tensor:
    """States of captions of scenes that are drawn for them: distribution matching needs no pictures."""
    return teacher.states([write_caption(sample_scene(rng), rng).text for _ in range(plan.batch_size)])


def distil_consistency(plan: DistillationPlan, teacher: Teacher) -> UNet2DConditionModel:
    """A whole UNet, the moving average of its student."""
    whole = WholeNetwork(teacher.unet)
    train_consistency(plan, teacher, whole)
    return whole.average


def distil_lora(plan: DistillationPlan, teacher: Teacher, folder: Path) -> None:
    """LoRA weights of `plan.lora_rank` for the teacher's UNet, written to `folder`."""
    adapters = Adapters(teacher.unet, plan.lora_rank, plan.seed)
    train_consistency(plan, teacher, adapters)
    adapters.save(folder)
    adapters.remove()


def train_consistency(plan: DistillationPlan, teacher: Teacher, learner: Learner) -> None:
    """The student agrees with its own moving average, one step of the teacher's guided DDIM further on."""
    optimizer = optimizer_of(learner.weights.parameters())
    draw = batches(plan, teacher, Random(plan.seed + 21))
    generator = torch.Generator(plan.device).manual_seed(plan.seed + 21)
    stride = len(teacher.alphas) // GRID
    for step, rate in schedule("consistency", plan.consistency_minutes, peak=learner.peak):
        clean, states = draw()
        strata = torch.arange(len(clean), device=plan.device)
        offsets = torch.rand(len(clean), generator=generator, device=plan.device)
        timesteps = ((strata + offsets) / len(clean) * GRID).long() * stride + stride - 1
        noise = torch.randn(clean.shape, generator=generator, device=plan.device)
        sample = teacher.noisy(clean, noise, timesteps)
        with torch.no_grad():
            with learner.teaching():
                guided = teacher.guided(sample, timesteps, states, GUIDANCE)
            signal, level = teacher.scales(timesteps)
            before = (timesteps - stride).clamp(min=0)
            last = (timesteps < stride).view(-1, 1, 1, 1)
            nearer = teacher.noisy(guided, (sample - signal * guided) / level, before)
            target = torch.where(last, guided, teacher.consistent(learner.average, nearer, before, states))
        error = teacher.consistent(learner.student, sample, timesteps, states) - target
        loss = ((error.square() + 1e-6).sqrt() - 1e-3).mean()
        optimizer_step(optimizer, loss, rate)
        learner.follow(decay=min(0.98, (step + 1) / (step + 20)))
        if step % 100 == 0:
            report("consistency", step, loss=loss.item(), rate=rate)


def student_timesteps(steps: int) -> list[int]:
    """LCMScheduler's own, highest first."""
    scheduler = LCMScheduler.from_config(student_scheduler())
    scheduler.set_timesteps(steps)
    return [int(value) for value in scheduler.timesteps]


def student_scheduler() -> dict[str, object]:
    """scheduler_config.json of a student."""
    shared = {name: model.SCHEDULER_CONFIG[name] for name in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")}
    return {
        **shared,
        "prediction_type": "v_prediction",
        "original_inference_steps": GRID,
        "timestep_scaling": TIMESTEP_SCALING,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def distil_matching(plan: DistillationPlan, teacher: Teacher, student: UNet2DConditionModel) -> UNet2DConditionModel:
    """The student's pictures at its own timesteps, moved towards the teacher's distribution; returns its moving average."""
    fake = deepcopy(teacher.unet).train().requires_grad_(True)
    student = student.train().requires_grad_(True)
    average = deepcopy(student)
    ours, theirs = optimizer_of(student.parameters()), optimizer_of(fake.parameters())
    rng, generator = Random(plan.seed + 22), torch.Generator(plan.device).manual_seed(plan.seed + 22)
    schedules = [torch.tensor(student_timesteps(steps), device=plan.device) for steps in plan.steps]
    shape = (plan.batch_size, 4, model.LATENT_SIZE, model.LATENT_SIZE)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, device=plan.device)

    def draw(states: Tensor) -> Tensor:
        """The student's clean latents at some step of some schedule, from its own of the steps before (without gradient)."""
        levels = rng.choice(schedules)
        wanted = rng.randrange(len(levels))
        sample = made = noise()
        for number in range(wanted + 1):
            timesteps = levels[number].expand(len(states))
            if number:
                sample = teacher.noisy(made, noise(), timesteps)
            with torch.set_grad_enabled(number == wanted and torch.is_grad_enabled()):
                made = teacher.consistent(student, sample, timesteps, states)
        return made

    def any_timesteps(least: int, most: int) -> Tensor:
        return torch.randint(least, most, (plan.batch_size,), generator=generator, device=plan.device)

    for step, rate in schedule("matching", plan.matching_minutes, peak=1e-4):
        wrong = torch.tensor(torch.nan)
        for _ in range(plan.fake_updates):
            states = captions(plan, teacher, rng)
            with torch.no_grad():
                made = draw(states)
            timesteps = any_timesteps(0, len(teacher.alphas))
            added = noise()
            sample = teacher.noisy(made, added, timesteps)
            signal, level = teacher.scales(timesteps)
            predicted = fake(sample, timesteps, states).sample
            wrong = (predicted - (signal * added - level * made)).square().mean()
            optimizer_step(theirs, wrong, rate)
        states = captions(plan, teacher, rng)
        made = draw(states)
        timesteps = any_timesteps(20, 980)
        sample = teacher.noisy(made.detach(), noise(), timesteps)
        with torch.no_grad():
            real = teacher.guided(sample, timesteps, states, GUIDANCE)
            towards = teacher.clean(fake, sample, timesteps, states) - real
            scale = (made - real).abs().mean((1, 2, 3), keepdim=True)
            aim = made - towards / scale.clamp(min=1e-3)
        loss = 0.5 * (made - aim).square().mean()
        optimizer_step(ours, loss, rate)
        update_ema(average, student, decay=min(0.98, (step + 1) / (step + 20)))
        if step % 50 == 0:
            report("matching", step, fake=wrong.item(), moved=towards.abs().mean().item(), rate=rate)
    return average


def distil(plan: DistillationPlan, destination: Path) -> None:
    """Run the stages that `plan.work` does not hold yet and save a diffusers folder in fp16 to `destination`.

    With `plan.lora_rank`, the LoRA weights that are in its UNet lie in it, too, as a file for the teacher.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(plan.teacher, plan.device)
    facts: dict[str, object] = {"teacher": teacher.digest, "scenes": plan.scenes, "seed": plan.seed}
    if plan.lora_rank:
        facts |= {"minutes": plan.consistency_minutes, "lora_rank": plan.lora_rank}
        lora = finished_stage(
            plan.work / f"consistency-lora-rank{plan.lora_rank}", facts, lambda beside: distil_lora(plan, teacher, beside)
        )
        fuse(teacher.unet, lora)
        save_student(teacher, destination)
        shutil.copyfile(lora / LORA_FILE, destination / LORA_FILE)
        return
    if plan.student is None:
        facts |= {"minutes": plan.consistency_minutes}
        unet = _stage(plan, "consistency", facts, lambda: distil_consistency(plan, teacher))
    else:
        facts |= {"student": weights_digest(plan.student)}
        unet = UNet2DConditionModel.from_pretrained(plan.student / "unet", use_safetensors=True).float().to(plan.device)
    if plan.matching_minutes:
        facts = {**facts, "matching_minutes": plan.matching_minutes, "steps": plan.steps}
        unet = _stage(plan, f"matching-{'-'.join(map(str, plan.steps))}step", facts, lambda: distil_matching(plan, teacher, unet))
    teacher.pipeline.unet = unet
    save_student(teacher, destination)
    (destination / LORA_FILE).unlink(missing_ok=True)  # it would be another student's


def save_student(teacher: Teacher, destination: Path) -> None:
    """Write what has become of the teacher's pipeline as a consistency model's diffusers folder, in fp16."""
    teacher.pipeline.scheduler = LCMScheduler.from_config(student_scheduler())
    teacher.pipeline.to(dtype=torch.float16).save_pretrained(destination, safe_serialization=True)
    forget_places(destination)


def _stage(
    plan: DistillationPlan, name: str, facts: Mapping[str, object], train: Callable[[], UNet2DConditionModel]
) -> UNet2DConditionModel:
    folder = finished_stage(plan.work / name, facts, lambda beside: train().save_pretrained(beside))
    return UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).to(plan.device)
