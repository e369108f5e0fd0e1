"""Which weights files of a folder are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts
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


@pytest.mark.torch
@pytest.mark.parametrize("size", [{}, {"max_shard_size": "200KB"}])
def test_a_folder_with_fp16_weights_alone_loads(checkpoints: dict[str, Path], tmp_path: Path, size: dict[str, str]) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = Path(shutil.copytree(checkpoints["sd"], tmp_path / "checkpoint"))
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    for name, kind in kinds.items():
        for file in (folder / name).glob("*.safetensors*"):
            file.unlink()
        kind.from_pretrained(checkpoints["sd"] / name).save_pretrained(folder / name, variant="fp16", **size)
    checkpoint = Checkpoint.open(folder)
    for component in components_of(checkpoint):
        component.load()
    assert (len(checkpoint.weights("unet")) > 1) == bool(size)


@pytest.mark.torch
def test_a_scheduler_whose_default_request_would_fail_is_refused_at_export(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["sd"], tmp_path / "checkpoint"))
    file = folder / "scheduler" / "scheduler_config.json"
    settings = {"_class_name": "DDIMScheduler", "clip_sample": False, "rescale_betas_zero_snr": True}
    settings["timestep_spacing"] = "trailing"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(ExportError, match="rescale_betas_zero_snr"):
        pipeline_facts(Checkpoint.open(folder), [])
