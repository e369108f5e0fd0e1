"""Which chat template of a checkpoint is exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nereid_export.llm import chat_template_of


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"chat_template": "plain"}, "plain"),
        ({"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}, "plain"),
        ({"chat_template": [{"name": "tool_use", "template": "tools"}]}, None),
        ({}, None),
    ],
)
def test_of_several_templates_the_default_one_is_taken(tmp_path: Path, settings: object, found: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert chat_template_of(tmp_path) == found


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "older"}))
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert chat_template_of(tmp_path) == "newer"
