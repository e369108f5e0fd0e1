"""Chat templates: what transformers makes of one, the gateway makes of it, too."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from nereid.llm.prompts import tokens_of_text
from nereid.llm.settings import LlmFacts
from nereid.serving.gateway.chat_templates import Chat, ChatTemplates, fault_of

from template_families import FAMILIES

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & écrit."},
    {"role": "user", "content": 'A "quoted" word'},
    {"role": "assistant", "content": "Yes"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
EACH, END = "{% for m in messages %}", "{% endfor %}"
TEMPLATES = {
    "loop controls": EACH + "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% break %}" + END,
    "json is not escaped for HTML": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "json with all options": "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
    "no tools": "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCUMENTS{% endif %}{{ bos_token }}",
    "marks of training": EACH + "{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}" + END,
    "trimmed blocks": EACH + "\n    {% if loop.first %}\n{{ m.role }}\n    {% endif %}\n" + END + "{{ eos_token }}",
    "namespaces": "{% set ns = namespace(n=0) %}" + EACH + "{% set ns.n = ns.n + 1 %}" + END + "{{ ns.n }}",
    "the assistant's turn": "{% if add_generation_prompt %}assistant:{% endif %}",
    "the date": "{{ strftime_now('%Y') }}",
    "dictionaries": "{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}{{ dict([('b', 3)], c=4) }}",
}
QUESTION = [{"role": "user", "content": "  How warm is it in Łódź? "}]
TALK = [*QUESTION, {"role": "assistant", "content": "Warm.\n"}, {"role": "user", "content": "And <now>?"}]
CALL = {"type": "function", "function": {"name": "warmth", "arguments": {"city": "Łódź", "n": [1, None]}}}
USED = [
    *QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"celsius": 20}', "tool_call_id": "a"},
]
THOUGHT = [*QUESTION, {"role": "assistant", "content": "It is.", "reasoning_content": "Let me think.", "refusal": None}]
TOOLS = [{"type": "function", "function": {"name": "warmth", "parameters": {"type": "object", "properties": {"city": {}}}}}]
DOCUMENTS = [{"title": "Weather", "text": "It is <warm>."}]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": QUESTION,
    "with a system": [{"role": "system", "content": "Be brief."}, *TALK],
    "a call": USED,
    "a thought": THOUGHT,
}
MORE: list[dict[str, Any]] = [{}, {"tools": TOOLS}, {"documents": DOCUMENTS, "enable_thinking": False, "reasoning_effort": "low"}]


def ours(source: str, messages: Sequence[Mapping[str, Any]], *, tokens: Mapping[str, str] = TOKENS, **more: Any) -> str:
    known = {name: more.pop(name) for name in ("tools", "documents", "continue_final_message") if name in more}
    begin = more.pop("add_generation_prompt", True)
    chat = Chat(messages=messages, add_generation_prompt=begin, variables=more, **known)
    return ChatTemplates.of({"default": source}, tokens).rendered(chat)


def theirs(source: str, messages: Sequence[Mapping[str, Any]], **more: Any) -> str:
    # As apply_chat_template does first: keys whose value is None are dropped.
    plain = [{name: value for name, value in message.items() if value is not None} for message in messages]
    begin = more.pop("add_generation_prompt", True)
    (made,), _ = render_jinja_template([plain], chat_template=source, add_generation_prompt=begin, **TOKENS, **more)  # type: ignore[list-item]
    return str(made)


def outcome(render: Any, *arguments: Any, **more: Any) -> tuple[str, str]:
    """A prompt, or the refusal."""
    try:
        return "made", render(*arguments, **more)
    except (TemplateError, TypeError, KeyError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_does(source: str) -> None:
    assert ours(source, MESSAGES) == theirs(source, MESSAGES)


def test_there_are_twenty_families_and_more() -> None:
    assert len(FAMILIES) == 37


@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_public_families_templates_are_rendered_as_transformers_does(source: str) -> None:
    made = 0
    for messages, more, begin in itertools.product(CONVERSATIONS.values(), MORE, (True, False)):
        expected = outcome(theirs, source, messages, add_generation_prompt=begin, **more)
        assert outcome(ours, source, messages, add_generation_prompt=begin, **more) == expected
        made += expected[0] == "made"
    assert made >= 12
    assert fault_of(ChatTemplates.of({"default": source}, TOKENS)) is None


@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_the_last_message_is_continued_as_transformers_does(source: str) -> None:
    for text in ("Warm", "Warm ", " Warm and \n"):
        messages = [*QUESTION, {"role": "assistant", "content": text}]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        made = ours(source, messages, **more)
        assert made == theirs(source, messages, **more)
        assert made.rstrip().endswith(text.strip())


def test_a_last_message_that_cannot_be_continued_is_refused() -> None:
    for source in ("{{ messages[0].content }}", "{{ messages | length }}"):
        with pytest.raises(TemplateError, match="continued"):
            ours(source, MESSAGES, continue_final_message=True)


def a_tokenizer(adds_bos: bool) -> PreTrainedTokenizerFast:
    """One token a byte, and two special ones, of which it may add the first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=made, **TOKENS)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("source", FAMILIES.values(), ids=FAMILIES)
def test_tokens_are_those_of_apply_chat_template(source: str, adds_bos: bool) -> None:
    tokenizer = a_tokenizer(adds_bos)
    expected = tokenizer.apply_chat_template(
        TALK, chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    facts = LlmFacts(
        architecture="",
        precision="",
        context_length=4096,
        vocabulary=1000,
        eos_token_ids=(),
        head_size=1,
        weight_bytes=1,
        flops_per_token=1,
        kv_bytes_per_token=1,
    )
    text = ours(source, TALK)
    assert tokens_of_text(text, tokenizer.backend_tokenizer, facts, 4096, add_special_tokens=False).ids == expected


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_some() -> None:
    templates = ChatTemplates.of({"default": "plain", "tool_use": "tools", "rag": "documents"}, {})
    assert templates.rendered(Chat(messages=QUESTION)) == "plain"
    assert templates.rendered(Chat(messages=QUESTION, tools=TOOLS)) == "tools"
    assert templates.rendered(Chat(messages=QUESTION, tools=TOOLS, template="rag")) == "documents"
    with pytest.raises(KeyError):
        templates.rendered(Chat(messages=QUESTION, template="other"))


@pytest.mark.parametrize("source", ["{% set n = namespace(_a=1) %}", "{% set n = namespace() %}{% set n._a = 1 %}"])
def test_a_namespace_leads_nowhere(source: str) -> None:
    with pytest.raises(TemplateError, match="underscore"):
        ours(source, QUESTION)


def test_a_template_knows_the_date() -> None:
    before, shown, after = datetime.now(), ours("{{ strftime_now('%Y-%m-%d') }}", MESSAGES), datetime.now()
    assert shown in {f"{before:%Y-%m-%d}", f"{after:%Y-%m-%d}"}


def test_a_template_refuses_a_conversation_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="no system here"):
        ours("{{ raise_exception('no system here') }}", MESSAGES)
