"""The sections checkpoint: its data, its checker, and the shipped weights."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from nereid_client import Client
from nereid_zoo.sections.briefs import Kind, is_held_out, sample_brief
from nereid_zoo.sections.chat import CHAT_TEMPLATE, conversation
from nereid_zoo.sections.html import mistakes, write_section
from nereid_zoo.sections.score import CHECKPOINT, held_out_briefs, score, served_writer, torch_writer
from nereid_zoo.sections.topics import TOPICS

from conftest import Served

AT_LEAST = 85
"""Far above what an untrained or a broken model reaches; the score itself is in README."""


def test_checker_finds_every_written_section_right() -> None:
    rng = Random(1)
    for _ in range(500):
        brief = sample_brief(rng, held_out=rng.random() < 0.5)
        assert mistakes(write_section(brief.demand, rng), brief.demand) == [], brief.text


def test_checker_sees_each_kind_of_mistake() -> None:
    rng = Random(2)
    while True:
        demand = sample_brief(rng).demand
        if demand.kind is Kind.FEATURES and demand.count == 3 and demand.buttons and demand.name:
            break
    html = write_section(demand, rng)
    topic = next(topic for topic in TOPICS if topic.name != demand.topic.name)
    for broken, words in (
        (html.replace("</p>", "", 1), "closes nothing"),
        (html + "<p>", "not closed"),
        (html.replace("<p>", "<script>", 1).replace("</p>", "</script>", 1), "not allowed"),
        (html.replace('class="features"', 'class="hero"'), "the root is"),
        (html.replace('<div class="feature">', "<div>", 1), "2 items, not 3"),
        (html.replace(demand.buttons[0], "Nothing"), "no button"),
        (html.replace(demand.name or "", "Somebody"), "is not named"),
        ("Here you are: " + html, "text outside"),
    ):
        assert any(words in found for found in mistakes(broken, demand)), words
    assert any("is not named" in found for found in mistakes(html, replace(demand, topic=topic)))


def test_held_out_pairs_are_never_trained_on() -> None:
    rng = Random(3)
    assert not any(is_held_out(brief.demand.kind, brief.demand.topic) for brief in (sample_brief(rng) for _ in range(500)))
    assert all(is_held_out(brief.demand.kind, brief.demand.topic) for brief in held_out_briefs(100))


def test_briefs_are_of_the_kinds_asked_for() -> None:
    rng = Random(4)
    kinds = {sample_brief(rng, kinds=(Kind.GALLERY, Kind.PRICING)).demand.kind for _ in range(50)}
    assert kinds == {Kind.GALLERY, Kind.PRICING}


@pytest.mark.torch
def test_the_chat_template_is_the_conversation_trained_on() -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(CHECKPOINT)
    chat = [{"role": "user", "content": " a hero "}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == conversation("a hero")
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.torch
def test_the_shipped_weights_answer_held_out_briefs() -> None:
    made = score(torch_writer(CHECKPOINT), held_out_briefs(40))
    assert made.percent >= AT_LEAST, made.wrong


@pytest.mark.triton
def test_the_served_int4_engine_answers_as_well(served: Served) -> None:
    with Client(served.grpc_url, timeout=120) as client:
        made = score(served_writer(client), held_out_briefs(40))
    assert made.percent >= AT_LEAST, made.wrong
