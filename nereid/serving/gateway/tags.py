"""Tags in which models write a call: the function's and its parameters'; knows no call and no schema."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from nereid.serving.gateway.call_objects import NAME

LONGEST_TAG = 300
"""Of letters, what is longer is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """`function` stands before a function's name, `named` behind it, `closing` at its end; `parameter` before a parameter's name,
    `keyed` behind it, `opened` between that and the value (by whether the tag says that it is a text), `ended` behind the value.

    `padded`: a value stands in lines of its own. `line` stands behind each tag. `head` and `key` read the two tags that begin
    something, also where models write them a little otherwise; `before` is what may stand before the first of them.
    `named` may have a place for a call's number, `%d`, `opened` one for a value's JSON type, `ended` one for the parameter's
    name, `%s`. `entities`: parameters' names are attributes of XML. `sections`: marks that a text may stand between. `nested`: a
    mark before each tag; values that are objects or lists are tags themselves.
    """

    function: str
    named: str
    closing: str
    parameter: str
    keyed: str
    opened: tuple[str, str]
    ended: str
    padded: bool = False
    line: str = "\n"
    head: re.Pattern[str] = field(compare=False)
    key: re.Pattern[str] = field(compare=False)
    before: tuple[str, ...] = ()
    entities: bool = False
    sections: tuple[str, str] = ("", "")
    nested: str = ""
    others: tuple[Tags, ...] = ()
    """What models write for them."""

    def ends(self, key: str) -> str:
        """What stands behind the value of a parameter."""
        return self.ended.replace("%s", key)

    def written_name(self, key: str) -> str:
        return key.replace("&", "&amp;").replace('"', "&quot;") if self.entities else key

    def read_name(self, written: str) -> str:
        written = written.strip()
        return written.replace("&quot;", '"').replace("&amp;", "&") if self.entities else written

    def may_begin(self, lead: str) -> bool:
        """Whether a function's tag may begin so."""
        mark = self.function
        if len(lead) <= len(mark):
            return mark.startswith(lead)
        if not lead.startswith(mark) or len(lead) >= LONGEST_TAG:
            return False
        name = NAME.match(written := lead[len(mark) :].lstrip())
        behind = written[name.end() :] if name else written
        if not name or not behind.strip() or (mark.endswith(('"', "=")) and behind[0] in "\"' "):
            return name is not None or not written
        return any(goes_on.startswith(behind.strip()) for goes_on in (self.named, self.parameter, self.closing) if goes_on)


EQUALS = Tags(
    function="<function=",
    named=">",
    closing="</function>",
    parameter="<parameter=",
    keyed=">",
    opened=("", ""),
    ended="</parameter>",
    padded=True,
    head=re.compile(r"<function=([^<>\n]*)[>\n]"),
    key=re.compile(r"<parameter=(?P<key>[^<>\n]*)[>\n]"),
)
"""`<function=name><parameter=key>`: Qwen 3 Coder's, which others have taken over."""


def named_tags(space: str, *, says_text: bool) -> Tags:
    """`<invoke name="name"><parameter name="key">`, `space` before the words. `says_text`: a parameter's tag has `string`."""
    opening, ending = f"<{space}", f"</{space}"
    begin = re.escape(opening)
    return Tags(
        function=f'{opening}invoke name="',
        named='">',
        closing=f"{ending}invoke>",
        parameter=f'{opening}parameter name="',
        keyed='"',
        opened=(' string="true">', ' string="false">') if says_text else (">", ">"),
        ended=f"{ending}parameter>",
        head=re.compile(rf'{begin}invoke name="([^"\n]*)"[^>\n]*>'),
        key=re.compile(rf'{begin}parameter name="(?P<key>[^"\n]*)"(?:[^>\n]*?string="(?P<text>true|false)")?[^>\n]*>'),
    )


STEP3 = replace(named_tags("steptml:", says_text=False), before=("<｜tool_call_begin｜>", "function", "<｜tool_sep｜>"))
"""`<steptml:invoke name="name">`, behind marks of a call's own."""
PARAMS = Tags(
    function='<function name="',
    named='">',
    closing="</function>",
    parameter='<param name="',
    keyed='"',
    opened=(">", ">"),
    ended="</param>",
    line="",
    sections=("<![CDATA[", "]]>"),
    head=re.compile(r'<function\s*name=["\']([^"\'\n]*)["\'][^>\n]*>'),
    key=re.compile(r'<param\s*name=["\'](?P<key>[^"\'\n]*)["\'][^>\n]*>'),
)
"""`<function name="name"><param name="key">`: MiniCPM 5's."""


def pairs(before: str = "", behind: str = "", *, section: bool = False, separated: bool = False, tight: bool = False) -> Tags:
    """`name`, and in lines of their own `<arg_key>key</arg_key>` and `<arg_value>value</arg_value>`: GLM 4.5's.

    `before` and `behind` stand in each tag. `section`: a call stands in a tag of its own, `tool_call`; `separated`: its name ends
    with the mark `tool_sep`. `tight`: without the lines.
    """

    def tag(word: str, lead: str = "<") -> str:
        return f"{lead}{before}{word}{behind}>"

    begin, separator = tag("tool_call") if section else "", tag("tool_sep") if separated else ""
    key, value, closing = tag("arg_key"), tag("arg_value"), tag("tool_call", "</") if section else ""
    goes_on = "|".join(re.escape(mark) for mark in (key, closing) if mark) if section else "<"
    named = rf"\s*(?:{re.escape(separator)}|(?={goes_on}))" if separated else rf"\s*(?={goes_on})"
    ended, opened = re.escape(tag("arg_key", "</")), re.escape(value)
    said = rf"(?:{re.escape(tag('arg_type'))}[^<]*{re.escape(tag('arg_type', '</'))}\s*)?"
    return Tags(
        function=begin,
        named=separator,
        closing=closing,
        parameter=key,
        keyed=tag("arg_key", "</"),
        opened=(value, value) if tight else (f"\n{value}", f"\n{value}"),
        ended=tag("arg_value", "</"),
        line="" if tight else "\n",
        head=re.compile(rf"{re.escape(begin)}\s*([^<\s]+){named}"),
        key=re.compile(rf"{re.escape(key)}(?P<key>[^<]*)(?:{ended})?\s*{said}{opened}"),
    )


PAIRS, TIGHT_PAIRS = pairs(), pairs(tight=True)
"""GLM 4.5's, and 4.7's, without the lines."""
SOLAR = replace(
    PAIRS,
    parameter="<|tool_arg:start|>",
    keyed="<|tool_arg:value|>",
    opened=("", ""),
    ended="<|tool_arg:end|>",
    key=re.compile(r"<\|tool_arg:start\|>(?P<key>[^<]*)<\|tool_arg:value\|>"),
)
XTML = Tags(
    function='<|open|>call tool="',
    named='" index="%d"<|sep|>',
    closing="<|close|>call<|sep|>",
    parameter='<|open|>argument key="',
    keyed='"',
    opened=(' type="string"<|sep|>', ' type="%s"<|sep|>'),
    ended="<|close|>argument<|sep|>",
    line="",
    entities=True,
    head=re.compile(r'<\|open\|>\s*call\s+tool="([^"\n]*)"[^<\n]*<\|sep\|>'),
    key=re.compile(r'<\|open\|>\s*argument\s+key="(?P<key>[^"\n]*)"(?:[^<\n]*?type="(?P<text>\w*)")?[^<\n]*<\|sep\|>'),
)
XTML = replace(
    XTML,
    others=(
        replace(
            XTML,
            parameter="<|open|>json",
            ended="<|close|>json<|sep|>",
            key=re.compile(r"<\|open\|>(?P<key>json)(?P<text>)[^<\n]*<\|sep\|>"),
        ),
    ),
)
"""Kimi K3's; all arguments may also stand in one tag, as JSON."""
_MINIMAX = "]<]minimax[>["
NAMESPACED = Tags(
    function=f'{_MINIMAX}<invoke name="',
    named='">',
    closing=f"{_MINIMAX}</invoke>",
    parameter=f"{_MINIMAX}<",
    keyed=">",
    opened=("", ""),
    ended=f"{_MINIMAX}</%s>",
    line="",
    nested=_MINIMAX,
    head=re.compile(rf'(?:{re.escape(_MINIMAX)})?\s*<invoke name="([^"\n]*)"[^>\n]*>'),
    key=re.compile(rf"{re.escape(_MINIMAX)}\s*<(?P<key>[^<>/\n][^<>\n]*)>"),
)
NAMESPACED = replace(NAMESPACED, others=(replace(NAMESPACED, function='<invoke name="', closing="</invoke>", ended="</%s>"),))
"""MiniMax M3's: parameters' tags have their names; models leave out the mark before some."""
