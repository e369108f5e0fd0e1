"""Answers with awkward arguments, cut at each place and by max_tokens: what is told in pieces is what is told at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.said import Arguments
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_answers import ANSWERS

SCHEMAS: dict[str, dict[str, Any]] = {
    "warmth": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {"type": "object", "properties": {}},
}
VALUES = ("", "\n", " a <b>\n\n", "\\n \\u00e9 \\", 'it\'s "q"', '{"a": [1, "}"]}', "</", "é\U0001f600", "]")
IN_TAGS, IN_JSON = 'Łó"dź } ]', 'Łó\\"dź } ]'


def told(form: str, pieces: Sequence[str]) -> dict[str, Any]:
    stream = AnswerStream(calls=CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS))
    made = message_of([*(said for piece in pieces for said in stream.feed(piece)), *stream.finish()])
    for call in made.get("tool_calls", ()):
        call.pop("id")
    return made


def with_value(form: str, value: str) -> str:
    """The form's answer with another city."""
    answer = ANSWERS[form]
    if IN_JSON in answer:
        return answer.replace(IN_JSON, json.dumps(value)[1:-1])
    if f"'{IN_TAGS}'" in answer:
        return answer.replace(f"'{IN_TAGS}'", repr(value))
    return answer.replace(IN_TAGS, value)


def texts(form: str) -> list[str]:
    marks = TOOL_FORMATS[form].marks
    made = [with_value(form, value) for value in (*VALUES, *marks[:3], f"a{marks[-1]}b" if marks else "")]
    answer = ANSWERS[form]
    made += [answer.replace("warmth", "unknown"), answer.replace("\n", "\n\n"), f"{answer}\nafter {answer}"]
    return [*made, *(answer[:-count] for count in (1, 7, 16, 31))]


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_an_answer_that_is_cut_anywhere_is_the_one_that_comes_at_once(form: str) -> None:
    for place, text in enumerate(texts(form)):
        whole = told(form, [text])
        cuts = [list(text), *([text[:at], text[at:]] for at in range(1 + place % 11, len(text), 11))]
        for cut in cuts:
            assert told(form, cut) == whole, (text, cut[0][-20:])


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_awkward_values_come_back_as_they_were(form: str) -> None:
    for value in VALUES:
        tags = TOOL_FORMATS[form].tags
        if tags is not None and tags.padded and value.strip("\n") != value:
            continue  # line breaks at its ends are its tags'
        calls = told(form, [with_value(form, value)])["tool_calls"]
        assert json.loads(calls[0]["function"]["arguments"]) == {"city": value, "days": 2}, value
        assert (calls[1]["function"]["name"], json.loads(calls[1]["function"]["arguments"])) == ("now", {})


@pytest.mark.parametrize("form", TOOL_FORMATS)
def test_what_max_tokens_cuts_has_the_beginning_of_its_arguments(form: str) -> None:
    answer = ANSWERS[form]
    stream = AnswerStream(calls=CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS, several=False))
    whole = "".join(said.text for said in stream.feed(answer) + stream.finish() if isinstance(said, Arguments))
    for end in range(0, len(answer), 3):
        for call in told(form, [answer[:end]]).get("tool_calls", [])[:1]:
            assert call["function"]["name"] == "warmth"
            ends_unseen = form == "harmony"  # the mark that ends a call ends the answer, and is not in its text
            assert whole.startswith(call["function"]["arguments"]) or (ends_unseen and call["function"]["arguments"] == "{}")
