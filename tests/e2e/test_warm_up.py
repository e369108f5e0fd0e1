"""Warm-up and the cache of compiled engines with a real Triton: every sample is run, a second start finds them."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import export

pytest.importorskip("torch")
pytest.importorskip("openvino")
from tritonclient import grpc

from nereid.engines.digests import sign
from nereid.serving.errors import ServingError
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid_export.configs import read_config, write_config
from nereid_export.engines import Engine
from nereid_export.engines.plan_options import PlanOptions

pytestmark = [pytest.mark.triton, pytest.mark.torch]

ENGINES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def warmed(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the engines only, and two buckets; compiled once for all shapes, as large engines are."""
    out = tmp_path_factory.mktemp("warmed") / "repository"
    plan = PlanOptions(bucket=((32, 32), (48, 32)), compiled_shapes_mib=0)
    export(checkpoints["sd"], out, engine=Engine.OPENVINO, max_batch_size=2, plan=plan)
    return out


@contextmanager
def started(repository: Path, folder: Path) -> Iterator[ServeOptions]:
    options = replace(ServeOptions.on_free_ports(repository, folder / "triton.log"), cache_dir=folder / "cache")
    with Supervisor(options):
        yield options


def executions(options: ServeOptions) -> dict[str, int]:
    with grpc.InferenceServerClient(options.grpc_url) as client:
        found = {name: client.get_inference_statistics(name).model_stats[0] for name in ENGINES}
    return {name: one.execution_count for name, one in found.items()}


def blobs(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {blob: (blob.stat().st_ino, blob.read_bytes()) for blob in (folder / "cache").rglob("*.blob")}


def test_every_bucket_is_run_at_load_and_a_second_start_finds_the_compiled_engines(warmed: Path, tmp_path: Path) -> None:
    decoders = read_config(warmed / "vae_decoder" / "config.pbtxt").instance_group[0].count
    with started(warmed, tmp_path) as options:
        assert executions(options) == {"text_encoder": 1, "unet": 4, "vae_decoder": 2 * decoders, "vae_encoder": 2}
        with urllib.request.urlopen(options.ready_url) as answer:
            told: dict[str, Any] = json.load(answer)["load_seconds"]
        assert {*ENGINES, "denoise", "tokenizer"} <= told.keys()
        assert all(0 < seconds < 600 for seconds in told.values())
    kept = blobs(tmp_path)
    assert len(kept) == len(ENGINES)
    damaged = min(kept)
    damaged.write_bytes(kept[damaged][1][:100])
    with started(warmed, tmp_path) as options:
        assert executions(options)["unet"] == 4
    after = blobs(tmp_path)
    assert {blob: one for blob, one in after.items() if blob != damaged} == {
        blob: one for blob, one in kept.items() if blob != damaged
    }
    assert len(after[damaged][1]) > 100
    assert f"{damaged.parent} is damaged; the engine is compiled again" in (tmp_path / "triton.log").read_text()


def test_a_warm_up_that_fails_is_one_sentence_that_names_model_and_sample(warmed: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(warmed, repository)
    config = read_config(repository / "unet" / "config.pbtxt")
    config.model_warmup[0].inputs["timestep"].dims[0] = 3
    write_config(config, repository / "unet")
    sign(repository)
    with pytest.raises(ServingError, match=r"failed to load 'unet' .*unet: model_warmup '2 rows of 32x32' failed: "):
        Supervisor(replace(ServeOptions.on_free_ports(repository, tmp_path / "triton.log"))).start()
