"""The grammar that a section's writer is bound to: tags that a layout reads, in any order, each closed; text without markup.

What the writer has learned, indented by two spaces, is in it; so is what another model writes in the same tags.
"""

from __future__ import annotations


def _tag(name: str, attributes: str = "") -> str:
    opening = f"<{name}{attributes}>".replace('"', '\\"')
    return f'"{opening}" TEXT "</{name}>"'


SECTION_GRAMMAR = rf"""
start: "<section class=\"" NAME "\">" body "</section>" | "<footer class=\"" NAME "\">" body "</footer>"
body: (NL item){{1,14}} NL
item: text | button | card | quote | figure | question | steps | list | nav | form | image
text: {_tag("h1")} | {_tag("h2")} | {_tag("h3")} | {_tag("p")}
button: "<a class=\"button\" href=\"#\">" LABEL "</a>"
card: "<div class=\"" NAME "\">" (NL inner){{1,6}} NL "</div>"
inner: {_tag("h3")} | {_tag("p")} | {_tag("span")} | list | button | image
list: "<ul>" (NL "<li>" TEXT "</li>"){{1,8}} NL "</ul>"
steps: "<ol>" (NL "<li>" TEXT "</li>"){{1,8}} NL "</ol>"
quote: "<blockquote>" (NL said){{1,3}} NL "</blockquote>"
said: {_tag("p")} | {_tag("cite")}
figure: "<figure>" NL image NL {_tag("figcaption")} NL "</figure>"
image: "<img src=\"" SRC "\" alt=\"" ALT "\">"
question: "<details>" NL {_tag("summary")} (NL answer){{1,3}} NL "</details>"
answer: {_tag("p")}
nav: "<nav>" (NL "<a class=\"link\" href=\"#\">" LABEL "</a>"){{1,8}} NL "</nav>"
form: "<form>" (NL field){{1,8}} NL "</form>"
field: "<label>" LABEL "<input name=\"" NAME "\"></label>" | "<button class=\"button\">" LABEL "</button>"
NL: /\n {{0,8}}/
NAME: /[a-z][a-z0-9-]{{0,19}}/
SRC: /[a-z0-9-]{{1,20}}\.(jpg|png)/
LABEL: /[^<>&"\n\r\t]{{1,60}}/
ALT: /[^<>&"\n\r\t]{{1,80}}/
TEXT: /[^<>&\n\r\t]{{1,400}}/
"""
"""Lark, as `structured_outputs.grammar` takes it."""
