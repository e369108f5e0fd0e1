"""Marks and calls of tools within thoughts: told as they come, as in the whole answer, and calls only at the thoughts' end."""

from __future__ import annotations

import random
from typing import Any

import pytest
from test_answer_streams import ANSWERS, BARE, MARKS, OPENED, TWO, calls_of, message, said, stream

from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.said import Call, Reasoning
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

FORMS = [form for form in ANSWERS if form not in ("harmony", *BARE)]
AFTER = " So I could.\nBut it is late, and there are other things to be done."


def calls_text(form: str) -> str:
    """Two calls as the family writes them, from the first mark after the text on."""
    return behind_text(form).lstrip()


def behind_text(form: str) -> str:
    return ANSWERS[form].partition("Let me see.")[2] or ANSWERS[form]


def told_of(made: dict[str, Any]) -> tuple[str | None, list[Any], str | None]:
    return made.get("reasoning_content"), calls_of(made), made["content"]


@pytest.mark.parametrize("size", [1, 5, 10_000])
@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_thoughts_go_on_after_is_none(form: str, size: int) -> None:
    thought = f"Let me see. {calls_text(form)}{AFTER}"
    assert told_of(message(f"<think>{thought}</think>Yes", form, size, thinking=MARKS)) == (thought, [], "Yes")
    assert told_of(message(thought, form, size, thinking=OPENED)) == (thought, [], "")
    both = f"{thought}\n{calls_text(form)}"
    assert told_of(message(both, form, size, thinking=OPENED)) == (thought, TWO, None)


@pytest.mark.parametrize("form", FORMS)
def test_thoughts_are_told_as_they_come_after_a_mark_or_a_call_in_them(form: str) -> None:
    for within in (TOOL_FORMATS[form].begin, calls_text(form)):
        made = stream(form, thinking=OPENED)
        text = f"I may write {within}{AFTER}{' And on.' * 40}"  # what may be a name yet is held, if not for long
        told = "".join(item.text for letter in text for item in made.feed(letter) if isinstance(item, Reasoning))
        assert told == text[: len(told)]
        assert "But it is late" in told
        assert not any(isinstance(item, Call) for item in made.finish())


@pytest.mark.parametrize("end", ["</think>", "\n</think>\n\n", "</think> \n", ""])
@pytest.mark.parametrize("form", FORMS)
def test_calls_at_the_end_of_thoughts_are_calls_where_nothing_follows(form: str, end: str) -> None:
    for size in (1, 4, 10_000):
        text = f"<think>Let me see.\n{calls_text(form)}{end}"
        assert told_of(message(text, form, size, thinking=MARKS)) == ("Let me see.", TWO, None)
        made = stream(form, thinking=MARKS)
        said(made, text, size)
        assert made.has_called


@pytest.mark.parametrize("form", FORMS)
def test_calls_at_the_end_of_thoughts_are_thoughts_where_an_answer_follows(form: str) -> None:
    for size in (1, 4, 10_000):
        text = f"<think>Let me see.\n{calls_text(form)}\n</think>\n\n Yes"
        thought = f"Let me see.\n{calls_text(form)}".rstrip("\n")
        assert told_of(message(text, form, size, thinking=MARKS)) == (thought, [], " Yes")
        after = f"{text}{behind_text(form)}"
        assert told_of(message(after, form, size, thinking=MARKS)) == (thought, TWO, " Yes")


@pytest.mark.parametrize("form", FORMS)
def test_however_thoughts_are_cut_they_are_what_they_are_as_a_whole(form: str) -> None:
    drawn = random.Random(form)
    call = calls_text(form)
    begins = TOOL_FORMATS[form].begins
    parts = [*begins, call, call, call[: len(call) // 2], "</thi", "\n", " ", "well", "</think>", *TOOL_FORMATS[form].ends]
    for _ in range(25):
        text = "<think>" + "".join(drawn.choice(parts) for _ in range(drawn.randint(1, 7)))
        whole = message_of(said(stream(form, thinking=MARKS), text, len(text)))
        cuts = sorted(drawn.sample(range(1, len(text)), min(len(text) - 1, drawn.randint(1, 12))))
        made = stream(form, thinking=MARKS)
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found = message_of([item for piece in pieces for item in made.feed(piece)] + made.finish())
        letters = message(text, form, 1, thinking=MARKS)
        for other in (found, letters):
            for call_made in other.get("tool_calls", []):
                call_made.pop("id")
        for call_made in whole.get("tool_calls", []):
            call_made.pop("id")
        assert found == whole, text
        assert letters == whole, text
