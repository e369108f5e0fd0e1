"""Tags in which models write a call: the function's and its parameters'; knows no call and no schema."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """`function` stands before a function's name, `named` behind it, `closing` at its end; `parameter` before a parameter's name,
    `keyed` behind it, `opened` between that and the value (by whether the tag says that it is a text), `ended` behind the value.

    `padded`: a value stands in lines of its own. `line` stands behind each tag. `head` and `key` read the two tags that begin
    something, also where models write them a little otherwise.
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
    others: tuple[Tags, ...] = ()
    """What models write for them."""


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


PAIRS = Tags(
    function="",
    named="",
    closing="",
    parameter="<arg_key>",
    keyed="</arg_key>",
    opened=("\n<arg_value>", "\n<arg_value>"),
    ended="</arg_value>",
    head=re.compile(r"([^<\s]+)\s*(?=<)"),
    key=re.compile(r"<arg_key>(?P<key>[^<]*)(?:</arg_key>)?\s*<arg_value>"),
)
"""`name`, and in lines of their own `<arg_key>key</arg_key>` and `<arg_value>value</arg_value>`: GLM 4.5's."""
TIGHT_PAIRS = replace(PAIRS, opened=("<arg_value>", "<arg_value>"), line="")
"""GLM 4.7's, without the lines."""
