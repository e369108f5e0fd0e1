"""Chat templates rendered as transformers renders them, for which they are written; knows no file, no model and no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nereid.serving.gateway.call_messages import REASONING_FIELDS, CallManners, Write, manners_of

DEFAULT, TOOL_USE = "default", "tool_use"
"""Of several templates by name, transformers takes the second where a chat has tools, else the first."""
OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""What a chat sets in a template by fields of its own."""
_MARK = "END-OF-WHAT-IS-CONTINUED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation and what is to become of it.

    `continue_final_message`: the prompt ends with the last message, so that the answer goes on with it; `variables` are more for
    the template, such as `enable_thinking`; `template` is the name of one of several.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    write_calls: Write | None = None
    """How the model writes calls, for templates that do not show earlier ones."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt has them as if the marks were not there."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict` without the type's other attributes, which a template has no use for."""

    def __call__(self, *items: Any, **more: Any) -> dict[Any, Any]:
        return dict(*items, **more)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore: they lead to Python's own. `namespace(self=...)` is allowed."""

    def __init__(*args: Any, **more: Any) -> None:
        self, *given = args
        names = dict(*given, **more)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have {name!r}: it begins with an underscore")


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """Those of one checkpoint, by name. `tokens` are its special tokens by transformers' names, `bos_token` and others."""

    templates: Mapping[str, Template]
    sources: Mapping[str, str] = field(repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Mapping[str, str], tokens: Mapping[str, str]) -> ChatTemplates:
        """Raises TemplateError that names the template where one is none."""
        made = {}
        for name, source in sources.items():
            try:
                made[name] = chat_template(source)
            except (TemplateError, RecursionError) as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise TemplateError(reason if len(sources) == 1 else f"{name}: {reason}") from None
        return cls(made, sources, tokens)

    def chosen(self, chat: Chat) -> str:
        """The name of the template that a chat is for; raises KeyError with those there are."""
        name = chat.template or (TOOL_USE if chat.tools is not None and TOOL_USE in self.templates else DEFAULT)
        if name not in self.templates:
            raise KeyError(name, tuple(self.templates))
        return name

    def rendered(self, chat: Chat) -> str:
        """The prompt; raises TemplateError where the template refuses the chat, KeyError where it names no template of these."""
        name = self.chosen(chat)
        messages: Sequence[Mapping[str, Any]] = [_with_reasoning(message) for message in chat.messages]
        tools = chat.tools
        if tools or any(message.get("tool_calls") for message in messages):
            manners = self.manners(name)
            messages, tools = manners.fitted(messages, chat.write_calls), None if tools is None else manners.fitted_tools(tools)
        chat = replace(chat, messages=messages, tools=tools)
        if chat.continue_final_message:
            return _continued(self.templates[name], self.sources[name], chat, self.tokens)
        return _render(self.templates[name], chat.messages, chat, self.tokens)

    def manners(self, name: str) -> CallManners:
        """What a template takes in messages of calls."""
        return _manners(self.sources[name], tuple(sorted(self.tokens.items())))

    def reads(self, variable: str) -> bool:
        """Whether a template asks for this variable."""
        return any(variable in _undeclared(text) for text in self.sources.values())


def _environment() -> Environment:
    """Checkpoints bring their templates along: they run in a sandbox."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return environment


@lru_cache(maxsize=64)
def _undeclared(source: str) -> frozenset[str]:
    """The variables that a template asks for."""
    return frozenset(meta.find_undeclared_variables(_environment().parse(source)))


@lru_cache(maxsize=64)
def _manners(source: str, tokens: tuple[tuple[str, str], ...]) -> CallManners:
    template = chat_template(source)
    return manners_of(lambda messages, tools: _render(template, messages, Chat(messages=messages, tools=tools), dict(tokens)))


def chat_template(source: str) -> Template:
    """Raises TemplateError where it is none."""
    return _environment().from_string(source)


def _render(template: Template, messages: Sequence[Mapping[str, Any]], chat: Chat, tokens: Mapping[str, str]) -> str:
    """Tools and documents are None where a chat has none: templates ask whether they are, and an undefined name is not."""
    return template.render(
        {**tokens, **chat.variables},
        messages=messages,
        tools=chat.tools,
        documents=chat.documents,
        add_generation_prompt=chat.add_generation_prompt,
    )


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without nulls, its reasoning under the names that templates read."""
    plain = {name: value for name, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING_FIELDS if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _continued(template: Template, source: str, chat: Chat, tokens: Mapping[str, str]) -> str:
    """The prompt up to the end of the last message, found by a mark that is set there; raises TemplateError.

    A template may cut the spaces around a message: then the mark's own space is gone, and those of the message go with it.
    """
    *before, last = chat.messages
    text = last.get("content")
    if not isinstance(text, str) or "content" not in source:
        raise TemplateError("the final message has no text that could be continued")
    mark = _MARK
    while any(mark in str(message.get("content")) for message in chat.messages):
        mark += "-"
    whole = _render(template, [*before, {**last, "content": f"{text}{mark} "}], chat, tokens)
    at = whole.rfind(mark)
    if at < 0 or text.strip() not in whole:
        raise TemplateError("the template changes the final message, so that it cannot be continued")
    return whole[:at] if whole.startswith(f"{mark} ", at) else whole[:at].rstrip()


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


_PROBES: tuple[tuple[Mapping[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}),
    ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}),
)


def fault_of(templates: ChatTemplates) -> str | None:
    """Why no plain conversation can be rendered by one of them, in a line; None where one can by each."""
    for name in templates.templates:
        faults = []
        for probe in _PROBES:
            try:
                templates.rendered(Chat(messages=probe, template=name))
                break
            except Exception as error:  # a template is a program: it may fail in any way
                faults.append(str(error).partition("\n")[0] or type(error).__name__)
        else:
            return faults[0] if len(templates.templates) == 1 else f"{name}: {faults[0]}"
    return None
