"""A language model's metrics tell what happened: outcomes, memory in use, times that mean what their names say."""

from __future__ import annotations

import pytest
from test_service import Ask, answering

from nereid.flow.errors import CancelledError, EngineError
from nereid.llm.settings import LlmLimits
from nereid.llm.text import TextStream
from nereid_protocol.metric import Kind
from nereid_protocol.metrics import IMAGE_METRICS, LLM_METRICS

from waiting import until

LIMITS = LlmLimits(max_rows=1, max_queue=8, stream_interval_seconds=0.0)


def values(ask: Ask, name: str, outcome: str = "") -> list[float]:
    recorded: list[tuple[str, float, str]] = ask.recorded  # type: ignore[attr-defined]
    return [value for found, value, labelled in list(recorded) if (found, labelled) == (f"nereid_llm_{name}", outcome)]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_could_not_be_made_counts_as_failed(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("no text")

    with answering(LIMITS) as ask:
        assert ask(max_tokens=5, stream=stream).wait().error is None
        with monkeypatch.context() as patch:
            patch.setattr(TextStream, "finish", fail)
            assert isinstance(ask(max_tokens=5, stream=stream).wait().error, EngineError)
        until(lambda: values(ask, "requests_total", EngineError.outcome))
    assert sum(values(ask, "requests_total", "success")) == 1
    assert sum(values(ask, "requests_total", EngineError.outcome)) == 1
    assert len(values(ask, "e2e_request_latency_seconds")) == 1


def test_when_the_last_caller_leaves_nothing_is_computed_any_more_and_no_memory_is_in_use() -> None:
    with answering(LIMITS) as ask:
        caller = ask(max_tokens=1900, stream=True)
        until(lambda: any(values(ask, "kv_cache_usage_ratio")))
        caller.gone = True
        assert isinstance(caller.wait().error, CancelledError)
        until(lambda: values(ask, "kv_cache_usage_ratio")[-1] == 0)
    assert 0 < sum(values(ask, "generation_tokens_total")) < 1900


def test_time_per_output_token_is_the_time_between_tokens_alone() -> None:
    """With waiting and the reading of the prompt before the first token, and the rest after it."""
    with answering(LIMITS) as ask:
        first, second = ask(max_tokens=300), ask(max_tokens=10)
        assert first.wait().error is second.wait().error is None
        until(lambda: len(values(ask, "time_per_output_token_seconds")) == 2)
        until(lambda: len(values(ask, "time_to_first_token_seconds")) == 2)
        until(lambda: len(values(ask, "e2e_request_latency_seconds")) == 2)
    names = ("time_per_output_token_seconds", "time_to_first_token_seconds", "e2e_request_latency_seconds")
    for between, before, whole, tokens in zip(*(values(ask, name) for name in names), (300, 10), strict=True):
        assert 0 < between * (tokens - 1) <= whole - before


def test_times_are_told_apart_as_far_as_requests_may_take() -> None:
    longest = LlmLimits().default_timeout_seconds
    histograms = [metric for metric in (*LLM_METRICS, *IMAGE_METRICS) if metric.kind is Kind.HISTOGRAM]
    seconds = [metric for metric in histograms if metric.name.endswith("_seconds")]
    assert len(seconds) >= 8
    for metric in seconds:
        assert metric.buckets[-1] > longest > 60
        assert sum(bound > 60 for bound in metric.buckets) >= 3
        assert list(metric.buckets) == sorted(metric.buckets)
