"""Whatever is wrong with a checkpoint's small files is told in one sentence that names the file, before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import ZOO, Silent, export_llm

pytest.importorskip("torch")
from nereid_export.diffusion import export_diffusion
from nereid_export.errors import ExportError
from nereid_export.options import ExportOptions

pytestmark = pytest.mark.torch

SECTIONS = ZOO / "sections" / "checkpoint"
DIFFUSION_FILES = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
]
NOT_JSON = [b"", b"{", b"[]", b"null", b'{"a": \xff}', b"[" * 100_000]


class ReachedError(Exception):
    """The export has begun to build."""


class Early(Silent):
    """Stops an export once it has seen enough to begin."""

    def step(self, text: str) -> None:
        if "exporting" in text or "building" in text:
            raise ReachedError


def assert_one_sentence(error: BaseException, file: Path) -> None:
    said = str(error)
    assert str(file) in said or str(file.parent) in said
    assert "\n" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", NOT_JSON, ids=[repr(content[:8]) for content in NOT_JSON])
@pytest.mark.parametrize("name", DIFFUSION_FILES)
def test_a_broken_file_of_a_diffusion_checkpoint_is_named(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, content: bytes
) -> None:
    folder = Path(shutil.copytree(checkpoints["sd"], tmp_path / "checkpoint"))
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError) as caught:
        export_diffusion(ExportOptions(checkpoint=folder, out=tmp_path / "out"), Early())
    assert_one_sentence(caught.value, folder / name)


@pytest.mark.parametrize("value", [None, [], {}, "x", -1])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("unet/config.json", "cross_attention_dim"),
        ("unet/config.json", "sample_size"),
        ("unet/config.json", "in_channels"),
        ("vae/config.json", "block_out_channels"),
        ("vae/config.json", "latent_channels"),
        ("text_encoder/config.json", "hidden_size"),
        ("text_encoder/config.json", "max_position_embeddings"),
        ("scheduler/scheduler_config.json", "num_train_timesteps"),
        ("scheduler/scheduler_config.json", "_class_name"),
        ("model_index.json", "_class_name"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_sentence_or_harmless(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(checkpoints["sd"], tmp_path / "checkpoint"))
    file = folder / name
    settings = json.loads(file.read_text())
    if value is None:
        settings.pop(key, None)
    else:
        settings[key] = value
    file.write_text(json.dumps(settings))
    with pytest.raises((ExportError, ReachedError)) as caught:
        export_diffusion(ExportOptions(checkpoint=folder, out=tmp_path / "out"), Early())
    if caught.type is ExportError:
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", NOT_JSON, ids=[repr(content[:8]) for content in NOT_JSON])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_broken_file_of_a_language_model_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = Path(shutil.copytree(SECTIONS, tmp_path / "checkpoint"))
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError) as caught:
        export_llm(folder, tmp_path / "out")
    assert_one_sentence(caught.value, folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"{% if %}"),
        ("chat_template.jinja", b"{{ raise_exception('never') }}"),
        ("chat_template.jinja", b"{{ 1 + messages[0].content }}"),
        ("tokenizer.json", b'{"model": {"type": "none"}}'),
        ("config.json", b'{"architectures": "LlamaForCausalLM"}'),
        ("config.json", b'{"architectures": ["LlamaForCausalLM"]}'),
        ("config.json", b'{"architectures": ["LlamaForCausalLM"], "vocab_size": "2048"}'),
        ("generation_config.json", b'{"eos_token_id": ["a"]}'),
        ("generation_config.json", b'{"eos_token_id": 1.5}'),
    ],
)
def test_a_setting_of_a_language_model_that_makes_no_sense_is_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    folder = Path(shutil.copytree(SECTIONS, tmp_path / "checkpoint"))
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError) as caught:
        export_llm(folder, tmp_path / "out")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
