"""Distilling `shapes`: what a student is, and that both stages run, and once. How good one is `nereid zoo score` tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from safetensors.torch import load_file

from nereid_zoo.cli import app
from nereid_zoo.shapes.distil import DistillationPlan, Teacher, distil, student_scheduler, student_timesteps
from nereid_zoo.shapes.score import CHECKPOINT, scorer_for

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(CHECKPOINT, "cpu")


def test_a_students_timesteps_are_those_that_it_is_trained_on() -> None:
    assert student_timesteps(4) == [999, 759, 499, 259]
    assert student_timesteps(2) == [999, 499]
    assert student_timesteps(1) == [999]


def test_at_the_data_a_consistency_model_leaves_its_sample_as_it_is(teacher: Teacher) -> None:
    sample = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made = teacher.consistent(teacher.unet, sample, torch.zeros(2, dtype=torch.long), teacher.states(["a red circle"] * 2))
    assert torch.equal(made, sample)


def test_the_clean_latents_are_those_of_diffusers(teacher: Teacher) -> None:
    scheduler = diffusers.LCMScheduler.from_config(student_scheduler())
    scheduler.set_timesteps(1)
    sample = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    states, timesteps = teacher.states(["a red circle"]), torch.tensor([999])
    with torch.no_grad():
        velocity = teacher.unet(sample, timesteps, states).sample
        made = teacher.consistent(teacher.unet, sample, timesteps, states)
    wanted = scheduler.step(velocity, scheduler.timesteps[0], sample).denoised
    assert torch.allclose(made, wanted, atol=1e-5)


def test_both_stages_give_an_ordinary_pipeline_of_few_steps_and_are_not_run_again(tmp_path: Path) -> None:
    plan = DistillationPlan(
        work=tmp_path / "work",
        teacher=CHECKPOINT,
        steps=(2, 1),
        consistency_minutes=0.02,
        matching_minutes=0.02,
        batch_size=4,
        scenes=8,
    )
    distil(plan, tmp_path / "student")
    stages = {folder.name: folder.stat().st_mtime_ns for folder in plan.work.iterdir() if folder.is_dir()}
    stages_in_order = ("matching-2-1step", "consistency")
    assert set(stages) == set(stages_in_order)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "student", torch_dtype=torch.float32)
    assert isinstance(pipeline.scheduler, diffusers.LCMScheduler)
    assert scorer_for(tmp_path / "student") is not None, "a student is scored as its teacher is"
    written = "".join(file.read_text() for file in (tmp_path / "student").rglob("*.json"))
    assert str(tmp_path) not in written
    assert str(CHECKPOINT) not in written
    ours, theirs = pipeline.unet.state_dict(), Teacher(CHECKPOINT, "cpu").unet.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs)
    matched, before = (load_file(plan.work / name / "diffusion_pytorch_model.safetensors") for name in stages_in_order)
    assert any(not torch.equal(matched[name], before[name]) for name in before), "matching has trained nothing"
    distil(plan, tmp_path / "again")
    assert {folder.name: folder.stat().st_mtime_ns for folder in plan.work.iterdir() if folder.is_dir()} == stages


def test_a_student_is_matched_further(tmp_path: Path) -> None:
    tiny = {"teacher": CHECKPOINT, "matching_minutes": 0.01, "batch_size": 4, "scenes": 8}
    distil(DistillationPlan(work=tmp_path / "a", consistency_minutes=0.01, **tiny), tmp_path / "first")
    plan = DistillationPlan(work=tmp_path / "b", student=tmp_path / "first", steps=(1,), **tiny)
    distil(plan, tmp_path / "second")
    assert {folder.name for folder in plan.work.iterdir() if folder.is_dir()} == {"matching-1step"}
    first, second = (load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("first", "second"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--teacher", "nowhere"), "nowhere is not allowed; it must be a painter of shapes"),
        (("--minutes", "0"), "'--minutes': Input should be greater than or equal to 0.01"),
        (
            ("--student", "nowhere", "--matching-minutes", "1"),
            "--student: nowhere is not allowed; it must be a student of shapes",
        ),
        (("--student", str(CHECKPOINT)), "is not allowed; it must be a student of shapes, to be matched (--matching-minutes)"),
        (("--steps", "9", "--matching-minutes", "1"), "--steps: 9 is not allowed; it must be numbers from 1 to 8, like 4,2"),
        (("--steps", "2,", "--matching-minutes", "1"), "--steps: 2, is not allowed; it must be numbers from 1 to 8, like 4,2"),
        (("--steps", "2"), "--steps: 2 is not allowed without --matching-minutes"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(tmp_path: Path, words: tuple[str, str], said: str) -> None:
    done = CliRunner().invoke(app, ["train", "shapes-student", "--out", str(tmp_path / "out"), *words], terminal_width=200)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
