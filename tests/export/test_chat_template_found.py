"""Which chat templates of a checkpoint are exported, and which special tokens they are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nereid_export.chat_templates import special_tokens_of, templates_of, write_chat_templates
from nereid_export.errors import ExportError

BOTH = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"chat_template": "plain"}, {"default": "plain"}),
        ({"chat_template": BOTH}, {"tool_use": "tools", "default": "plain"}),
        ({"chat_template": BOTH[:1]}, {"tool_use": "tools"}),
        ({}, {}),
    ],
)
def test_all_templates_of_the_settings_are_taken_by_name(tmp_path: Path, settings: object, found: dict[str, str]) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert templates_of(tmp_path) == found


def test_templates_in_files_of_their_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "older"}))
    (tmp_path / "chat_template.jinja").write_text("newer")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("documents")
    assert templates_of(tmp_path) == {"default": "newer", "rag": "documents"}
    (tmp_path / "out").mkdir()
    write_chat_templates(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "newer"
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "documents"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_templates_name_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": name, "template": "x"}]}))
    with pytest.raises(ExportError, match="name"):
        templates_of(tmp_path)


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}", "{{ 1 + messages[0].content }}"])
def test_a_template_that_cannot_be_rendered_is_refused(tmp_path: Path, template: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ExportError, match=r"chat_template\.jinja: the chat template cannot be rendered \([^\n]+\)"):
        templates_of(tmp_path)


def test_a_template_that_refuses_some_conversations_is_taken(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}")
    assert "default" in templates_of(tmp_path)


def test_special_tokens_are_those_the_checkpoint_names(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<old>", "unk_token": {"content": "<unk>"}}))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert special_tokens_of(tmp_path) == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
