"""What the language model's benchmark feeds and computes; its figures are never asserted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from nereid.serving.errors import ServingError
from nereid_bench import llm, llm_adapters
from nereid_bench.llm import sampler_cost
from nereid_bench.llm_batching import TextJob, TextOutcome, _summary, drive_texts, text_jobs
from nereid_bench.llm_peers import DecodeSpeed, Engine, Weights, installed, loaded
from nereid_export.llm import LlmEngine

import checkpoints as make
from conftest import export_llm


def test_arrivals_are_the_same_every_time_and_within_bounds() -> None:
    jobs = text_jobs(200, 20.0, 500)
    assert jobs == text_jobs(200, 20.0, 500)
    assert all(10 <= len(job.prompt) <= 200 and 10 <= job.tokens <= 200 for job in jobs)
    assert 200 / jobs[-1].arrival == pytest.approx(20.0, rel=0.25)


def test_summary_counts_what_came_in_time() -> None:
    made = _summary([TextOutcome(10, (0.1, 0.3, 0.6)), TextOutcome(10, (0.6, 0.65))], 2.0)
    assert made["tokens_per_second"] == 10
    assert made["goodput"] == 0.5
    assert made["gap_p50"] == pytest.approx(0.2)


@pytest.mark.parametrize(("answer", "said"), [(ValueError("no room"), "no room"), (3, "3 tokens came where 10 were asked for")])
def test_a_request_that_is_not_answered_ends_the_measurement(answer: ValueError | int, said: str) -> None:
    jobs = [TextJob(arrival=0.0, prompt=(number,), tokens=10) for number in range(3)]

    def ask(job: TextJob, told: Callable[[], None]) -> int:
        told()
        if job.prompt != (1,):
            return 10
        if isinstance(answer, int):
            return answer
        raise answer

    with pytest.raises(ServingError, match=f"1 of 3 requests failed, the first: {said}"):
        drive_texts(jobs, ask)


def test_an_engine_whose_process_dies_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def one(engine: Engine, weights: Weights, threads: int) -> Iterator[DecodeSpeed]:
        def speed(rows: int, tokens: int) -> float:
            if engine is Engine.LLAMA_CPP and rows == 2:
                raise BrokenExecutor
            return 10.0 * rows

        yield speed

    monkeypatch.setattr(llm, "loaded", one)
    monkeypatch.setattr(llm, "installed", lambda weights: [Engine.NEREID, Engine.LLAMA_CPP])
    said: list[str] = []
    plan = llm.LlmPlan(work=tmp_path, checkpoint=tmp_path, threads=1, batches=(1, 2, 4))
    found = llm.decode_speeds({"tiny": cast(Weights, None)}, plan, said.append)
    assert found == [{"model": "tiny", "engine": "Nereid's engine, int4", "batch 1": 10, "batch 2": 20, "batch 4": 40}]
    assert said == ["tiny: 1 rows", "tiny: 2 rows", "tiny: llama.cpp, Q4_0 is left out: its process died", "tiny: 4 rows"]


@pytest.mark.torch
def test_peers_decode_the_same_checkpoint(tmp_path: Path) -> None:
    checkpoint = make.make_llm(tmp_path / "checkpoint", "llama")
    export_llm(checkpoint, tmp_path / "out")
    export_llm(checkpoint, tmp_path / "openvino", engine=LlmEngine.OPENVINO)
    weights = Weights(
        engine=tmp_path / "out" / "llm" / "1",
        openvino=tmp_path / "openvino" / "llm" / "1",
        genai=Path(),
        openvino_genai=tmp_path,
        gguf=Path(),
        checkpoint=checkpoint,
        vocabulary=320,
    )
    assert not {Engine.OPENVINO_GENAI, Engine.OPENVINO_GENAI_FP32} & set(installed(weights))
    for engine in (Engine.NEREID, Engine.NEREID_OPENVINO, Engine.NEREID_OPENVINO_VARIANT, Engine.TRANSFORMERS):
        with loaded(engine, weights, 1) as speed:
            assert speed(2, 4) > 0
            assert speed(1, 2) > 0


def test_sampler_cost_is_a_time() -> None:
    assert 0 < sampler_cost(2, 2000, repeats=3) < 1e6


@pytest.mark.torch
def test_adapters_are_measured_on_both_engines_with_and_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_adapters, "COUNTS", (0, 2))
    checkpoint = make.make_llm(tmp_path / "checkpoint", "llama", max_position_embeddings=1024)
    found = llm_adapters.adapter_speeds(checkpoint, tmp_path / "work", (1, 3), 2, 1, [].append)
    assert [(row["engine"], row["adapters"]) for row in found] == [
        ("onnxruntime", 0),
        ("onnxruntime", 2),
        ("openvino", 0),
        ("openvino", 2),
    ]
    plain, adapted = {"rows 1", "rows 3"}, {"rows 1, adapted", "rows 3, adapted"}
    assert [set(row) - {"engine", "adapters"} for row in found] == [plain, plain | adapted] * 2
    assert all(value > 0 for row in found for name, value in row.items() if name.startswith("rows"))
