"""What pages need of the zoo: plans and their checker, the planner's training, pictures' language, the font's pieces."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from nereid.page.plan import asked_of_planner, read_plan, written_plan
from nereid.page.text import FOLDER
from nereid_zoo.page.plans import MOST_SECTIONS, PageBrief, is_held_out, mistakes, plan_text, sample_page_brief
from nereid_zoo.page.score import demand_of, held_out_pages, page_captions, page_language, rules_planner, score_plans
from nereid_zoo.sections.briefs import Kind
from nereid_zoo.shapes.analyse import analyse
from nereid_zoo.shapes.analyse import mistakes as picture_mistakes
from nereid_zoo.shapes.scenes import BACKGROUNDS, CELL_CENTERS, COLORS, RADII, Layout, Scene, SceneObject, Shape, Size, render


def test_the_checker_finds_every_written_plan_right() -> None:
    rng = Random(1)
    for _ in range(500):
        brief = sample_page_brief(rng, held_out=rng.random() < 0.5, invented=0.5)
        assert mistakes(plan_text(brief.demand, rng), brief) == [], brief


def test_the_checker_sees_each_kind_of_mistake() -> None:
    rng = Random(2)
    while True:
        brief = sample_page_brief(rng)
        if brief.demand.name and len(brief.demand.asked) > 1 and not brief.demand.short and brief.demand.without:
            break
    text, demand = plan_text(brief.demand, rng), brief.demand
    lines = text.splitlines(keepends=True)
    unwanted = f"{demand.without[0]}: x for a {demand.topic.name} called {demand.name}\n"
    for broken, words in (
        ("".join(reversed(lines)), "begins with footer"),
        ("".join(line for line in lines if not line.startswith(f"{demand.asked[0]}:")), f"no {demand.asked[0]}"),
        (text + lines[1], "no section, or stands there twice"),
        (text + lines[1].replace("\n", ", and more\n"), f"{lines[1].partition(':')[0]} twice"),
        (text.replace(demand.name or "", "Somebody"), "does not name"),
        (text.replace(demand.topic.name, "circus"), "does not name the"),
        (text.replace("hero: ", "opening: "), "opening is no kind"),
        (lines[0] + lines[-1], "2 sections"),
        (lines[0] + unwanted + "".join(lines[1:]), "is not wanted"),
        ("nothing", "0 sections that can be read"),
    ):
        assert any(words in found for found in mistakes(broken, brief)), (words, broken, mistakes(broken, brief))


def test_held_out_pairs_are_never_trained_on() -> None:
    rng = Random(3)
    assert not any(is_held_out(brief.demand.intent, brief.demand.topic) for brief in (sample_page_brief(rng) for _ in range(500)))
    assert all(is_held_out(brief.demand.intent, brief.demand.topic) for brief in held_out_pages(100))


def test_plans_are_as_varied_as_their_briefs() -> None:
    rng = Random(4)
    orders = set()
    for _ in range(300):
        brief = sample_page_brief(rng)
        plan = read_plan(plan_text(brief.demand, rng), brief.text, MOST_SECTIONS)
        orders.add(tuple(section.kind for section in plan.sections))
    assert len(orders) > 60
    assert {kind for order in orders for kind in order} == set(map(str, Kind))


def test_a_score_counts_right_plans_and_rules_are_scored_beside() -> None:
    briefs = held_out_pages(60)
    rng = Random(5)
    texts = {asked_of_planner(brief.text): plan_text(brief.demand, rng) for brief in briefs}
    assert score_plans(lambda asked: iter([texts[message] for message in asked]), briefs).percent == 100
    made = score_plans(rules_planner, briefs)
    assert 0 < made.right < made.planned
    assert len(made.wrong) == made.planned - made.right


def test_pictures_are_asked_for_in_words_that_the_painter_and_the_analyser_know() -> None:
    language = page_language()
    assert set(language.words["color"]) == set(COLORS)
    assert set(language.words["shape"]) == set(map(str, Shape))
    assert set(language.words["size"]) == set(map(str, Size))
    assert set(language.words["background"]) == set(BACKGROUNDS)
    for caption in page_captions(30):
        (wanted,) = caption.demand.objects
        assert caption.demand == demand_of(caption.text)
        size = wanted.size or Size.LARGE
        item = SceneObject(
            color=wanted.color, shape=wanted.shape, size=size, x=CELL_CENTERS[1], y=CELL_CENTERS[1], radius=sum(RADII[size]) / 2
        )
        scene = Scene(objects=(item,), background=str(caption.demand.background), layout=Layout.SINGLE)
        assert picture_mistakes(analyse(render(scene)), caption.demand) == []
        other = replace(item, color=next(color for color in COLORS if color != wanted.color))
        wrong = Scene(objects=(other,), background=scene.background, layout=Layout.SINGLE)
        assert picture_mistakes(analyse(render(wrong)), caption.demand)
    with pytest.raises(ValueError, match=r"is not what page-prompts\.json asks for"):
        demand_of("a red thing")


@pytest.mark.torch
def test_a_planner_learns_for_a_moment_and_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import PreTrainedTokenizerFast

    from nereid_export.llm_checkpoint import LlmCheckpoint
    from nereid_zoo.page.train import PlannerPlan, batch, train
    from nereid_zoo.sections.score import CHECKPOINT, torch_writer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)
    ids, weights = batch(8, tokenizer, Random(1))
    answers = [tokenizer.decode(row[kept > 0]) for row, kept in zip(ids, weights, strict=True)]
    assert all(answer.startswith("hero: ") and answer.endswith("<|im_end|>\n") for answer in answers)
    for row, kept, answer in zip(ids, weights, answers, strict=True):  # kinds weigh more than what is said of them
        assert tokenizer.decode(row[kept > 1]).split(":")[:-1] == [line.partition(":")[0] for line in answer.splitlines()[:-1]]
    plan = PlannerPlan(source=CHECKPOINT, work=tmp_path / "work", minutes=2 / 60, batch_size=2)
    train(plan, tmp_path / "planner")
    assert LlmCheckpoint.open(tmp_path / "planner").digest() != LlmCheckpoint.open(CHECKPOINT).digest()
    (text,) = torch_writer(tmp_path / "planner")([asked_of_planner("landing page for a bakery")])
    assert text
    before = (tmp_path / "work" / "planner").stat().st_mtime_ns
    train(plan, tmp_path / "again")
    assert (tmp_path / "work" / "planner").stat().st_mtime_ns == before


def test_the_fonts_pieces_are_what_their_maker_makes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from nereid_zoo.page.fonts import fonts_of_matplotlib, make

    make(fonts_of_matplotlib(), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads((FOLDER / "metrics.json").read_text())
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in FOLDER.iterdir()}
    assert sum(file.stat().st_size for file in FOLDER.glob("*-latin.woff2")) < 50_000


def test_a_plan_is_written_as_it_is_read() -> None:
    brief: PageBrief = sample_page_brief(Random(6))
    text = plan_text(brief.demand, Random(6))
    assert written_plan(read_plan(text, brief.text, MOST_SECTIONS)) == text
