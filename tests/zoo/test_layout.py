"""The layout checkpoint's data and scores: valid layouts, held-out briefs, tasks, likeness, baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from nereid.layout.canvas import Breakpoint, Style
from nereid.layout.checks import check_layout, has_errors
from nereid.layout.elements import FREE, Box, Section
from nereid.layout.tokens import SCALE, to_units
from nereid_zoo.layout.batches import SHARES, Batch, Batches, Task, batch_of, sample_row
from nereid_zoo.layout.briefs import sample_layout_brief
from nereid_zoo.layout.features import Spoiled, frechet_distance, spoil
from nereid_zoo.layout.layouts import sample_layout
from nereid_zoo.layout.likeness import diversity, iou, max_iou
from nereid_zoo.layout.neighbours import Neighbours
from nereid_zoo.layout.score import CHECKPOINT, data_drawer, flow_drawer, held_out_sections, score_layouts, transformer_drawer

from own_time import own_seconds


def test_every_training_layout_passes_every_check_at_three_widths_and_in_all_styles() -> None:
    rng = Random(1)
    seen = set()
    for _ in range(300):
        section, boxes = sample_row(rng)
        assert check_layout(section, boxes) == []
        seen.add((section.canvas.breakpoint, section.canvas.style))
    assert len(seen) == len(Breakpoint) * len(Style)


def test_nearly_every_section_has_a_layout_on_its_canvas() -> None:
    rng = Random(2)
    found = [sample_layout(sample_layout_brief(rng).section, rng) for _ in range(200)]
    assert sum(boxes is None for boxes in found) <= 2


def test_one_section_has_layouts_that_differ() -> None:
    rng = Random(3)
    section, _ = sample_row(rng)
    made = [boxes for boxes in (sample_layout(section, rng) for _ in range(6)) if boxes is not None]
    assert diversity(section, made) > 0.15


def test_held_out_combinations_are_never_trained_on() -> None:
    rng = Random(4)
    trained = {sample_layout_brief(rng).combination for _ in range(600)}
    held_out = [sample_layout_brief(rng, held_out=True) for _ in range(60)]
    assert all(brief.held_out for brief in held_out)
    assert not trained & {brief.combination for brief in held_out}


def test_briefs_are_the_same_for_the_same_seed() -> None:
    first, second = held_out_sections(5), held_out_sections(5)
    assert first == second
    assert held_out_sections(5, seed=1) != first


def test_what_a_task_gives_is_fixed_to_a_valid_layout() -> None:
    free = held_out_sections(4).sections
    for task, names in ((Task.PLACE, {"width", "height"}), (Task.SIZE, {"x", "y"})):
        for section, same in zip(held_out_sections(4, task=task).sections, free, strict=True):
            assert [element.id for element in section.elements] == [element.id for element in same.elements]
            for element in section.elements:
                assert {name for name, value in element.fixed._asdict().items() if value is not None} == names
    given = [element.fixed for section in held_out_sections(4, task=Task.COMPLETE).sections for element in section.elements]
    assert 0 < sum(fixed == FREE for fixed in given) < len(given)
    refined = held_out_sections(4, task=Task.REFINE)
    assert refined.sections == free
    assert refined.drafts is not None
    assert [len(boxes) for boxes in refined.drafts] == [len(section) for section in free]


def test_layouts_are_made_faster_than_they_are_learned_from() -> None:
    """50 rows a second of processor time; a generous bound on what `Batches` does in hundreds."""
    supply = Batches(16, seed=5)
    made: list[Batch] = []
    assert own_seconds(lambda: made.extend(supply.next() for _ in range(8))) < 8 * 16 / 50
    assert all(batch.clean.shape == (16, batch.tokens.valid.shape[1], 4) for batch in made)


def test_batches_hold_the_layouts_and_give_what_their_tasks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(6)
    rows = [sample_row(rng) for _ in range(12)]
    for task in Task:
        monkeypatch.setattr("nereid_zoo.layout.batches.SHARES", {task: 1.0})
        batch = batch_of(rows, np.random.default_rng(0))
        valid, mask, known = batch.tokens.valid > 0, batch.tokens.field_mask, batch.tokens.known
        for row, (section, boxes) in enumerate(rows):
            clean = to_units(np.array([boxes], float), batch.tokens.canvas[row : row + 1])[0]
            assert np.allclose(batch.clean[row, : len(section)], clean)
        assert not mask[~valid].any()
        assert np.array_equal(known[mask == 1], batch.clean[mask == 1])
        assert not known[mask == 0].any()
        columns = mask[valid].mean(0)
        match task:
            case Task.ALL:
                assert not columns.any()
            case Task.PLACE:
                assert columns.tolist() == [0, 0, 1, 1]
            case Task.SIZE:
                assert columns.tolist() == [1, 1, 0, 0]
            case Task.COMPLETE:
                assert set(mask[valid].sum(1)) == {0, 4}
            case Task.REFINE:
                assert columns.tolist() == [0.5] * 4
                off = np.abs(known - batch.clean)[valid].max(1) * SCALE
                assert 2 < np.median(off) < 100


def test_tasks_come_in_their_shares() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


def test_iou_and_max_iou_are_what_they_are_by_hand() -> None:
    section, boxes = _twins()
    first, second = np.array([[0, 0, 10, 10]]), np.array([[5, 0, 10, 10], [20, 20, 1, 1]])
    assert iou(first, second).tolist() == [[pytest.approx(1 / 3), 0]]
    swapped = [boxes[1], boxes[0], boxes[2]]
    assert max_iou(section, boxes, swapped) == 1  # equal classes are matched, whatever their order
    apart = [*boxes[:2], boxes[2]._replace(x=1000.0)]
    assert max_iou(section, boxes, apart) == pytest.approx(2 / 3)
    assert diversity(section, [boxes, swapped, apart]) == pytest.approx(2 / 9)


def _twins() -> tuple[Section, list[Box]]:
    from nereid.layout.canvas import Canvas
    from nereid.layout.elements import Element, ElementClass

    kinds = (ElementClass.PARAGRAPH, ElementClass.PARAGRAPH, ElementClass.IMAGE)
    section = Section.of(Canvas.of(1280), (Element(id=f"{n}", kind=kind) for n, kind in enumerate(kinds)))
    return section, [Box(64, 0, 400, 100), Box(64, 200, 400, 100), Box(64, 400, 400, 100)]


def test_a_training_section_is_its_own_nearest_neighbour() -> None:
    rng, pool = Random(1), Neighbours(100, seed=1)
    rows = [sample_row(rng) for _ in range(100)]  # those of the pool, of which many have the same classes and parents
    alike = Counter((tuple(element.kind for element in section.elements), section.parents) for section, _ in rows)
    assert sum(count for count in alike.values() if count > 1) > 50
    assert all(pool.layout(section) == boxes for section, boxes in rows)


def test_a_section_unlike_any_has_no_neighbour_and_fails() -> None:
    section, _ = _twins()
    boxes = Neighbours(5).layout(section)
    made = score_layouts(lambda places, seed: [boxes], [section], seeds=1)
    assert (made.passed_before, made.broken_before) == (0, {"complete": 1})


def test_the_datas_own_layouts_score_perfect_and_rules_have_no_diversity() -> None:
    asked = held_out_sections(12)
    data, flow = (score_layouts(drawer(asked), asked.sections, seeds=2) for drawer in (data_drawer, flow_drawer))
    assert (data.passed_before, data.passed_after, data.spotless, data.median_move, data.inversions) == (100, 100, 100, 0, 0)
    assert data.diversity > 0.15
    assert (flow.passed_before, flow.diversity, flow.kendall_tau) == (100, 0, 1)


@pytest.mark.torch
def test_the_shipped_transformer_keeps_to_the_grid_at_widths_that_it_has_not_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    asked = held_out_sections(8, width=1920)
    assert {section.canvas.width for section in asked.sections} == {1920}
    on_known = score_layouts(transformer_drawer(CHECKPOINT, asked), asked.sections, seeds=1)
    monkeypatch.setattr("nereid_zoo.layout.score.canvas_widths_of", lambda folder: None)
    as_asked = score_layouts(transformer_drawer(CHECKPOINT, asked), asked.sections, seeds=1)
    assert as_asked.spotless == 0 < 25 <= on_known.spotless
    assert as_asked.score < 0.97 < on_known.score


def test_progress_is_told_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid_zoo.layout.score.CHUNK", 2)
    asked, told = held_out_sections(5), []
    score_layouts(flow_drawer(asked), asked.sections, told.append, seeds=1)
    assert told == [2, 4, 5]


def test_one_brief_has_no_distance() -> None:
    asked = held_out_sections(2)
    told: list[int] = []
    for count in (1, 2):
        score_layouts(
            flow_drawer(asked),
            asked.sections[:count],
            seeds=1,
            distance=lambda sections, boxes: told.append(len(sections)) or 0.0,
        )
    assert told == [2]


def test_spoiled_layouts_are_other_layouts_of_the_same_section() -> None:
    rng = Random(8)
    for section, boxes in (sample_row(rng) for _ in range(10)):
        assert spoil(section, boxes, Spoiled.NOT, rng) == boxes
        spoiled = {kind: spoil(section, boxes, kind, rng) for kind in Spoiled if kind}
        assert all(len(made) == len(boxes) for made in spoiled.values())
        assert spoiled[Spoiled.SHAKEN] != boxes != spoiled[Spoiled.STRETCHED]
        assert sorted(spoiled[Spoiled.SWAPPED]) == sorted(boxes)
        assert not has_errors(check_layout(section, spoiled[Spoiled.RESTYLED]))


def test_the_frechet_distance_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((4000, 3))
    second = first[::-1] * [1, 2, 1] + [3, 0, 0]
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(9 + 1, rel=0.1)  # means 3 apart; (2 - 1)^2 of one deviation


def test_scores_count_what_repair_mends() -> None:
    """Boxes that stand on each other in wrong order: repaired, and told as it was before."""
    sections = held_out_sections(6).sections

    def heap(places: Sequence[int], seed: int) -> list[list[Box]]:
        return [[Box(64, 900 - 30 * place, 200, 20) for place in range(len(sections[number]))] for number in places]

    made = score_layouts(heap, sections, seeds=1, distance=lambda asked, boxes: float(len(boxes)))
    assert made.fid == 6
    assert (made.passed_before, made.passed_after, made.inversions) == (0, 100, 0)
    assert made.inversions_before > 0
    assert made.kendall_tau < 0
    assert made.median_move > 20
    assert "reading_order" in made.broken_before
    assert made.broken == {}
