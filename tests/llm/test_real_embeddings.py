"""Embeddings of real engines: the mean of transformers' last hidden states in float32, and the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_real_prompt_scores import ask
from test_service import Collected, text

from nereid.flow.metrics import Recorder
from nereid.llm.loading import load_model
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_export.llm import LlmEngine

import checkpoints as make
from conftest import export_llm

pytestmark = pytest.mark.torch

Served = tuple[LlmService, Path]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model in float32, read in chunks that end within its prompts."""
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make.make_llm(folder / "llama", "llama", max_position_embeddings=1024)
    manifest = export_llm(checkpoint, folder / "out", "fp32", engine=LlmEngine(request.param), embeddings=True)
    assert manifest["engine"]["states_error"] < 1e-5  # type: ignore[index]
    limits = LlmLimits(engine=request.param, kv_tokens=4096, max_rows=8, threads=1, prefill_chunk=24, idle_prefill_chunk=72)
    model = LlmModel.read("llm", folder / "out" / "llm" / "1", limits, None)
    service = LlmService(model, LlmObserver(Recorder(lambda *told: None), Peak(1e9, 1e9)))
    yield service, checkpoint
    service.stop()


def embed(service: LlmService, ids: list[int]) -> Collected:
    caller = Collected()
    service.handle({"input_ids": np.array(ids, np.int32), "task": text("embed")}, caller)
    return caller


def vector(caller: Collected) -> np.ndarray:
    assert caller.wait().error is None
    (answer,) = caller.answers
    return answer["embedding"]


def test_embeddings_are_the_mean_of_transformers_last_hidden_states(served: Served) -> None:
    import torch
    from transformers import AutoModel

    service, checkpoint = served
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    draw = np.random.default_rng(3)
    for length in (1, 2, 24, 33, 200):
        ids = [int(token) for token in draw.integers(3, 250, length)]
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).last_hidden_state[0].double().mean(0).numpy()
        np.testing.assert_allclose(vector(embed(service, ids)), wanted, atol=2e-6)


def test_an_embedding_is_the_same_alone_and_in_company(served: Served) -> None:
    service, _ = served
    ids = [int(token) for token in np.random.default_rng(5).integers(3, 250, 200)]
    prompts = [ids, ids[3:], ids[:1], ids[:50]]
    alone = [vector(embed(service, prompt)).tobytes() for prompt in prompts]
    plain = ask(service, ids[7:60], max_tokens=40).wait()
    crowd = [ask(service, ids[7:60], max_tokens=40) for _ in range(3)]
    together = [embed(service, prompt) for prompt in prompts]
    assert [vector(caller).tobytes() for caller in together] == alone
    for other in crowd:
        assert other.wait().error is None
        assert other.answers[0]["output_ids"].tolist() == plain.answers[0]["output_ids"].tolist()


def test_an_engine_with_states_that_llm_json_does_not_name_is_not_loaded(served: Served) -> None:
    service, _ = served
    folder, limits = Path(str(service.model.settings["folder"])), service.model.limits
    facts = LlmFacts.read(folder)
    assert facts.embedding_width == 64
    with pytest.raises(ValueError, match=r"last hidden states of 64 values, and llm\.json names 0; export the model again"):
        load_model(folder, replace(facts, embedding_width=0), limits, None)
