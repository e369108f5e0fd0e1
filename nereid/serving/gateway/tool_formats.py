"""The forms in which chat templates have a model write its calls of tools: a registry, and which one a template is for.

Forms are those of the families' own templates: Hermes and Qwen 2.5 (NousResearch, "Hermes Function Calling Standard"), Llama 3.1
(Meta, "JSON based tool calling"), Mistral (mistral-common's tokenizers v3 and v11), Granite 3 (IBM), Qwen 3 Coder, Seed-OSS
(ByteDance), gpt-oss (OpenAI, "Harmony response format") and DeepSeek (V3 and R1, whose arguments stand in a fence, and V3.1,
where they do not).
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

_ALPHANUMERIC = string.ascii_letters + string.digits


class Shape(Enum):
    """How a call is written."""

    OBJECT = "an object with name and arguments"
    LIST = "a list of such objects"
    NAMED = "a name, a mark, and the arguments as JSON"
    TAGS = "a tag for the function and one for each parameter"
    SECTION = "marks around each call, within marks around all of them"
    CHANNELS = "a message to the function, in a channel"


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One family's form.

    `begin` stands before each call, or before a list of them, and `end` behind it; `others` are what models write for `begin`.
    `bare`: a line of an answer may also begin with a call at once, without `begin`; only functions that there are count then.
    `arguments` is the member of an object that has them, `middle` what stands between a name and its arguments, `between` what
    stands between calls. `opening` is a mark of each call's own behind `begin`, which a model may leave out, and `closing` is
    behind each call; `fenced`: the name comes after `middle`, and then the arguments in a fence.
    """

    name: str
    shape: Shape
    begin: str
    end: str = ""
    others: tuple[str, ...] = ()
    bare: bool = False
    arguments: str = "arguments"
    middle: str = ""
    between: str = ""
    opening: str = ""
    closing: str = ""
    fenced: bool = False
    new_id: Callable[[], str] = _long_id

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any] | str]]) -> str | None:
        """Calls as a model writes them, names and arguments, where they are objects; None in other shapes."""
        objects = [json.dumps({"name": name, self.arguments: arguments}, ensure_ascii=False) for name, arguments in calls]
        match self.shape:
            case Shape.OBJECT if self.end:
                return self.between.join(f"{self.begin}\n{item}\n{self.end}" for item in objects)
            case Shape.OBJECT:
                return self.between.join(objects)
            case Shape.LIST:
                return f"{self.begin}[{self.between.join(objects)}]"
            case _:
                return None

    @property
    def begins(self) -> tuple[str, ...]:
        """Texts by which a call is found."""
        return tuple(mark for mark in (self.begin, *self.others, self.opening) if mark)

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that a tokenizer may have as tokens, without which no call is found."""
        return tuple(mark for mark in (*self.begins, self.end, self.middle, self.closing) if mark)


HERMES = ToolFormat(name="hermes", shape=Shape.OBJECT, begin="<tool_call>", end="</tool_call>", between="\n")
LLAMA3_JSON = ToolFormat(
    name="llama3_json", shape=Shape.OBJECT, begin="<|python_tag|>", bare=True, arguments="parameters", between="; "
)
MISTRAL = ToolFormat(name="mistral", shape=Shape.LIST, begin="[TOOL_CALLS]", between=", ", new_id=_short_id)
MISTRAL_ARGS = ToolFormat(name="mistral_args", shape=Shape.NAMED, begin="[TOOL_CALLS]", middle="[ARGS]", new_id=_short_id)
GRANITE = ToolFormat(name="granite", shape=Shape.LIST, begin="<|tool_call|>", others=("<tool_call>",), between=", ")
QWEN3_CODER = ToolFormat(
    name="qwen3_coder", shape=Shape.TAGS, begin="<tool_call>", end="</tool_call>", between="\n", opening="<function="
)
SEED_OSS = replace(QWEN3_CODER, name="seed_oss", begin="<seed:tool_call>", end="</seed:tool_call>")
HARMONY = ToolFormat(name="harmony", shape=Shape.CHANNELS, begin="<|channel|>", middle="<|message|>", end="<|call|>")
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    shape=Shape.SECTION,
    begin="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
    opening="<｜tool▁call▁begin｜>",
    closing="<｜tool▁call▁end｜>",
    middle="<｜tool▁sep｜>",
)
DEEPSEEK_V3 = replace(DEEPSEEK_V31, name="deepseek_v3", fenced=True, between="\n")

_ALL = (HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS, GRANITE, QWEN3_CODER, SEED_OSS, HARMONY, DEEPSEEK_V3, DEEPSEEK_V31)
TOOL_FORMATS = {item.name: item for item in _ALL}


def shows_channels(template: str) -> bool:
    """Whether a chat template has its model write in channels, thoughts in one of their own."""
    return HARMONY.begin in template and HARMONY.middle in template


def format_of(template: str) -> ToolFormat | None:
    """The form that a chat template shows its model; None where it shows none of these."""
    if shows_channels(template):
        return HARMONY
    if DEEPSEEK_V3.middle in template:
        return DEEPSEEK_V3 if "```json" in template else DEEPSEEK_V31
    if MISTRAL.begin in template:
        return MISTRAL_ARGS if MISTRAL_ARGS.middle in template else MISTRAL
    if QWEN3_CODER.opening in template and "<parameter=" in template:
        return next((form for form in (SEED_OSS, QWEN3_CODER) if form.begin in template), None)
    if GRANITE.begin in template:
        return GRANITE
    if HERMES.begin in template:
        return HERMES
    if LLAMA3_JSON.begin in template or ("ipython" in template and '"parameters": ' in template):
        return LLAMA3_JSON
    return None
