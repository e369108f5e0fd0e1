"""Relation distillation of quantised layout transformers: what is compared, over which calls, and what is stored after it."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor

from nereid.diffusion.solvers import noise_levels
from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid_export.w4a8.products import layers_of, tables_of
from nereid_zoo.layout.batches import Batches
from nereid_zoo.layout.distil import (
    NEIGHBOURS,
    Taught,
    fine_tune,
    lessons_of,
    losses_of,
    relation_distance,
    settled,
    trainable,
)
from nereid_zoo.layout.draw import Flow, draw
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.observed import Observer
from nereid_zoo.layout.quantised import QuantisedTransformer
from nereid_zoo.layout.rounding import quantised_layers
from nereid_zoo.layout.score import held_out_sections

pytestmark = pytest.mark.torch
BOUNDS = (250.0, 500.0, 750.0)


@pytest.fixture(scope="module")
def teacher(checkpoints: dict[str, Path]) -> LayoutTransformer:
    return load(checkpoints["layout"])


@pytest.fixture(scope="module")
def student(teacher: LayoutTransformer) -> QuantisedTransformer:
    observer = Observer(teacher, BOUNDS)
    with observer.watching() as predict:
        draw(predict, held_out_sections(8).sections, range(8), steps=6)
    return QuantisedTransformer.of(teacher, quantised_layers(teacher, observer.statistics(), observer.calls), BOUNDS)


@pytest.fixture(scope="module")
def lessons(teacher: LayoutTransformer) -> list[Taught]:
    torch.manual_seed(1)
    return lessons_of(teacher, Batches(8, 1), 6, Flow(0.5))


# --- relations ---


def features(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1 + 5, 8, generator=generator) for _ in range(NEIGHBOURS)]


VALID = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_relations_do_not_depend_on_lengths_or_on_a_turn_of_all_features() -> None:
    ours, turn = features(1), torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    assert relation_distance(ours, ours, VALID).abs() < 1e-6
    assert relation_distance([3 * its @ turn for its in ours], ours, VALID).abs() < 1e-5
    assert relation_distance(features(3), ours, VALID) > 0.1


def test_relations_are_those_of_features_averaged_over_neighbouring_timesteps() -> None:
    first, second = features(1)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(4))
    assert relation_distance([first + noise, second - noise], [first, second], VALID).abs() < 1e-5
    assert relation_distance([first + noise, second + noise], [first, second], VALID) > 0.1


def test_padded_tokens_have_no_relations() -> None:
    ours, theirs = features(1), features(2)
    wanted = relation_distance(ours, theirs, VALID)
    for its in ours:
        its[1, 4:] = 100.0
    assert torch.allclose(relation_distance(ours, theirs, VALID), wanted)


# --- lessons ---


def test_lessons_are_neighbouring_steps_of_the_teachers_runs(teacher: LayoutTransformer, lessons: list[Taught]) -> None:
    levels = noise_levels(6, 0.5)
    assert len(lessons) == 6 - NEIGHBOURS + 1
    for place, taught in enumerate(lessons):
        for step, (call, velocity) in enumerate(zip(taught.calls, taught.velocities, strict=True)):
            assert torch.allclose(call["timestep"], torch.tensor(levels[place + step] * TRAIN_TIMESTEPS).float())
            with torch.no_grad():
                assert torch.allclose(teacher(**call), velocity, atol=1e-5)
        before, after = taught.calls[:2]
        fixed = before["field_mask"] >= 1
        step = float(levels[place + 1] - levels[place])
        moved = torch.where(fixed, before["known"], before["boxes"] + step * taught.velocities[0])
        assert torch.allclose(after["boxes"], moved, atol=1e-5)
    assert any((call["field_mask"] >= 1).any() for taught in lessons for call in taught.calls)


def test_what_is_padded_or_given_does_not_count(teacher: LayoutTransformer, lessons: list[Taught]) -> None:
    """The teacher has nothing to learn, whatever it is told of these."""
    taught, told = lessons[0], []
    for call, velocity in zip(taught.calls, taught.velocities, strict=True):
        counted = call["valid"][..., None] * (call["field_mask"] < 1)
        told.append(torch.where(counted > 0, velocity, 100.0))
    with torch.no_grad():
        losses = losses_of(teacher, Taught(taught.calls, told, taught.features))
        assert losses.total < 1e-8
        off = losses_of(teacher, Taught(taught.calls, [1.1 * its for its in taught.velocities], taught.features))
    assert off.velocity == pytest.approx((0.1 / 1.1) ** 2, rel=1e-3)


# --- the module ---


def test_what_is_not_trained_is_stored_as_it_was(
    teacher: LayoutTransformer, student: QuantisedTransformer, lessons: list[Taught]
) -> None:
    made = settled(trainable(student, teacher))
    call = lessons[0].calls[0]
    with torch.no_grad():
        assert torch.equal(made(**call), student(**call))
        ours, wanted = trainable(student, teacher)(**call), student(**call)
    assert (ours - wanted).norm() < 0.005 * wanted.norm()  # sums in another order may round to the next of 256 numbers


def test_fine_tuning_brings_the_student_nearer_within_its_time(
    teacher: LayoutTransformer, student: QuantisedTransformer, lessons: list[Taught], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("nereid_zoo.layout.distil.monotonic", lambda: float(next(clock)))  # a second a step
    before, said = {name: value.clone() for name, value in student.state_dict().items()}, list[str]()
    made, steps = fine_tune(student, teacher, 2.0, said.append, flow=Flow(0.5), rows=8)
    assert steps == len(said) == 119
    assert said[-1].startswith("fine-tuning: step 119, 2.0 of 2 minutes, velocity's error 0.")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert type(made) is QuantisedTransformer
    with torch.no_grad():
        old, new = (sum(float(losses_of(its, taught).total) for taught in lessons) for its in (student, made))
    assert new < 0.9 * old
    assert len(layers_of(made)) == len(layers_of(student))
    assert len(tables_of(made)) == len(tables_of(student))
    for block, table in zip(made.blocks, tables_of(made)[-len(made.blocks) :], strict=True):
        assert torch.equal(block.table, torch.from_numpy(table.matrix()))
        assert torch.equal(block.fc1_bias, block.fc1_bias.half().float())


def test_fine_tuning_leaves_the_random_numbers_of_others_alone(teacher: LayoutTransformer, student: QuantisedTransformer) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fine_tune(student, teacher, 1e-4, lambda text: None, flow=Flow(0.5), rows=2)
    assert torch.equal(torch.rand(3), wanted)
