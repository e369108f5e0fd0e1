"""The forms in which chat templates have a model write its calls of tools: a registry, and which one a template is for.

Forms are those of the families' own templates: Hermes and Qwen 2.5 (NousResearch, "Hermes Function Calling Standard"), Llama 3.1
(Meta, "JSON based tool calling"), Mistral (mistral-common's tokenizers v3 and v11), Granite 3 (IBM), Qwen 3 Coder, Seed-OSS
(ByteDance), gpt-oss (OpenAI, "Harmony response format"), DeepSeek (V3 and R1, whose arguments stand in a fence, V3.1, where they
do not, V3.2 and V4, "DSML"), Kimi K2 (Moonshot AI, "Tool calling guidance"), Nemotron (NVIDIA), GLM 4.5 (Z.ai), MiniMax M2,
Command R7B and A (Cohere), Phi 4 mini (Microsoft), LFM2 (Liquid AI), Olmo 3 (Ai2), Llama 3.2 and 4 (Meta, "zero-shot function
calling"), Gemma 4 and FunctionGemma (Google), Hunyuan A13B (Tencent), Jamba (AI21), LongCat Flash (Meituan) and InternLM 2.5.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from nereid.serving.gateway.tags import EQUALS, PAIRS, TIGHT_PAIRS, Tags, named_tags

_ALPHANUMERIC = string.ascii_letters + string.digits


class Shape(Enum):
    """How a call is written."""

    OBJECT = "an object with name and arguments"
    LIST = "a list of such objects"
    NAMED = "a name, a mark, and the arguments as JSON"
    TAGS = "a tag for the function and one for each parameter"
    SECTION = "marks around each call, within marks around all of them"
    CHANNELS = "a message to the function, in a channel"
    PYTHON = "a call of Python's"
    BRACES = "a name, and arguments in braces whose names have no quotes"


def _long_id(name: str, place: int) -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id(name: str, place: int) -> str:
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


def _numbered_id(name: str, place: int) -> str:
    return f"functions.{name}:{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """What a template takes as a call's id: `allowed`, and for any other one what `instead` makes of it, the function and the
    call's place in the conversation.
    """

    allowed: re.Pattern[str]
    instead: Callable[[str, str, int], str]


_NINE = Ids(allowed=re.compile("[a-zA-Z0-9]{9}"), instead=lambda old, name, place: hashlib.sha256(old.encode()).hexdigest()[:9])
"""Mistral's templates refuse any other."""
_NUMBERED = Ids(allowed=re.compile(r"functions\.[\w.-]+:\d+"), instead=lambda old, name, place: _numbered_id(name, place))
"""Kimi's show the id for the function's name: the model knows no other calls than such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One family's form.

    `begin` stands before each call, or before a list of them, and `end` behind it; `others` are what models write for `begin`.
    `bare`: a line of an answer may also begin with a call at once, without `begin`; only functions that there are count then.
    `arguments` is the member of an object that has them, `middle` what stands between a name and its arguments, `between` what
    stands between calls. `opening` is a mark of each call's own behind `begin`, which a model may leave out, and `closing` is
    behind each call; `fenced`: the name comes after `middle`, and then the arguments in a fence. `listed` stands around the calls
    of a list, `pad` around a call within its marks. `numbered`: a name stands between `functions.` and a number, all three an id.
    `tags`: those of a function and its parameters; `section`: all calls stand between one `begin` and one `end`. `quotes`: marks
    around texts, where they are not JSON's. `ids`: those of earlier calls, where a template does not take all.
    """

    name: str
    shape: Shape
    begin: str
    end: str = ""
    others: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    bare: bool = False
    function: str = "name"
    arguments: str = "arguments"
    middle: str = ""
    between: str = ""
    opening: str = ""
    closing: str = ""
    fenced: bool = False
    listed: tuple[str, str] = ("[", "]")
    pad: str = ""
    numbered: bool = False
    tags: Tags | None = None
    section: bool = False
    quotes: str = ""
    new_id: Callable[[str, int], str] = _long_id
    ids: Ids | None = None

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any] | str]]) -> str | None:
        """Calls as a model writes them, names and arguments, where they are objects or numbered; None in other shapes."""
        texts = [arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False) for _, arguments in calls]
        objects = [json.dumps({self.function: name, self.arguments: given}, ensure_ascii=False) for name, given in calls]
        match self.shape:
            case Shape.OBJECT if self.end:
                return self.between.join(f"{self.begin}{self.pad}{item}{self.pad}{self.end}" for item in objects)
            case Shape.OBJECT:
                return self.between.join(objects)
            case Shape.LIST:
                return f"{self.begin}{self.listed[0]}{self.between.join(objects)}{self.listed[1]}{self.end}"
            case Shape.SECTION if self.numbered:
                names = [_numbered_id(name, place) for place, (name, _) in enumerate(calls)]
                parts = [f"{self.opening}{n}{self.middle}{text}{self.closing}" for n, text in zip(names, texts, strict=True)]
                return f"{self.begin}{''.join(parts)}{self.end}"
            case _:
                return None

    @property
    def begins(self) -> tuple[str, ...]:
        """Texts by which a call is found."""
        return tuple(mark for mark in (self.begin, *self.others, self.opening) if mark)

    @property
    def ends(self) -> tuple[str, ...]:
        """Texts that may stand behind a call, or behind all."""
        return tuple(mark for mark in (self.end, *self.other_ends) if mark)

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that a tokenizer may have as tokens, without which no call is found."""
        return tuple(mark for mark in (*self.begins, *self.ends, self.middle, self.closing, self.quotes) if mark)


HERMES = ToolFormat(name="hermes", shape=Shape.OBJECT, begin="<tool_call>", end="</tool_call>", between="\n", pad="\n")
LONGCAT = replace(HERMES, name="longcat", begin="<longcat_tool_call>", end="</longcat_tool_call>")
INTERNLM = ToolFormat(
    name="internlm",
    shape=Shape.OBJECT,
    begin="<|action_start|><|plugin|>",
    end="<|action_end|>",
    arguments="parameters",
    between="\n",
    pad="\n",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json", shape=Shape.OBJECT, begin="<|python_tag|>", bare=True, arguments="parameters", between="; "
)
MISTRAL = ToolFormat(name="mistral", shape=Shape.LIST, begin="[TOOL_CALLS]", between=", ", new_id=_short_id, ids=_NINE)
MISTRAL_ARGS = ToolFormat(
    name="mistral_args", shape=Shape.NAMED, begin="[TOOL_CALLS]", middle="[ARGS]", new_id=_short_id, ids=_NINE
)
GRANITE = ToolFormat(name="granite", shape=Shape.LIST, begin="<|tool_call|>", others=("<tool_call>",), between=", ")
PHI4_MINI = replace(GRANITE, name="phi4_mini", end="<|/tool_call|>", others=("functools",), other_ends=("<|/tool_call|>",))
PHI4_MINI_JSON = replace(PHI4_MINI, name="phi4_mini_json", begin="functools", end="", others=("<|tool_call|>",))
NEMOTRON = ToolFormat(name="nemotron", shape=Shape.LIST, begin="<TOOLCALL>", end="</TOOLCALL>", between=", ")
HUNYUAN = replace(NEMOTRON, name="hunyuan", begin="<tool_calls>", end="</tool_calls>")
COHERE = ToolFormat(
    name="cohere",
    shape=Shape.LIST,
    begin="<|START_ACTION|>",
    end="<|END_ACTION|>",
    function="tool_name",
    arguments="parameters",
    between=",\n    ",
    listed=("[\n    ", "\n]"),
)
QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    shape=Shape.TAGS,
    begin="<tool_call>",
    end="</tool_call>",
    between="\n",
    opening=EQUALS.function,
    tags=EQUALS,
)
SEED_OSS = replace(QWEN3_CODER, name="seed_oss", begin="<seed:tool_call>", end="</seed:tool_call>")
GLM45 = ToolFormat(name="glm45", shape=Shape.TAGS, begin="<tool_call>", end="</tool_call>", between="\n", tags=PAIRS)
GLM47 = replace(GLM45, name="glm47", between="", tags=TIGHT_PAIRS)
_PLAIN, _DSML = named_tags("", says_text=False), named_tags("｜DSML｜", says_text=True)
MINIMAX_M2 = ToolFormat(
    name="minimax_m2",
    shape=Shape.TAGS,
    begin="<minimax:tool_call>",
    end="</minimax:tool_call>",
    between="\n",
    opening=_PLAIN.function,
    tags=_PLAIN,
    section=True,
)
DEEPSEEK_V32 = replace(
    MINIMAX_M2,
    name="deepseek_v32",
    begin="<｜DSML｜function_calls>",
    end="</｜DSML｜function_calls>",
    others=("<｜DSML｜tool_calls>",),
    other_ends=("</｜DSML｜tool_calls>",),
    opening=_DSML.function,
    tags=_DSML,
)
DEEPSEEK_V4 = replace(
    DEEPSEEK_V32,
    name="deepseek_v4",
    begin="<｜DSML｜tool_calls>",
    end="</｜DSML｜tool_calls>",
    others=("<｜DSML｜function_calls>",),
    other_ends=("</｜DSML｜function_calls>",),
)
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
KIMI_K2 = ToolFormat(
    name="kimi_k2",
    shape=Shape.SECTION,
    begin="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
    others=("<|tool_call_section_begin|>",),
    other_ends=("<|tool_call_section_end|>",),
    opening="<|tool_call_begin|>",
    closing="<|tool_call_end|>",
    middle="<|tool_call_argument_begin|>",
    numbered=True,
    new_id=_numbered_id,
    ids=_NUMBERED,
)

_ALL = (
    HERMES,
    LONGCAT,
    INTERNLM,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    GRANITE,
    PHI4_MINI,
    PHI4_MINI_JSON,
    NEMOTRON,
    HUNYUAN,
    COHERE,
    QWEN3_CODER,
    SEED_OSS,
    GLM45,
    GLM47,
    MINIMAX_M2,
    HARMONY,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    DEEPSEEK_V4,
    KIMI_K2,
)
TOOL_FORMATS = {item.name: item for item in _ALL}


def shows_channels(template: str) -> bool:
    """Whether a chat template has its model write in channels, thoughts in one of their own."""
    return HARMONY.begin in template and HARMONY.middle in template


def format_of(template: str) -> ToolFormat | None:
    """The form that a chat template shows its model; None where it shows none of these."""
    if shows_channels(template):
        return HARMONY
    for form, shown in _SHOWN:
        if all(mark in template for mark in shown):
            return form
    return None


_SHOWN: tuple[tuple[ToolFormat, tuple[str, ...]], ...] = (
    (DEEPSEEK_V32, ("｜DSML｜", "function_calls>")),
    (DEEPSEEK_V4, ("｜DSML｜",)),
    (DEEPSEEK_V3, (DEEPSEEK_V3.middle, "```json")),
    (DEEPSEEK_V31, (DEEPSEEK_V31.middle,)),
    (KIMI_K2, (KIMI_K2.begin,)),
    (KIMI_K2, ("tool_declare", "<|im_middle|>")),
    (MISTRAL_ARGS, (MISTRAL_ARGS.begin, MISTRAL_ARGS.middle)),
    (MISTRAL, (MISTRAL.begin,)),
    (COHERE, (COHERE.begin,)),
    (MINIMAX_M2, (MINIMAX_M2.begin,)),
    (NEMOTRON, (NEMOTRON.begin,)),
    (LONGCAT, (LONGCAT.begin,)),
    (INTERNLM, (INTERNLM.begin,)),
    (HUNYUAN, (HUNYUAN.begin,)),
    (SEED_OSS, (QWEN3_CODER.opening, "<parameter=", SEED_OSS.begin)),
    (QWEN3_CODER, (QWEN3_CODER.opening, "<parameter=", QWEN3_CODER.begin)),
    (GLM45, (GLM45.begin, "<arg_key>", "\n<arg_key>")),
    (GLM47, (GLM47.begin, "<arg_key>")),
    (PHI4_MINI_JSON, ("functools[",)),
    (PHI4_MINI, (PHI4_MINI.end,)),
    (GRANITE, (GRANITE.begin,)),
    (HERMES, (HERMES.begin,)),
    (LLAMA3_JSON, (LLAMA3_JSON.begin,)),
    (LLAMA3_JSON, ("ipython", '"parameters": ')),
)
"""By what a template shows, the more telling first."""
