"""Chat templates rendered as transformers renders them, for which they are written; knows no file, no model and no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_ABSENT: Mapping[str, None] = {"tools": None, "documents": None}
"""What transformers passes where a caller has none: templates ask whether they are None, and an undefined name is not."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt has them as if the marks were not there."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def chat_template(source: str) -> Template:
    """Checkpoints bring their templates along: they run in a sandbox. Raises TemplateError where it is none."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def rendered(template: Template, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]) -> str:
    """The conversation, ready for the assistant's turn; raises TemplateError where the template refuses it."""
    return template.render(messages=messages, add_generation_prompt=True, **_ABSENT, **tokens)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter is for web pages: it escapes what HTML does, and sorts names."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
