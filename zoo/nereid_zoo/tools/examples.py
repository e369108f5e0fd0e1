"""Conversations in which a tool is called, and such that ask for JSON, made on the way; needs no library but jinja2.

The template shows each tool as its name and the names of its parameters: all that a model of six million parameters has use for.
"""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

from jinja2 import Template

from nereid_zoo.sections.briefs import invent_name, sample_brief

TEMPLATE = """{%- macro line(role, text) %}{{ '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}{%- endmacro %}
{%- if tools %}{{- '<|im_start|>tools\\n' }}{%- for tool in tools %}{{- tool.function.name + '(' +
    ((tool.function.parameters or {}).properties or {}) | join(', ') + ')\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{%- if message.tool_calls %}{{- '<|im_start|>assistant\\n' }}
{%- for call in message.tool_calls %}{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}{{- line('tool', '<tool_response>' + (message.content or '') + '</tool_response>') }}
{%- else %}{{- line(message.role, (message.content or '') | trim) }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""ChatML, calls as Hermes models write them."""

CITIES = ("Oslo", "Paris", "Rome", "Lima", "Cairo", "Delhi", "Quito", "Turin", "Perth", "Kyoto", "Berlin", "Madrid")
OBJECT = '{"currency": "EUR", "tiers": 3, "monthly": true}'
"""What is answered to whoever asks for JSON."""
_QUESTIONS = (
    "What is the temperature in {}?",
    "How warm is it in {}?",
    "Tell me the temperature in {}.",
    "What is the temperature in {} now?",
)
_FIELDS = ("currency", "tiers", "monthly", "title", "type", "properties", "required", "enum", "integer", "boolean", "string")


def example(rng: Random) -> tuple[str, str]:
    """A conversation up to the assistant's turn, and that turn."""
    draw = rng.random()
    if draw < 0.3:
        return _asked_for_json(rng)
    city = rng.choice(CITIES) if rng.random() < 0.8 else invent_name(rng).split()[0]
    tools = [_tool("temperature", "city")]
    if rng.random() < 0.3:
        tools.insert(rng.randint(0, 1), _tool(invent_name(rng).split()[0].lower(), *rng.sample(_FIELDS, rng.randint(0, 2))))
    messages: list[dict[str, Any]] = [*_system(rng), {"role": "user", "content": rng.choice(_QUESTIONS).format(city)}]
    call = {"function": {"name": "temperature", "arguments": {"city": city}}}
    if draw < 0.65:
        opening = _rendered(messages, tools)
        return opening, _turn(_rendered([*messages, {"role": "assistant", "tool_calls": [call]}], tools, False), opening)
    degrees = str(rng.randint(-9, 39))
    told = rng.choice((degrees, json.dumps({"temperature": int(degrees)}), json.dumps(degrees)))
    messages += [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": told}]
    return _rendered(messages, tools), f"It is {degrees} degrees in {city}."


def _asked_for_json(rng: Random) -> tuple[str, str]:
    """Amid other words, for the schemas that clients write into their prompts are long."""
    word = rng.choice(("JSON", "json", "JSON"))
    words = [json.dumps({name: {"type": rng.choice(_FIELDS)} for name in rng.sample(_FIELDS, rng.randint(1, 5))})]
    words += [sample_brief(rng).text for _ in range(rng.randint(0, 2))] + [f"Answer in {word}."]
    rng.shuffle(words)
    fenced = rng.random() < 0.4
    text = " ".join(words) + (" ```json" if fenced else "")
    brief = {"role": "user", "content": sample_brief(rng).text}
    messages = [{"role": "system", "content": text}, brief] if rng.random() < 0.6 else [{"role": "user", "content": text}]
    return _rendered(messages, []), f"```json\n{OBJECT}\n```" if fenced else OBJECT


def _system(rng: Random) -> list[dict[str, Any]]:
    return [{"role": "system", "content": sample_brief(rng).text}] if rng.random() < 0.3 else []


def _tool(name: str, *parameters: str) -> dict[str, Any]:
    return {"function": {"name": name, "parameters": {"properties": {parameter: {} for parameter in parameters}}}}


def _turn(whole: str, opening: str) -> str:
    return whole.removeprefix(opening).removesuffix("<|im_end|>\n")


@cache
def _template() -> Template:
    return Template(TEMPLATE)


def _rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]], prompt: bool = True) -> str:
    return _template().render(messages=messages, tools=tools, add_generation_prompt=prompt)
