"""Answers taken apart as they come: thoughts, text and calls, in each family's form and however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nereid.serving.gateway.answer_streams import AnswerStream, CallReading, Thinking
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.said import Arguments, Call, Said, Text
from nereid.serving.gateway.tool_formats import TOOL_FORMATS, format_of

from template_families import FAMILIES

SCHEMAS = {
    "warmth": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "now": {"type": "object", "properties": {}},
}
TWO = [("warmth", {"city": 'Łó"dź } ]', "days": 2}), ("now", {})]
ANSWERS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "warmth", "parameters": {"city": "Łó\\"dź } ]", "days": 2}}; {"name": "now", "parameters": {}}',
    "mistral": 'Let me see.[TOOL_CALLS][{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"name": "now", "arguments": {}}]',
    "mistral_args": 'Let me see.[TOOL_CALLS]warmth[CALL_ID]123456789[ARGS]{"city": "Łó\\"dź } ]", "days": 2}'
    "[TOOL_CALLS]now[ARGS]{}",
    "granite": 'Let me see. <|tool_call|>[{"name": "warmth", "arguments": {"city": "Łó\\"dź } ]", "days": 2}}, '
    '{"arguments": {}, "name": "now"}]',
    "qwen3_coder": 'Let me see.\n<tool_call>\n<function=warmth>\n<parameter=city>\nŁó"dź } ]\n</parameter>\n'
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
}


def stream(form: str = "", several: bool = True, thinking: Thinking | None = None) -> AnswerStream:
    calls = CallReading(form=TOOL_FORMATS[form], schemas=SCHEMAS, several=several) if form else None
    return AnswerStream(thinking, calls)


def said(made: AnswerStream, text: str, size: int) -> list[Said]:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return [item for piece in pieces for item in made.feed(piece)] + made.finish()


def message(text: str, form: str = "", size: int = 1, **more: Any) -> dict[str, Any]:
    return message_of(said(stream(form, **more), text, size))


def calls_of(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found.get("tool_calls", [])]


def test_there_is_an_answer_for_each_form() -> None:
    assert ANSWERS.keys() == TOOL_FORMATS.keys()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("form", ANSWERS)
def test_calls_are_found_however_the_text_is_cut(form: str, size: int) -> None:
    found = message(f"{ANSWERS[form]}\n", form, size)
    assert calls_of(found) == TWO
    assert found["content"] == (None if form == "llama3_json" else "Let me see.")
    assert len({call["id"] for call in found["tool_calls"]}) == 2


@pytest.mark.parametrize("form", ANSWERS)
def test_arguments_are_told_while_they_are_written(form: str) -> None:
    made = stream(form)
    order = [type(item) for letter in ANSWERS[form] for item in made.feed(letter)]
    begun = order.index(Call)
    assert Text not in order[begun:]
    assert order[begun + 1] is Arguments
    pieces = order[begun + 1 :].index(Call)
    assert pieces > (1 if form == "qwen3_coder" else 10)


@pytest.mark.parametrize("form", ANSWERS)
def test_only_the_first_call_is_told_where_there_are_not_to_be_several(form: str) -> None:
    assert calls_of(message(ANSWERS[form], form, several=False)) == TWO[:1]


@pytest.mark.parametrize("form", ANSWERS)
@pytest.mark.parametrize(
    "text",
    ["plain text", "  two \n lines \n", "a < b and [c] {d}", "<tool", "<tool_call> is a tag, [TOOL_CALLS] and <|tool_call|> too"],
)
def test_text_without_calls_stays_as_it_is(form: str, text: str) -> None:
    for size in (1, 5, 1000):
        found = message(text, form, size)
        assert found == {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "text", ['{"answer": 3}', '{"name": "other", "parameters": {}}', '{"name": 3}', "{not json", ' {"name": "war']
)
def test_json_that_calls_nothing_is_text_where_calls_have_no_mark(text: str) -> None:
    for size in (1, 1000):
        assert message(text, "llama3_json", size) == {"role": "assistant", "content": text}


def test_text_may_follow_a_call_without_a_mark() -> None:
    found = message('{"name": "now", "parameters": {}} Good.', "llama3_json")
    assert (calls_of(found), found["content"].strip()) == ([("now", {})], "Good.")


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"arguments": {"city": "x"}, "name": "warmth"}</tool_call>', {"city": "x"}),
        ("hermes", '<tool_call>{"name": "warmth", "arguments": "{\\"city\\": \\"x\\"}"}</tool_call>', {"city": "x"}),
        ("hermes", '<tool_call>{"name": "warmth"}</tool_call>', {}),
        ("hermes", '<tool_call>{"name": "warmth", "arguments": null}</tool_call>', {}),
        ("hermes", '<tool_call>[{"name": "warmth", "parameters": {"days": 1}}]</tool_call>', {"days": 1}),
        ("mistral_args", '[TOOL_CALLS][{"name": "warmth", "arguments": {"days": 1}}]', {"days": 1}),
        ("qwen3_coder", '<tool_call>\n{"name": "warmth", "arguments": {"days": 1}}\n</tool_call>', {"days": 1}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=city>\n7\n</parameter></function>", {"city": "7"}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=days>\nNaN\n</parameter></function>", {"days": "NaN"}),
        ("llama3_json", '<|python_tag|>{"type": "function", "name": "warmth", "parameters": {"days": 1}}', {"days": 1}),
    ],
)
def test_what_models_write_instead_is_understood(form: str, text: str, arguments: object) -> None:
    for size in (1, 1000):
        assert calls_of(message(text, form, size)) == [("warmth", arguments)]


def test_a_call_that_is_cut_keeps_what_there_is() -> None:
    found = message('<tool_call>\n{"name": "warmth", "arguments": {"city": "Ł', "hermes")
    assert found["tool_calls"][0]["function"] == {"name": "warmth", "arguments": '{"city": "Ł'}


def test_mistrals_ids_are_as_its_templates_want_them() -> None:
    for call in message(ANSWERS["mistral"], "mistral")["tool_calls"]:
        assert len(call["id"]) == 9
        assert call["id"].isalnum()


# --- thoughts ---

MARKS = Thinking("<think>", "</think>")
OPENED = Thinking("<think>", "</think>", opened=True)


@pytest.mark.parametrize(
    ("marks", "text", "thought", "content"),
    [
        (MARKS, "<think>\nLet me\n\nsee.\n</think>\n\nYes\n", "Let me\n\nsee.", "Yes\n"),
        (MARKS, "\n<think>a</think>b", "a", "b"),
        (MARKS, "<think>\n\n</think>\n\nYes", None, "Yes"),
        (MARKS, "Yes, <think> is a tag", None, "Yes, <think> is a tag"),
        (MARKS, "<thin", None, "<thin"),
        (MARKS, "<think>cut", "cut", ""),
        (OPENED, "\nso </th\n</think>Yes", "so </th", "Yes"),
        (OPENED, "cut \n", "cut ", ""),
        (OPENED, "a</think>", "a", ""),
    ],
)
def test_thoughts_are_told_apart(marks: Thinking, text: str, thought: str | None, content: str) -> None:
    for size in (1, 3, 1000):
        found = message(text, thinking=marks, size=size)
        assert (found.get("reasoning_content"), found.get("reasoning"), found["content"]) == (thought, thought, content)


@pytest.mark.parametrize(
    ("opened", "pieces", "count"),
    [
        (False, [(8, "<think>"), (1, "\nHm"), (2, "."), (9, "</think>"), (3, "Yes")], 2),
        (True, [(1, "Hm"), (2, "."), (9, "</think>"), (3, "Yes")], 2),
        (False, [(8, "<think>"), (1, "Hm"), (2, " cut")], 2),
        (False, [(8, "<think>"), (9, "</think>"), (3, "Yes")], 0),
        (False, [(3, "Yes"), (8, "<think>"), (1, "a"), (9, "</think>")], 0),
        (False, [(8, "<think>"), (1, "a"), (9, "</think>"), (3, "b"), (8, "<think>"), (3, "c")], 1),
        (True, [(1, "Hm"), (4, "</"), (5, "think>"), (3, "Yes"), (3, "Yes")], 3),  # the mark in other tokens than its own
    ],
)
def test_tokens_of_thoughts_are_counted(opened: bool, pieces: list[tuple[int, str]], count: int) -> None:
    marks = Thinking("<think>", "</think>", opened=opened, tokens=(8, 9))
    stream = AnswerStream(marks)
    for token, text in pieces:
        stream.feed(text, [token])
    stream.finish()
    assert stream.reasoning_tokens == count
    plain = AnswerStream(Thinking("<think>", "</think>", opened=opened))
    plain.feed("".join(text for _, text in pieces), [token for token, _ in pieces])
    assert plain.reasoning_tokens == 0
    if (4, "</") not in pieces:
        whole = AnswerStream(marks)
        whole.feed("".join(text for _, text in pieces), [token for token, _ in pieces])
        assert whole.reasoning_tokens == count


def test_a_call_in_thoughts_is_none() -> None:
    text = "<think>\n<tool_call>{}\n</think>\n\n" + ANSWERS["hermes"]
    found = message(text, "hermes", thinking=MARKS)
    assert (found["reasoning_content"], calls_of(found), found["content"]) == ("<tool_call>{}", TWO, "Let me see.")


# --- which form ---


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("hermes", "hermes"),
        ("qwen 2.5", "hermes"),
        ("mistral", "mistral"),
        ("llama 3.1 with tools", "llama3_json"),
        ("chatml", None),
        ("gemma", None),
    ],
)
def test_a_templates_form_is_read_from_its_text(family: str, form: str | None) -> None:
    found = format_of(FAMILIES[family])
    assert (found.name if found else None) == form


def test_forms_with_the_same_mark_are_told_apart() -> None:
    assert format_of("[TOOL_CALLS]{{ name }}[ARGS]") is TOOL_FORMATS["mistral_args"]
    assert format_of("<tool_call>\n<function={{ name }}>\n<parameter=x>") is TOOL_FORMATS["qwen3_coder"]
    assert format_of("respond with <|tool_call|> followed by a JSON list") is TOOL_FORMATS["granite"]
