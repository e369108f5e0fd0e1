"""Students as LoRA weights (LCM-LoRA): the file, what others make of it, and a teacher that stays as it is beside it."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.drawing import Drawer
from nereid_export.lora import Lora
from nereid_zoo.cli import app
from nereid_zoo.shapes.distil import DistillationPlan, Teacher, distil, save_student
from nereid_zoo.shapes.learner import LORA_FILE, Adapters, fuse
from nereid_zoo.shapes.score import CHECKPOINT, scorer_for
from nereid_zoo.stages import StageError

pytestmark = pytest.mark.torch

RANK = 4
SAMPLE, TIMESTEPS, STATES = torch.ones(2, 4, 16, 16), torch.tensor([19, 999]), torch.ones(2, 32, 128)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DistillationPlan:
    work = tmp_path_factory.mktemp("work")
    return DistillationPlan(work=work, teacher=CHECKPOINT, consistency_minutes=0.02, lora_rank=RANK, batch_size=4, scenes=8)


@pytest.fixture(scope="module")
def student(plan: DistillationPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    distil(plan, folder)
    return folder


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return weights_of(CHECKPOINT).eval().requires_grad_(False)


def weights_of(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)


def answer(network: Any) -> Any:
    return network(SAMPLE, TIMESTEPS, STATES).sample


def stirred(unet: UNet2DConditionModel) -> Adapters:
    """Adapters that do something, the student others than the average."""
    adapters = Adapters(unet, RANK, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in adapters.weights.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
        adapters.follow(decay=0.5)
    return adapters


def test_the_file_fused_by_diffusers_and_at_export_is_the_students_unet(student: Path) -> None:
    theirs, plain, folder = weights_of(CHECKPOINT), weights_of(CHECKPOINT).state_dict(), weights_of(student).state_dict()
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(student), weight_name=LORA_FILE, unet_config=theirs.config, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, theirs, metadata=metadata)
    theirs.fuse_lora()
    theirs.unload_lora()
    checkpoint = Checkpoint.open(CHECKPOINT, (Lora.parse(str(student)),))
    part = next(part for part in components_of(checkpoint) if part.name == "unet")
    ours = part.load().unet.state_dict()
    assert ours.keys() == folder.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours[name], value, rtol=0, atol=1e-6), name
        assert torch.allclose(ours[name], folder[name], rtol=2**-11, atol=1e-6), f"{name}, but for the rounding to fp16"
    changed = {name for name in plain if not torch.equal(ours[name], plain[name])}
    layers = {name.removeprefix("unet.").partition(".lora_")[0] for name in load_file(student / LORA_FILE)}
    assert changed == {f"{layer}.weight" for layer in layers}, "every LoRA layer has learned, and nothing else"


def test_the_layers_are_those_of_lcm_lora(student: Path, unet: UNet2DConditionModel) -> None:
    named = {name.removeprefix("unet.").partition(".lora_")[0] for name in load_file(student / LORA_FILE)}
    every = {name for name, module in unet.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))}
    assert every - named == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}


def test_a_pipeline_of_diffusers_loads_the_file(student: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    before = answer(pipeline.unet)
    pipeline.load_lora_weights(student)
    assert not torch.equal(answer(pipeline.unet), before)


def test_the_teacher_with_the_file_draws_the_students_picture_where_the_request_says_how(tmp_path: Path) -> None:
    teacher = Teacher(CHECKPOINT, "cpu")
    adapters = stirred(teacher.unet)
    adapters.save(tmp_path / "lora")
    adapters.remove()
    fuse(teacher.unet, tmp_path / "lora")
    save_student(teacher, tmp_path / "student")
    plain, fused, student = (
        Drawer.by_torch(checkpoint)
        for checkpoint in (
            Checkpoint.open(CHECKPOINT),
            Checkpoint.open(CHECKPOINT, (Lora.parse(str(tmp_path / "lora")),)),
            Checkpoint.open(tmp_path / "student"),
        )
    )
    wanted = latents(student, num_inference_steps=4, guidance_scale=1.0)
    asked = {"scheduler": "lcm", "num_inference_steps": 4, "guidance_scale": 1.0}
    ours = np.abs(latents(fused, **asked) - wanted).max()
    assert ours < 0.02, "what is left is the student's rounding to fp16"
    for name in asked:
        others = {key: value for key, value in asked.items() if key != name}
        assert np.abs(latents(fused, **others) - wanted).max() > 10 * ours, f"{name} is needed"
    assert np.abs(latents(plain, **asked) - wanted).max() > 10 * ours, "the file is needed"


def latents(drawer: Drawer, **options: str | int | float) -> Any:
    request = drawer.request(["a red circle"], [7])
    kinds = {str: np.object_, int: np.int32, float: np.float32}
    for name, value in options.items():
        request[name] = np.array([[value.encode() if isinstance(value, str) else value]], dtype=kinds[type(value)])
    if "num_inference_steps" not in options:
        del request["num_inference_steps"]
    return drawer.denoise(request)


def test_what_it_leaves_is_a_student_as_any_other(student: Path) -> None:
    assert scorer_for(student) is not None
    written = "".join(file.read_text() for file in student.rglob("*.json"))
    assert str(CHECKPOINT) not in written


def test_a_stage_is_of_one_rank_and_trained_once(plan: DistillationPlan, student: Path, tmp_path: Path) -> None:
    def stages() -> dict[str, int]:
        return {folder.name: folder.stat().st_mtime_ns for folder in plan.work.iterdir() if folder.is_dir()}

    first = stages()
    distil(plan, tmp_path / "again")
    assert stages() == first
    assert load_file(tmp_path / "again" / LORA_FILE).keys() == load_file(student / LORA_FILE).keys()
    for other in (1, 0):
        distil(replace(plan, lora_rank=other), tmp_path / "again")
    assert set(stages()) == {*first, "consistency-lora-rank1", "consistency"}
    assert not (tmp_path / "again" / LORA_FILE).exists(), "a whole student has none, and its folder keeps no other's"
    with pytest.raises(StageError, match=r"consistency-lora-rank4 was trained with minutes 0.02, not 0.03"):
        distil(replace(plan, consistency_minutes=0.03), tmp_path / "again")


def test_while_it_teaches_the_unet_computes_as_before(unet: UNet2DConditionModel) -> None:
    before, places = answer(unet), {value.data_ptr() for value in unet.parameters()}
    adapters = stirred(unet)
    assert not torch.allclose(answer(adapters.student), before, atol=1e-3)
    with adapters.teaching():
        assert torch.equal(answer(unet), before)
    assert places <= {value.data_ptr() for value in unet.parameters()}, "its weights are in memory once"
    adapters.remove()
    assert torch.equal(answer(unet), before)
    assert {value.data_ptr() for value in unet.parameters()} == places


def test_the_students_adapters_alone_get_a_gradient(unet: UNet2DConditionModel) -> None:
    adapters = stirred(unet)
    with torch.no_grad(), adapters.teaching():
        answer(unet)
    with torch.no_grad():
        answer(adapters.average)
    answer(adapters.student).square().mean().backward()
    assert all(value.grad is not None for value in adapters.weights.parameters())
    trained = {id(value) for value in adapters.weights.parameters()}
    assert {id(value) for value in unet.parameters() if value.grad is not None} == trained


def test_the_average_is_of_the_adapters_and_is_what_is_saved(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    adapters, exported = stirred(unet), weights_of(CHECKPOINT)
    average = answer(adapters.average)
    assert not torch.allclose(average, answer(adapters.student), atol=1e-3)
    adapters.save(tmp_path)
    adapters.remove()
    fuse(unet, tmp_path)
    assert torch.allclose(answer(unet), average, atol=1e-5)
    Lora.parse(str(tmp_path)).fuse(exported.config, "unet", exported)
    for name, value in unet.state_dict().items():
        assert torch.allclose(exported.state_dict()[name], value, rtol=0, atol=1e-6), name


def test_a_new_student_and_its_average_are_the_teacher(unet: UNet2DConditionModel) -> None:
    before = answer(unet)
    adapters = Adapters(unet, RANK, seed=1)
    assert torch.equal(answer(adapters.student), before)
    kept, new = (deepcopy(weights.state_dict()) for weights in (adapters._averaged, adapters.weights))
    assert all(torch.equal(kept[name], new[name]) for name in new), "also where B is zero"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--lora-rank", "8", "--matching-minutes", "1"),
            "--lora-rank: 8 is not allowed with --matching-minutes: matching trains",
        ),
        (("--lora-rank", "129"), "'--lora-rank': Input should be less than or equal to 128"),
        (("--lora-rank", "-1"), "'--lora-rank': Input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, *words)


def test_without_peft_one_sentence_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refused(tmp_path, "--lora-rank", "8")
    assert "--lora-rank: 8 is not allowed without peft; install it with `pip install -e './zoo[lora]'`" in said


def refused(tmp_path: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["train", "shapes-student", "--out", str(tmp_path / "out"), *words], terminal_width=200)
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()
    return " ".join(done.output.replace("│", " ").split())
