"""What the benchmark of batches beside interactive load feeds and computes; its figures are never asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import Rules
from nereid_bench.batch_api import BatchApi, Progress
from nereid_bench.batches import BatchesPlan, Turn, batches, interactive_jobs, table, turn_of, verdict
from nereid_bench.cli import app
from nereid_bench.llm_batching import TextOutcome

from gateway_before import gateway, small_repository
from scripted import delta
from small_servers import Tensors, grpc_server
from waiting import until


def test_turns_of_a_round_have_the_same_arrivals_and_lengths_and_prompts_of_their_own() -> None:
    without, beside = (interactive_jobs(20.0, 10.0, 500, (10, 50), (7, 0, 20.0, with_batch)) for with_batch in (False, True))
    assert without == interactive_jobs(20.0, 10.0, 500, (10, 50), (7, 0, 20.0, False))
    assert [(job.arrival, len(job.prompt), job.tokens) for job in without] == [
        (job.arrival, len(job.prompt), job.tokens) for job in beside
    ]
    assert all(one.prompt != other.prompt for one, other in zip(without, beside, strict=True))
    assert len(without) == pytest.approx(200, rel=0.25)
    assert all(job.arrival < 10 and 10 <= len(job.prompt) <= 200 and job.tokens in (10, 50) for job in without)
    assert interactive_jobs(20.0, 10.0, 500, (10, 50), (7, 1, 20.0, False))[0].arrival != without[0].arrival
    assert len(interactive_jobs(0.001, 1.0, 500, (10,), (0, 0))) == 1


def rounds(*latencies: float) -> list[Turn]:
    return [turn_of([TextOutcome(5, (value / 2, value))] * 4) for value in latencies]


def test_ratios_are_those_of_each_round_and_the_batchs_are_to_the_batch_alone() -> None:
    done = Progress(requests=30, tokens=600, seconds=10.0)
    beside = [Turn(latencies=turn.latencies, first_tokens=turn.first_tokens, done=done) for turn in rounds(1.1, 2.4, 9.0)]
    pairs = list(zip(rounds(1.0, 2.0, 6.0), beside, strict=True))
    alone = [Turn(done=Progress(requests=120, tokens=2400, seconds=20.0))] * 2
    rows = table({0.5: pairs}, alone)
    none, with_batch, ratio, by_itself = rows
    assert [row["batch"] for row in rows] == ["none", "beside", "ratio", "alone"]
    assert all(row.keys() == none.keys() for row in rows)
    assert (none["p95"], none["first_token_p50"], none["batch_tokens"]) == (2.0, 1.0, None)
    assert (with_batch["p95"], with_batch["batch_requests"]) == (2.4, 3.0)
    assert ratio["p95"] == pytest.approx(1.2)  # the median of 1.1, 1.2 and 1.5
    assert ratio["batch_tokens"] == pytest.approx(0.5)
    assert (by_itself["p95"], by_itself["batch_tokens"]) == (None, 120.0)
    assert verdict(rows) == ("an interactive p95 moves by +20.0% at 0.5 a second; the aim, less than 10%, is missed")


def test_an_answer_without_usage_ends_the_measurement() -> None:
    good = json.dumps({"response": {"body": {"usage": {"completion_tokens": 7}}}}).encode()
    assert Progress.of([good, good], 2.0) == Progress(requests=2, tokens=14, seconds=2.0)
    with pytest.raises(ServingError, match="an answer of the batch has no usage"):
        Progress.of([good, b'{"response": null}'], 2.0)


def answered(inputs: Tensors) -> Iterator[Tensors]:
    whole = {"num_output_tokens": np.array([3]), "cumulative_logprob": np.array([-1.0], np.float32)}
    yield delta([1, 2, 3], "abc", "stop", **whole)


def test_a_batch_is_begun_and_ended_at_a_gateway(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    with (
        grpc_server({"llm": answered}) as (port, _),
        gateway(repository, port, rules=Rules(batches=str(tmp_path / "batches"))) as running,
    ):
        api = BatchApi(running.url)
        batch = api.begin([{"model": "llm", "prompt": "a"}] * 200)
        done = api.end(batch, 1.0)
        assert 0 <= done.requests <= 200
        assert done.tokens == 3 * done.requests
        assert list((tmp_path / "batches" / "files").iterdir()) == []  # a measurement leaves none of its files
        refused = api.begin([{"model": "llm", "prompt": "a", "n": 0}] * 20)
        until(lambda: api._asked("GET", f"/v1/batches/{refused}")["status"] != "in_progress")
        with pytest.raises(ServingError, match="20 requests of the batch failed"):
            api.end(refused, 1.0)


def test_what_cannot_be_measured_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"--repository: .* has no llm; write one with `nereid export llm PATH`"):
        batches(BatchesPlan(repository=tmp_path), print)
    for words, said in ((["--rates", "0,1"], "0 is not allowed"), (["--tokens", "0"], "0 is not allowed")):
        result = CliRunner().invoke(app, ["batches", "--repository", str(tmp_path), *words])
        assert result.exit_code == 2
        assert said in result.output
