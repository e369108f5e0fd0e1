"""Answers taken apart as they come: thoughts, text and calls, in each family's form and however the text is cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.chat_answers import message_of
from nereid.serving.gateway.said import Arguments, Call, Said, Text
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

from calling_answers import ANSWERS, minimax, xtml
from template_families import deepseek

SCHEMAS = {
    "warmth": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hot": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/place"},
        },
        "$defs": {"place": {"type": "object"}},
    },
    "now": {"type": "object", "properties": {}},
}
TWO = [("warmth", {"city": 'Łó"dź } ]', "days": 2}), ("now", {})]
BARE = ("llama3_json", "pythonic", "xlam")


THOUGHT = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALLS, CALLS_END, CALL, CALL_END, SEP = (
    deepseek(f"<|{name}|>") for name in ("tool_calls_begin", "tool_calls_end", "tool_call_begin", "tool_call_end", "tool_sep")
)


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
    assert found["content"] == (None if form in BARE else "Let me see.")
    assert len({call["id"] for call in found["tool_calls"]}) == 2


@pytest.mark.parametrize("form", ANSWERS)
def test_arguments_are_told_while_they_are_written(form: str) -> None:
    made = stream(form)
    order = [type(item) for letter in ANSWERS[form] for item in made.feed(letter)]
    begun = order.index(Call)
    assert Text not in order[begun:]
    assert order[begun + 1] is Arguments
    pieces = order[begun + 1 :].index(Call)
    assert pieces > (1 if form in ("pythonic", "lfm2", "olmo3", "gemma4", "functiongemma") else 10)


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
        ("hermes", '<tool_call>\n```json\n{"name": "warmth", "arguments": {"days": 1}}\n```\n</tool_call>', {"days": 1}),
        ("mistral", '[TOOL_CALLS]```json\n[{"name": "warmth", "arguments": {"days": 1}}]\n```', {"days": 1}),
        ("mistral_args", '[TOOL_CALLS]warmth{"days": 1}', {"days": 1}),
        ("mistral_args", '[TOOL_CALLS] warmth\n{"days": 1}\n', {"days": 1}),
        ("granite", '<tool_call>[{"arguments": {"days": 1}, "name": "warmth"}]', {"days": 1}),
        ("qwen3_coder", "<function=warmth>\n<parameter=city>\nx\n</parameter>\n</function>\n</tool_call>", {"city": "x"}),
        (
            "qwen3_coder",
            "<tool_call>\n<function=warmth>\n<parameter=city>\nx\n<parameter=days>\n2\n</function>\n</tool_call>",
            {"city": "x", "days": 2},
        ),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=hot>\nTrue\n</parameter></function>", {"hot": True}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=hot>\nyes\n</parameter></function>", {"hot": "yes"}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=note>\n123\n</parameter></function>", {"note": "123"}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=note>\nNone\n</parameter></function>", {"note": None}),
        ("qwen3_coder", "<tool_call><function=warmth><parameter=place>\n{'x': 1}\n</parameter></function>", {"place": {"x": 1}}),
        ("llama3_json", 'I call:\n\n  {"name": "warmth", "parameters": {"days": 1}}', {"days": 1}),
        ("harmony", '<|channel|>commentary to=functions.warmth<|constrain|>json<|message|>{"days": 1}<|return|>', {"days": 1}),
        ("harmony", '<|channel|>analysis to=functions.warmth code<|message|> {"days": 1} <|end|>', {"days": 1}),
        ("harmony", '<|channel|>commentary to=warmthjson<|message|>{"days": 1}', {"days": 1}),
        ("harmony", '<|channel|>commentary to=functions.warmth:0 json<|message|>{"days": 1}', {"days": 1}),
        ("harmony", '<|channel|>commentary to=functions.warmth <|constrain|>json{"days": 1}', {"days": 1}),
        ("harmony", 'commentary to=functions.warmth json<|message|>{"days": 1}', {"days": 1}),
        ("harmony", '<|channel|> to=functions.warmth<|message|>{"city": "<|end|>"}<|call|>', {"city": "<|end|>"}),
        ("harmony", "<|channel|>commentary to=functions.warmth<|message|><|call|>", {}),
        ("deepseek_v3", f'{CALLS}{CALL}warmth{SEP}{{"days": 1}}{CALL_END}{CALLS_END}', {"days": 1}),
        ("deepseek_v31", f'{CALLS}\n{CALL}function{SEP}warmth\n```json\n{{"days": 1}}\n```\n', {"days": 1}),
        ("deepseek_v31", f'{CALL}warmth{SEP}{{"days": 1}}{CALL_END}', {"days": 1}),
        ("deepseek_v31", f"{CALLS}{CALL}warmth{SEP}{CALL_END}{CALLS_END}", {}),
        ("deepseek_v31", f"{CALLS}{CALL}warmth{SEP}null{CALL_END}{CALLS_END}", {}),
        ("deepseek_v3", f"{CALLS}{CALL}function\nwarmth\n```\n{{}}\n```{CALL_END}{CALLS_END}", {}),
        ("llama3_json", '<|python_tag|>{"type": "function", "name": "warmth", "parameters": {"days": 1}}', {"days": 1}),
    ],
)
def test_what_models_write_instead_is_understood(form: str, text: str, arguments: object) -> None:
    for size in (1, 1000):
        assert calls_of(message(text, form, size)) == [("warmth", arguments)]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}\n{"name": "now", "arguments": {}}\n</tool_call>'),
        ("llama3_json", '{"name": "now", "parameters": {}}\n{"name": "now", "parameters": {}}'),
        ("llama3_json", 'First.\n{"name": "now", "parameters": {}}\n{"none": 1}\n{"name": "now", "parameters": {}}'),
        ("mistral_args", "[TOOL_CALLS]now{}[TOOL_CALLS]now[ARGS]{}"),
        ("hermes", '<tool_call> is a mark: <tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now"}</tool_call>'),
    ],
)
def test_several_calls_are_found_as_models_write_them(form: str, text: str) -> None:
    for size in (1, 7, 1000):
        assert calls_of(message(text, form, size)) == [("now", {}), ("now", {})]


@pytest.mark.parametrize(
    ("form", "text", "content"),
    [
        ("llama3_json", '{"name": "now", "parameters": {}}\n{searchTool} was used', "{searchTool} was used"),
        ("llama3_json", '{"name": "now", "parameters": {}} {"answer": 3}', '{"answer": 3}'),
        ("llama3_json", '{"name": "now", "parameters": {}}\n{"cut', '{"cut'),
        ("hermes", '<tool_call>{"name": "now"}</tool_call>after', "after"),
        ("hermes", '<tool_call>{"name": "now"}\n{"x": 1}</tool_call> after', '{"x": 1}</tool_call> after'),
        ("mistral_args", "[TOOL_CALLS]now[ARGS]{}\n\nLet me search.", "Let me search."),
        ("qwen3_coder", "<tool_call><function=now></function></tool_call>after", "after"),
    ],
)
def test_text_after_a_call_is_told(form: str, text: str, content: str) -> None:
    for size in (1, 7, 1000):
        found = message(text, form, size)
        assert (calls_of(found), found["content"].strip()) == ([("now", {})], content)


@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_is_the_same_however_it_is_cut(form: str) -> None:
    """Answers of parts in any order, as broken as they come."""
    chance = random.Random(form)
    whole, others = ANSWERS[form], ["<|start|>", "<|end|>", "assistant", "<think>", "</think>"]
    for _ in range(60):
        cuts = sorted(chance.sample(range(len(whole)), 2))
        parts = [whole, whole[cuts[0] : cuts[1]], "text", "{", "\n", " ", '{"a": 1}', "<", *others, *TOOL_FORMATS[form].marks]
        text = "".join(chance.choices(parts, k=chance.randint(1, 7)))
        marks = chance.choice([None, MARKS, OPENED])
        found = [message(text, form, size, thinking=marks) for size in (1, 3, 1000)]
        for one in found:
            for call in one.get("tool_calls", ()):
                call.pop("id")
        assert found[0] == found[1] == found[2], text


def test_a_call_that_is_cut_keeps_what_there_is() -> None:
    found = message('<tool_call>\n{"name": "warmth", "arguments": {"city": "Ł', "hermes")
    assert found["tool_calls"][0]["function"] == {"name": "warmth", "arguments": '{"city": "Ł'}


def test_a_call_whose_arguments_break_off_ends_at_the_next_mark() -> None:
    text = f'{CALLS}{CALL}warmth{SEP}{{"days": {CALL_END}{CALL}now{SEP}{{}}{CALL_END}{CALLS_END}'
    assert [call["function"]["name"] for call in message(text, "deepseek_v31")["tool_calls"]] == ["warmth", "now"]
    found = message(f'<|channel|>commentary to=functions.warmth<|message|>{{"days": <|end|>{FINAL}Sorry.', "harmony")
    assert (found["tool_calls"][0]["function"]["arguments"], found["content"]) == ('{"days": ', "Sorry.")


@pytest.mark.parametrize("text", [f"{CALLS} is a mark", f"{CALL} too", f"{CALLS}{CALL[:11]}", f"{CALL}two words{SEP}{{}}"])
def test_marks_that_no_call_follows_are_text(text: str) -> None:
    for form in ("deepseek_v3", "deepseek_v31"):
        for size in (1, 1000):
            assert message(text, form, size) == {"role": "assistant", "content": text}


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


@pytest.mark.parametrize("form", [form for form in ANSWERS if form not in ("harmony", *BARE)])
def test_calls_of_a_model_that_does_not_end_its_thoughts_are_told(form: str) -> None:
    for marks, begin in ((MARKS, "<think>"), (OPENED, "")):
        for size in (1, 1000):
            found = message(f"{begin}{ANSWERS[form]}", form, size, thinking=marks)
            thought, text = (found.get("reasoning_content") or "").rstrip(), found["content"]
            if form == "kimi_k3":  # what stands between the marks of a response is none of the thoughts
                thought, text = text, thought or None
            assert (thought, calls_of(found), text) == ("Let me see.", TWO, None)
            cut = message(f"{begin}I write {TOOL_FORMATS[form].begin} and", form, size, thinking=marks)
            assert (cut["reasoning_content"], cut["content"]) == (f"I write {TOOL_FORMATS[form].begin} and", "")


def test_an_answer_whose_thoughts_do_not_end_before_its_own_marks_is_text() -> None:
    text = xtml("Hm.[response]Warm.[/response][/message]")
    for size in (1, 3, 1000):
        found = message(text, "kimi_k3", size, thinking=Thinking("<t>", xtml("[/think]"), opened=True))
        assert (found["reasoning_content"], found["content"]) == ("Hm.", "Warm.")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a<|close|>response<|sep|>b<|end_of_msg|>", "ab"),
        ("a <|close|> b", "a <|close|> b"),
        ("a<|close|>resp<|close|>response<|sep|>onse<|sep|>", "a<|close|>response<|sep|>"),
        ("a<|close|>respon", "a"),
        ("a<|close|>", "a"),
        ("a<|clos", "a<|clos"),
    ],
)
def test_marks_around_text_are_left_out_however_it_is_cut(text: str, content: str) -> None:
    silent = TOOL_FORMATS["kimi_k3"].silent
    for size in (1, 2, 5, 1000):
        made = AnswerStream(silent=silent)
        assert message_of(said(made, text, size))["content"] == content
        assert message(text, "kimi_k3", size)["content"] == content


def test_a_mark_that_nothing_follows_is_no_text() -> None:
    """https://github.com/MiniMax-AI/MiniMax-M3/issues/31"""
    for size in (1, 3, 1000):
        assert message(minimax("Done%\nNow.%"), "minimax_m3", size) == {"role": "assistant", "content": "Done\nNow."}
        found = message(ANSWERS["minimax_m3"] + minimax("%\nand on"), "minimax_m3", size)
        assert (calls_of(found), found["content"]) == (TWO, "Let me see.\nand on")


# --- channels ---

CHANNELS = Thinking("<|message|>", "<|end|>", channels=True)


@pytest.mark.parametrize(
    ("text", "thought", "content"),
    [
        (f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}Warm.\n", "Hm.", "Warm.\n"),
        (
            f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>{FINAL}c",
            "a\n\nb",
            "c",
        ),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>c<|return|>", "a", "c"),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>c", "a", "c"),
        ("<|channel|>analysis––final<|message|>cut", "cut", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}", None, "{}"),
        (f"<|channel|>commentary<|message|>First.<|end|>{FINAL}Then.", None, "First.\n\nThen."),
        ("<|channel|>final<|message|>a <| b |> <|c|> d", None, "a <| b |> <|c|> d"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|chan", "a", ""),
        ("Warm, and plainly.", None, "Warm, and plainly."),
        ("finally", None, "finally"),
        ("final", None, "final"),
        ("<|start|>" + "very " * 70, None, "very " * 70),
        ("<|channel|>commentary to=functions.now<|message|>{}", None, "{}"),
        # https://github.com/ggml-org/llama.cpp/issues/27720
        (f"<|channel|>commentary?commentary?<|end|><|start|>assistant<|channel|>analysis<|message|>a<|end|>{FINAL}c", "a", "c"),
        (f"<|channel|>commentary to=assistant<|channel|>??<|end|><|start|>assistant{THOUGHT}a<|end|>{FINAL}c", "a", "c"),
    ],
)
def test_channels_are_told_apart(text: str, thought: str | None, content: str) -> None:
    for size in (1, 3, 1000):
        found = message(text, thinking=CHANNELS, size=size)
        assert (found.get("reasoning_content"), found["content"]) == (thought, content)


def test_thoughts_and_calls_are_told_apart_in_channels() -> None:
    thoughts = "<|channel|>analysis<|message|>I call to=functions.now json<|end|><|start|>assistant"
    found = message(thoughts + ANSWERS["harmony"], "harmony", thinking=CHANNELS)
    assert (found["reasoning_content"], calls_of(found)) == ("I call to=functions.now json", TWO)
    untold = message(thoughts + ANSWERS["harmony"], "harmony")
    assert (untold["content"], calls_of(untold)) == ("I call to=functions.now json\n\nLet me see.", TWO)
    other = message(f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}{ANSWERS['hermes']}", "hermes", thinking=CHANNELS)
    assert (other["reasoning_content"], calls_of(other), other["content"]) == ("Hm.", TWO, "Let me see.")


@pytest.mark.parametrize("body", ["Let me see.", "<b>Hm</b>", "functions.now {}"])
def test_thoughts_that_name_a_function_are_no_call_of_it(body: str) -> None:
    """https://github.com/jundot/omlx/issues/2032"""
    for size in (1, 3, 1000):
        text = f"<|channel|>analysis to=functions.now<|message|>{body}<|end|><|start|>assistant"
        found = message(text + ANSWERS["harmony"], "harmony", size, thinking=CHANNELS)
        assert (found["reasoning_content"], calls_of(found)) == (body, TWO)
        called = message("<|channel|>analysis to=functions.now code<|message|><|call|>", "harmony", size, thinking=CHANNELS)
        assert calls_of(called) == [("now", {})]


@pytest.mark.parametrize("to", ["assistant", "user", "all"])
def test_a_message_to_no_function_is_no_call(to: str) -> None:
    found = message(f"<|channel|>commentary to={to}<|message|>Hello", "harmony")
    assert found == {"role": "assistant", "content": "Hello"}


def test_a_message_that_the_prompt_has_begun_goes_on() -> None:
    made = stream("harmony", thinking=Thinking("<|message|>", "<|end|>", channels=True, opened=True, before=f"{FINAL}Let <"))
    found = message_of(said(made, "me see.<|end|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}", 4))
    assert (found["content"], calls_of(found)) == ("me see.", [("now", {})])
    begun = Thinking("<|message|>", "<|end|>", channels=True, before="<|start|>assistant<|channel|>analysis")
    assert message("<|message|>Hm.", thinking=begun)["reasoning_content"] == "Hm."


def test_tokens_of_thoughts_are_counted_in_channels() -> None:
    marks = Thinking("<|message|>", "<|end|>", channels=True, tokens=(8, 9))
    pieces = [(5, "<|channel|>"), (1, "analysis"), (8, "<|message|>"), (1, "Hm"), (2, "."), (9, "<|end|>"), (4, "<|start|>")]
    pieces += [(1, "assistant"), (5, "<|channel|>"), (1, "final"), (8, "<|message|>"), (3, "Yes"), (3, "!")]
    one, whole = AnswerStream(marks), AnswerStream(marks)
    for token, text in pieces:
        one.feed(text, [token])
    whole.feed("".join(text for _, text in pieces), [token for token, _ in pieces])
    assert (one.reasoning_tokens, whole.reasoning_tokens) == (2, 2)
    begun = AnswerStream(Thinking("<|message|>", "<|end|>", channels=True, tokens=(8, 9), before=f"{THOUGHT}So"))
    begun.feed(" it is<|end|>", [1, 2, 9])
    assert begun.reasoning_tokens == 2
