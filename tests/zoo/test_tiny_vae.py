"""Distilling the VAE of `shapes`: what diffusers makes of the tiny one, how small it is, and that it comes nearer its teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from safetensors.torch import load_file

from nereid_zoo.cli import app
from nereid_zoo.shapes import model
from nereid_zoo.shapes.score import CHECKPOINT, STUDENTS, held_out_captions
from nereid_zoo.shapes.tiny_vae import (
    EDGE_MOST,
    FullVae,
    TinyVaePlan,
    distil_vae,
    draw_latents,
    edge_weights,
    lessons,
    read_tiny_vae,
)

pytestmark = pytest.mark.torch

STEP_SECONDS = 0.05
"""See conftest: some hundred steps in all, after which both halves are better than before."""


@pytest.fixture(scope="module")
def full() -> FullVae:
    return FullVae(CHECKPOINT, "cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TinyVaePlan:
    work = tmp_path_factory.mktemp("work")
    return TinyVaePlan(work=work, teacher=CHECKPOINT, minutes=0.1, batch_size=2, scenes=8, student=STUDENTS[2], drawn=6)


@pytest.fixture(scope="module")
def distilled(plan: TinyVaePlan) -> Path:
    distil_vae(plan, plan.work / "tiny")
    return plan.work / "tiny"


def multiplications(module: Any, latents: Any) -> int:
    """Of the convolutions that a decode calls; there is nothing else that multiplies much."""
    counted = 0

    def count(layer: Any, given: Any, made: Any) -> None:
        nonlocal counted
        counted += made.shape[2] * made.shape[3] * layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in module.decoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    with torch.no_grad():
        module.decode(latents)
    for hook in hooks:
        hook.remove()
    return counted


def test_a_decode_is_less_than_a_fifth_of_the_full_ones_work(full: FullVae) -> None:
    latents = torch.zeros(1, 4, model.LATENT_SIZE, model.LATENT_SIZE)
    assert multiplications(full.vae, latents) >= 5.5 * multiplications(model.make_tiny_vae(), latents)


def test_errors_at_edges_weigh_more_and_flat_colour_weighs_one() -> None:
    pictures = torch.zeros(2, 3, 8, 8)
    pictures[1, :, :, 4:] = 1
    weights = edge_weights(pictures)
    assert torch.equal(weights[0], torch.ones(1, 8, 8))
    assert torch.equal(weights[1, 0, 0] > 1, torch.tensor([False] * 3 + [True] * 2 + [False] * 3))
    assert (edge_weights(100 * pictures) <= 1 + EDGE_MOST).all()


def test_pictures_to_learn_from_are_the_full_decoders_of_the_very_latents(plan: TinyVaePlan, full: FullVae) -> None:
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given, wanted = next(lessons(plan, full, [latents]))
    assert torch.allclose(full.picture(given), wanted, atol=1e-4)
    nearest = (given[:, None] - latents[None]).abs().amax((2, 3, 4)).min(1).values
    assert (nearest > 0).all(), "no noise was added"
    assert (nearest < 1).all(), "the noise drowns the latents"


def test_sources_of_any_size_are_learned_from_alike(plan: TinyVaePlan, full: FullVae) -> None:
    scenes, drawn = torch.full((1, 4, 16, 16), 9.0), torch.zeros(99, 4, 16, 16)
    batches = lessons(replace(plan, batch_size=64), full, [scenes, drawn])
    given = torch.cat([next(batches)[0] for _ in range(4)])
    of_scenes = given.mean((1, 2, 3)) > 4
    assert 0.3 < of_scenes.float().mean() < 0.7
    assert given[of_scenes].std() > 0, "no noise was added to scenes"
    assert (given[~of_scenes] == 0).all(), "what was drawn is not as it was drawn"


def test_a_student_draws_what_is_learned_from_once_in_each_number_of_steps(
    plan: TinyVaePlan, full: FullVae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawing = replace(plan, work=tmp_path)
    first = draw_latents(drawing, STUDENTS[2], 90, (1, 2, 4), (1.0,))
    assert first.shape == (90, 4, 16, 16)
    assert 0.5 < first.std() < 2  # as the denoising loop keeps them
    monkeypatch.setattr("nereid_zoo.shapes.tiny_vae.StableDiffusionPipeline", None)
    assert torch.equal(draw_latents(drawing, STUDENTS[2], 90, (1, 2, 4), (1.0,)), first)


def test_training_goes_on_from_a_tiny_vae(plan: TinyVaePlan, full: FullVae, distilled: Path, tmp_path: Path) -> None:
    going = replace(plan, work=tmp_path, tiny_vae=distilled, minutes=0.001)
    distil_vae(going, tmp_path / "out")
    before, after = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (distilled, tmp_path / "out"))
    assert all((before[name].float() - after[name].float()).abs().max() < 0.2 for name in before)
    with pytest.raises(ValueError, match="is not allowed; it must be a tiny VAE of shapes"):
        distil_vae(replace(going, tiny_vae=CHECKPOINT), tmp_path / "other")


def test_diffusers_pipeline_takes_it_for_its_vae(distilled: Path, full: FullVae) -> None:
    tiny = diffusers.AutoencoderTiny.from_pretrained(distilled, torch_dtype=torch.float32)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    scale, pipeline.vae = pipeline.vae_scale_factor, tiny
    assert tiny.config.scaling_factor == 1
    assert tiny.config.latent_channels == full.vae.config.latent_channels
    assert 2 ** (len(tiny.config.block_out_channels) - 1) == scale
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle", num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)


def test_both_halves_come_nearer_to_their_teacher(distilled: Path, full: FullVae) -> None:
    trained = diffusers.AutoencoderTiny.from_pretrained(distilled, torch_dtype=torch.float32)
    torch.manual_seed(31)
    untrained = model.make_tiny_vae()
    (latents,) = (load_file(file)["latents"] for file in distilled.parent.glob("latents-*.safetensors"))
    latents = latents * full.vae.config.scaling_factor
    pixels = full.picture(latents)

    def errors(tiny: Any) -> tuple[float, float]:
        with torch.no_grad():
            decoded, encoded = tiny.decode(latents).sample - pixels, tiny.encode(pixels).latents - latents
        return decoded.square().mean().item(), encoded.square().mean().item()

    for now, before in zip(errors(trained), errors(untrained), strict=True):
        assert now < before


def test_it_is_written_in_halves_without_a_path_of_its_work_and_not_trained_again(distilled: Path, plan: TinyVaePlan) -> None:
    assert {value.dtype for value in load_file(distilled / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    assert str(plan.work) not in (distilled / "config.json").read_text()
    stages = {folder.name: folder.stat().st_mtime_ns for folder in plan.work.glob("tiny-*")}
    assert set(stages) == {"tiny-decoder", "tiny-encoder"}
    distil_vae(plan, plan.work / "tiny")
    assert {folder.name: folder.stat().st_mtime_ns for folder in plan.work.glob("tiny-*")} == stages


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--teacher", "nowhere"), "nowhere is not allowed; it must be a painter of shapes"),
        (("--student", "nowhere"), "nowhere is not allowed; it must be a student of shapes"),
        (("--tiny-vae", "nowhere"), "nowhere is not allowed; it must be a tiny VAE of shapes"),
        (("--minutes", "0"), "'--minutes': Input should be greater than or equal to 0.01"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    tmp_path: Path, words: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not looked for anywhere else: `nowhere` could be a name on a hub."""
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *place, **_: [asked.append(place)])
    done = CliRunner().invoke(app, ["train", "shapes-tiny-vae", "--out", str(tmp_path / "out"), *words], terminal_width=200)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
    assert not asked


def test_the_shipped_one_decodes_a_students_latents_much_like_the_full_decoder(full: FullVae) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(STUDENTS[2], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    captions = [caption.text for caption in held_out_captions(8)]
    seeded = torch.Generator().manual_seed(0)
    latents = pipeline(captions, num_inference_steps=2, guidance_scale=1.0, generator=seeded, output_type="latent").images
    with torch.no_grad():
        wrong = read_tiny_vae(CHECKPOINT.parent / "tiny-vae").decode(latents).sample.clamp(-1, 1) - full.picture(latents)
    psnr = 10 * torch.log10(4 / wrong.square().mean((1, 2, 3)))
    assert psnr.median() > 35
