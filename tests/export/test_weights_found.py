"""Which weights files of a folder are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nereid_export.checkpoint import Checkpoint
from nereid_export.llm_checkpoint import LlmCheckpoint


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.fp16.safetensors"], "fp16"),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], None),
    ],
)
def test_the_plain_weights_are_preferred_to_the_variant(tmp_path: Path, names: list[str], variant: str | None) -> None:
    (tmp_path / "unet").mkdir()
    for name in names:
        (tmp_path / "unet" / name).touch()
    checkpoint = Checkpoint(tmp_path, "sd", {})
    assert checkpoint.variant("unet") == variant
    assert len(checkpoint.weights("unet")) == (2 if len(names) == 2 and variant else 1)


def test_a_second_copy_of_the_weights_beside_the_shards_is_not_counted(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(b"1234")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert LlmCheckpoint(tmp_path, {}).weight_bytes() == 8
