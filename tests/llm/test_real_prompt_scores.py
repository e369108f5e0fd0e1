"""Log probabilities of prompts from real engines: those of transformers in float32, within rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_service import Collected, text

from nereid.flow.metrics import Recorder
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmLimits
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
    export_llm(checkpoint, folder / "out", "fp32", engine=LlmEngine(request.param))
    limits = LlmLimits(engine=request.param, kv_tokens=2048, max_rows=4, threads=1, prefill_chunk=24, idle_prefill_chunk=72)
    model = LlmModel.read("llm", folder / "out" / "llm" / "1", limits, None)
    service = LlmService(model, LlmObserver(Recorder(lambda *told: None), Peak(1e9, 1e9)))
    yield service, checkpoint
    service.stop()


def ask(service: LlmService, ids: list[int], **parameters: Any) -> Collected:
    caller = Collected()
    service.handle(
        {
            "input_ids": np.array(ids, np.int32),
            "sampling_parameters": text(json.dumps({"ignore_eos": True, "temperature": 0, **parameters})),
            "return_token_ids": np.array([True]),
        },
        caller,
    )
    return caller


def test_scores_are_those_of_transformers(served: Served) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    service, checkpoint = served
    ids = [int(token) for token in np.random.default_rng(3).integers(3, 250, 200)]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    wanted = torch.log_softmax(logits.double(), -1).numpy()
    alone = ask(service, ids, max_tokens=0, prompt_logprobs=3).wait()
    crowd = [ask(service, ids[place:], max_tokens=30) for place in (5, 9)]
    beside = ask(service, ids, max_tokens=5, prompt_logprobs=3).wait()
    assert all(other.wait().error is None for other in (*crowd, alone, beside))
    found = json.loads(alone.answers[0]["prompt_logprobs"][0])
    assert found == json.loads(beside.answers[0]["prompt_logprobs"][0])
    assert [item["token_id"] for item in found] == ids
    own = wanted[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose([item["logprob"] for item in found[1:]], own, atol=2e-5)
    np.testing.assert_allclose(
        [[top["logprob"] for top in item["top"]] for item in found[1:]], -np.sort(-wanted[:-1], axis=1)[:, :3], atol=2e-5
    )
    ranks = (wanted[:-1] >= own[:, None]).sum(axis=1)
    assert np.mean(ranks == [item["rank"] for item in found[1:]]) > 0.98  # two tokens may be equally likely to rounding


def test_tokens_are_the_same_whether_the_prompt_is_scored_or_not(served: Served) -> None:
    service, _ = served
    ids = [int(token) for token in np.random.default_rng(4).integers(3, 250, 130)]
    plain, scored = ask(service, ids, max_tokens=40).wait(), ask(service, ids, max_tokens=40, prompt_logprobs=0).wait()
    assert plain.answers[0]["output_ids"].tolist() == scored.answers[0]["output_ids"].tolist()
