"""Facts that export left: whatever is wrong with them is one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nereid.diffusion.settings import PIPELINE_FILE, Pipeline
from nereid.flow.exported import exported_facts
from nereid.layout.settings import LAYOUT_FILE, LayoutFacts
from nereid.llm.settings import LLM_FILE, LlmFacts
from nereid.page.settings import PAGE_FILE, PageFacts

READERS: list[tuple[Callable[[Path], Any], str]] = [
    (Pipeline.read, PIPELINE_FILE),
    (LayoutFacts.read, LAYOUT_FILE),
    (LlmFacts.read, LLM_FILE),
    (PageFacts.read, PAGE_FILE),
]


@pytest.mark.parametrize(("read", "name"), READERS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "is not what export writes: "),
        ("[]", "is not what export writes: it is no JSON object"),
        ("{}", "is not what export writes: it lacks "),
        ("\udcff", "is not what export writes: 'utf-8' codec can't decode"),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_it(
    read: Callable[[Path], Any], name: str, text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=name) as raised:
        read(tmp_path)
    sentence = str(raised.value)
    assert sentence.startswith(f"{tmp_path / name} {said}")
    assert sentence.endswith("; export the model again")
    assert "\n" not in sentence


def test_what_is_missing_or_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / LLM_FILE).write_text(json.dumps({"architecture": "llama", "precision": 3}))
    with pytest.raises(ValueError, match="it lacks context_length, vocabulary, "):
        LlmFacts.read(tmp_path)
    (tmp_path / LAYOUT_FILE).write_text('{"scheduler": 3}')
    with pytest.raises(ValueError, match=r"layout\.json is not what export writes: "):
        LayoutFacts.read(tmp_path)
    (tmp_path / "own.json").write_text('{"a": 1}')
    with exported_facts(tmp_path / "own.json") as raw:
        assert raw == {"a": 1}
