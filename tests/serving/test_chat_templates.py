"""Chat templates: what transformers makes of one, the gateway makes of it, too."""

from __future__ import annotations

from datetime import datetime

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from nereid.serving.gateway.chat_templates import chat_template, rendered

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
    "no tools": "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}DOCUMENTS{% endif %}{{ bos_token }}",
    "marks of training": EACH + "{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}" + END,
    "trimmed blocks": EACH + "\n    {% if loop.first %}\n{{ m.role }}\n    {% endif %}\n" + END + "{{ eos_token }}",
    "namespaces": "{% set ns = namespace(n=0) %}" + EACH + "{% set ns.n = ns.n + 1 %}" + END + "{{ ns.n }}",
    "the assistant's turn": "{% if add_generation_prompt %}assistant:{% endif %}",
    "the date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_does(source: str) -> None:
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert rendered(chat_template(source), MESSAGES, TOKENS) == expected


def test_a_template_knows_the_date() -> None:
    before, shown, after = (
        datetime.now(),
        rendered(chat_template("{{ strftime_now('%Y-%m-%d') }}"), MESSAGES, TOKENS),
        datetime.now(),
    )
    assert shown in {f"{before:%Y-%m-%d}", f"{after:%Y-%m-%d}"}


def test_a_template_refuses_a_conversation_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="no system here"):
        rendered(chat_template("{{ raise_exception('no system here') }}"), MESSAGES, TOKENS)
