"""Distils the VAE of `shapes` to a tiny one of diffusers' kind (AutoencoderTiny): first its decoder, then its encoder.

It speaks of latents as the denoising loop keeps them, which for a tiny VAE are the VAE's own: its scaling factor is 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional

from nereid.flow.errors import first_line
from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule, update_ema
from nereid_zoo.shapes import model
from nereid_zoo.shapes.captions import write_caption
from nereid_zoo.shapes.scenes import Scene, sample_scene
from nereid_zoo.shapes.train import TrainingPlan, encode_scenes, kept_latents, pixels_of
from nereid_zoo.stages import finished_stage

DECODER_SHARE = 0.9
"""Of the minutes; only the decoder is served."""
STUDENT_STEPS, TEACHER_STEPS = (1, 2, 4), (20,)
"""Latents are drawn in each of these numbers of steps, a batch after the other."""
STUDENT_GUIDANCE, TEACHER_GUIDANCE = (1.0,), (3.0, 5.0, 7.5)
NOISE = 0.1
"""Up to this, normal noise is added to latents of scenes: those of a UNet are not quite an encoder's."""
EDGE_WEIGHT, EDGE_MOST = 4.0, 4.0
"""How much more an error weighs for each unit by which colours change within a pixel, and the most that is added: what a shape
is shows at its edge, and a small one's is a few pixels of a picture."""
PEAK, PEAK_GOING_ON = 2e-3, 8e-4
"""Learning rates: of a new tiny VAE, and of one that is trained further."""
POOL, FRESH = 1024, 4
"""Pictures of the full decoder that are kept to learn from, and how many are replaced in each step: each is seen a few times,
since the full decoder takes far longer for a picture than the tiny one takes to learn from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVaePlan:
    """How long both stages train together, in minutes of wall clock, and from what."""

    work: Path
    teacher: Path
    device: str = "cpu"
    minutes: float = 30
    batch_size: int = 16
    scenes: int = 24_000
    student: Path | None = None
    """A few-step pipeline with the teacher's VAE: it, the teacher and scenes each give a third of what is learned from."""
    drawn: int = 6000
    """How many latents the student draws; the teacher, which takes far longer, draws a third as many."""
    tiny_vae: Path | None = None
    """The AutoencoderTiny to go on from; None for a new one."""
    seed: int = 0

    @property
    def peak(self) -> float:
        """Of the learning rate."""
        return PEAK if self.tiny_vae is None else PEAK_GOING_ON


class FullVae:
    """The VAE that is distilled, as the denoising loop sees it; in float32 on one device."""

    def __init__(self, folder: Path, device: str) -> None:
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, use_safetensors=True)
        self.vae = vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.digest = _digest(folder / "vae")
        """Of its weights and settings."""

    @torch.no_grad()
    def picture(self, latents: Tensor) -> Tensor:
        """Of scaled latents, rows x 4 x 16 x 16: rows x 3 x 128 x 128, without what lies beyond black and white."""
        config = self.vae.config
        return self.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample.clamp(-1, 1)


def lessons(plan: TinyVaePlan, full: FullVae, sources: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of latents of all sources alike, and of the full decoder's pictures of them; without end.

    Noise is added to those of the first source, of scenes, and not to what a UNet has drawn.
    """
    rng, generator = Random(plan.seed + 31), torch.Generator().manual_seed(plan.seed + 31)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        places = [rng.randrange(len(sources)) for _ in range(count)]
        chosen = torch.stack([rng.choice(sources[place]) for place in places])
        most = torch.tensor([NOISE if place == 0 else 0.0 for place in places])[:, None, None, None]
        levels = torch.rand(count, 1, 1, 1, generator=generator) * most
        noisy = (chosen + levels * torch.randn(chosen.shape, generator=generator)).to(plan.device)
        return noisy, full.picture(noisy)

    given, wanted = draw(plan.batch_size)
    while True:
        fresh = draw(FRESH)
        given, wanted = (torch.cat([new, old])[:POOL] for new, old in zip(fresh, (given, wanted), strict=True))
        rows = torch.tensor([rng.randrange(len(given)) for _ in range(plan.batch_size)], device=plan.device)
        yield given[rows], wanted[rows]


def draw_latents(plan: TinyVaePlan, painter: Path, count: int, steps: Sequence[int], guidance: Sequence[float]) -> Tensor:
    """Rows x 4 x 16 x 16 of captions that training may see, as the denoising loop keeps them; kept in `plan.work`."""
    file = plan.work / f"drawn-{count}-{plan.seed}-{_digest(painter / 'unet')[:12]}.safetensors"

    def drawn() -> Iterator[Tensor]:
        pipeline = StableDiffusionPipeline.from_pretrained(painter, torch_dtype=torch.float32).to(plan.device)
        pipeline.set_progress_bar_config(disable=True)
        rng, generator = Random(plan.seed + 33), torch.Generator().manual_seed(plan.seed + 33)
        ways = cycle(product(steps, guidance))
        for start, (in_steps, scale) in zip(range(0, count, 40), ways, strict=False):
            captions = [write_caption(sample_scene(rng), rng).text for _ in range(min(40, count - start))]
            asked = {"num_inference_steps": in_steps, "guidance_scale": scale, "generator": generator, "output_type": "latent"}
            yield pipeline(captions, **asked).images.cpu()
            if start % 400 == 0:
                report("drawn latents", start, of=float(count))

    return kept_latents(file, drawn)


def edge_weights(pictures: Tensor) -> Tensor:
    """Rows x 1 x height x width, 1 where nothing changes: what an error in each pixel weighs."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    change = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    return 1 + (EDGE_WEIGHT * change).clamp(max=EDGE_MOST)


def distil_decoder(plan: TinyVaePlan, full: FullVae, tiny: AutoencoderTiny) -> AutoencoderTiny:
    """Pictures like the full decoder's; returns the moving average."""
    sources = [_scenes(plan, full)[1]]
    if plan.student is not None:
        sources.append(draw_latents(plan, plan.student, plan.drawn, STUDENT_STEPS, STUDENT_GUIDANCE))
        sources.append(draw_latents(plan, plan.teacher, plan.drawn // 3, TEACHER_STEPS, TEACHER_GUIDANCE))
    torch.manual_seed(plan.seed + 31)
    batches = lessons(plan, full, sources)

    def error(tiny: AutoencoderTiny) -> tuple[Tensor, Tensor]:
        given, wanted = next(batches)
        with torch.autocast(plan.device, torch.bfloat16):
            decoded = tiny.decode(given).sample
        return decoded.float() - wanted, edge_weights(wanted)

    return _fit(tiny, "tiny decoder", plan.minutes * DECODER_SHARE, tiny.decoder, error, plan.peak)


def distil_encoder(plan: TinyVaePlan, full: FullVae, tiny: AutoencoderTiny) -> AutoencoderTiny:
    """Of a scene's picture the mean of its latents, as the full encoder gives it; returns the moving average."""
    scenes, latents = _scenes(plan, full)
    rng = Random(plan.seed + 32)

    def error(tiny: AutoencoderTiny) -> tuple[Tensor, Tensor]:
        rows = [rng.randrange(len(scenes)) for _ in range(plan.batch_size)]
        pixels = pixels_of([scenes[row] for row in rows]).to(plan.device)
        with torch.autocast(plan.device, torch.bfloat16):
            encoded = tiny.encode(pixels).latents
        return encoded.float() - latents[rows].to(plan.device), torch.ones((), device=plan.device)

    return _fit(tiny, "tiny encoder", plan.minutes * (1 - DECODER_SHARE), tiny.encoder, error, plan.peak)


def _fit(
    tiny: AutoencoderTiny,
    stage: str,
    minutes: float,
    part: torch.nn.Module,
    error: Callable[[AutoencoderTiny], tuple[Tensor, Tensor]],
    peak: float,
) -> AutoencoderTiny:
    """`error` gives what is wrong, and how much that weighs."""
    tiny = tiny.to(memory_format=torch.channels_last)
    average = deepcopy(tiny)
    optimizer = optimizer_of(list(part.parameters()))
    for step, rate in schedule(stage, minutes, peak=peak):
        wrong, weights = error(tiny)
        loss = (weights * (4 * wrong.square() + 0.3 * wrong.abs())).mean()
        optimizer_step(optimizer, loss, rate)
        update_ema(average, tiny, decay=min(0.99, (step + 1) / (step + 20)))
        if step % 50 == 0:
            report(stage, step, loss=loss.item(), psnr=10 * math.log10(4 / wrong.square().mean().item()), rate=rate)
    return average


def _scenes(plan: TinyVaePlan, full: FullVae) -> tuple[list[Scene], Tensor]:
    return encode_scenes(TrainingPlan(work=plan.work, device=plan.device, scenes=plan.scenes), full.vae)


def distil_vae(plan: TinyVaePlan, destination: Path) -> None:
    """Run the stages that `plan.work` does not hold yet and save an AutoencoderTiny in fp16 to `destination`."""
    plan.work.mkdir(parents=True, exist_ok=True)
    full = FullVae(plan.teacher, plan.device)
    shape = {key: value for key, value in model.make_tiny_vae().config.items() if not key.startswith("_")}
    begun = read_tiny_vae(plan.tiny_vae) if plan.tiny_vae is not None else model.make_tiny_vae()
    facts = {
        "teacher": full.digest,
        "student": plan.student and [plan.drawn, _digest(plan.student / "unet")],
        "tiny_vae": plan.tiny_vae and _digest(plan.tiny_vae),
        "minutes": plan.minutes,
        "scenes": plan.scenes,
        "seed": plan.seed,
        "shape": shape,
    }

    def stage(name: str, train: Callable[[], AutoencoderTiny]) -> AutoencoderTiny:
        folder = finished_stage(plan.work / name, facts, lambda beside: train().save_pretrained(beside))
        return read_tiny_vae(folder).to(plan.device)

    tiny = stage("tiny-decoder", lambda: distil_decoder(plan, full, begun.to(plan.device)))
    tiny = stage("tiny-encoder", lambda: distil_encoder(plan, full, tiny))
    tiny.half().save_pretrained(destination, safe_serialization=True)


def read_tiny_vae(folder: Path) -> AutoencoderTiny:
    """Raises ValueError where it is none of the form that is trained here."""
    if not (folder / "config.json").is_file():  # diffusers would look for its name on Hugging Face's hub
        raise ValueError(f"{folder} is not allowed; it must be a tiny VAE of shapes (there is no config.json)")
    tiny = model.make_tiny_vae()  # not from_pretrained, which would have the config name that folder
    try:
        tiny.load_state_dict(
            AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).state_dict()
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} is not allowed; it must be a tiny VAE of shapes ({first_line(error)})") from None
    return tiny


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*")) if file.is_file())).hexdigest()
