"""`llm` without Triton: answers, streams, refusals, readers that are slow or gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest
from test_requests import FACTS, WORDS, text

from nereid.flow.errors import CancelledError, DeadlineError, EngineError, InvalidRequestError, QueueFullError
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.prompts import tokens_of_text
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.text import TextStream
from nereid_protocol.metric import Metric

from waiting import until


@dataclass
class Collected:
    """A caller that keeps what it gets; `pause` makes it a slow reader, `gone` one that went away."""

    pause: float = 0.0
    gone: bool = False
    answers: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        assert not self.done.is_set()
        time.sleep(self.pause)
        self.answers.append(outputs)

    def close(self, error: Exception | None = None) -> None:
        assert not self.done.is_set()
        self.error = error
        self.done.set()

    def is_cancelled(self) -> bool:
        return self.gone

    def wait(self) -> Collected:
        assert self.done.wait(120)
        return self

    @property
    def text(self) -> str:
        return b"".join(answer["text_output"][0] for answer in self.answers).decode()


Ask = Callable[..., Collected]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """One service for all tests of this file that need nothing of their own."""
    with answering(LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=0.0)) as made:
        yield made


@contextmanager
def answering(limits: LlmLimits, record: FlightRecord | None = None, model: LlmModel | None = None) -> Iterator[Ask]:
    """A service over `model`, or over one in closed form."""
    recorded: list[tuple[str, float, str]] = []

    def sink(metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        recorded.append((metric.name, value, labels.get("outcome", "")))

    facts = LlmFacts(**{**{name: getattr(FACTS, name) for name in LlmFacts.__slots__}, "context_length": 2000})
    model = model or LlmModel(
        name="llm",
        facts=facts,
        limits=limits,
        tokenizer=WORDS,
        settings={"limits": asdict(limits)},
        fingerprint="closed-form",
        function="closed_form_worker:run",
    )
    service = LlmService(model, LlmObserver(Recorder(sink), Peak(1e9, 1e9)), record)

    def submit(
        reply: Collected | None = None,
        *,
        prompt: str = "w1 w2",
        stream: bool = False,
        timeout_seconds: float = 60.0,
        run_id: str | None = None,
        **parameters: object,
    ) -> Collected:
        caller = reply or Collected()
        inputs = {
            "text_input": text(prompt),
            "stream": np.array([stream]),
            "exclude_input_in_output": np.array([True]),
            "sampling_parameters": text(json.dumps({"ignore_eos": True, "seed": 1, **parameters})),
            "timeout_seconds": np.array([timeout_seconds], np.float32),
            "return_finish_reason": np.array([True]),
            "return_token_ids": np.array([True]),
            "return_num_output_tokens": np.array([True]),
            "return_logprobs": np.array([True]),
            "return_cumulative_logprob": np.array([True]),
        }
        if run_id is not None:
            inputs["run_id"] = text(run_id)
        service.handle(inputs, caller)
        return caller

    submit.service = service  # type: ignore[attr-defined]
    submit.recorded = recorded  # type: ignore[attr-defined]
    yield submit
    service.stop()
    names = {name for name, *_ in recorded}
    assert "nereid_llm_requests_total" in names


def test_a_stream_adds_up_to_the_whole_answer(ask: Ask) -> None:
    whole, stream = ask(max_tokens=40).wait(), ask(max_tokens=40, stream=True).wait()
    assert whole.error is stream.error is None
    assert len(whole.answers) == 1
    assert len(stream.answers) > 5
    assert stream.text == whole.text
    ids = np.concatenate([answer["output_ids"] for answer in stream.answers])
    assert ids.tolist() == whole.answers[0]["output_ids"].tolist()
    reasons = [answer["finish_reason"][0] for answer in stream.answers]
    assert reasons == [b""] * (len(reasons) - 1) + [b"length"]


def test_tokens_that_come_at_once_are_sent_together_but_the_first_is_not_kept_waiting() -> None:
    """The end of an answer wakes its sender: nobody waits out the interval."""
    with answering(LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=3600.0)) as ask:
        whole, stream = ask(max_tokens=600), ask(max_tokens=600, stream=True)
        assert stream.wait().text == whole.wait().text
    sizes = [int(answer["num_output_tokens"][0]) for answer in stream.answers]
    assert sum(sizes) == 600
    assert sizes[0] < 300
    assert len(sizes) == 2


def test_a_bound_on_all_streams_makes_each_answer_less_often_and_loses_no_token() -> None:
    limits = LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=1e-6, stream_answers_per_second=1e-3)
    with answering(limits) as ask:
        whole = ask(max_tokens=300).wait()
        streams = [ask(max_tokens=300, stream=True) for _ in range(4)]
        assert {stream.wait().text for stream in streams} == {whole.text}
        assert [len(stream.answers) for stream in streams] == [2] * 4
        several = ask(max_tokens=300, stream=True, n=4)
        assert len(several.wait().answers) == 8
        pace = ask.service._pace  # type: ignore[attr-defined]
        assert pace.rows == 0


def test_rows_of_a_stream_share_the_bound() -> None:
    """Counted over a second: first and last answers come beside the bound."""
    limits = LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=1e-6, stream_answers_per_second=20.0)
    with answering(limits) as ask:
        stream = ask(max_tokens=1900, stream=True, n=4)
        until(lambda: len(stream.answers) >= 8)
        assert ask.service._pace.rows == 4  # type: ignore[attr-defined]
        begun, before = time.monotonic(), len(stream.answers)
        until(lambda: len(stream.answers) > before)
        time.sleep(1.0)
        made = len(stream.answers) - before
        stream.gone = True
        assert made <= 20 + 20 * (time.monotonic() - begun)
        stream.wait()


def test_a_sum_of_log_probabilities_is_that_of_the_tokens_sent_so_far() -> None:
    """With more than one row tokens arrive between the making of two answers."""
    stream = Collected(pause=0.005)
    with answering(LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=1e-6)) as ask:
        ask(stream, max_tokens=200, stream=True, n=4, logprobs=0, temperature=1).wait()
    sums = [0.0] * 4
    for answer in stream.answers:
        row = int(answer["index"][0])
        sums[row] += sum(item["logprob"] for item in json.loads(answer["logprobs"][0]))
        assert answer["cumulative_logprob"][0] == pytest.approx(sums[row], abs=1e-3)


@pytest.mark.parametrize("ending", ["cancelled", "late", "refused"])
def test_a_stream_that_ends_before_its_time_no_longer_slows_others_down(ending: str) -> None:
    with answering(LlmLimits(max_rows=2, max_queue=4, stream_interval_seconds=1e-6)) as ask:
        pace = ask.service._pace  # type: ignore[attr-defined]
        if ending == "refused":
            assert isinstance(ask(temperature=-1, stream=True).wait().error, InvalidRequestError)
            assert pace.rows == 0
            return
        stream = ask(max_tokens=1900, stream=True)
        until(lambda: stream.answers)
        assert pace.rows == 1
        stream.gone = ending == "cancelled"
        if ending == "late":
            (ticket,) = ask.service._batcher._tickets.active  # type: ignore[attr-defined]
            ticket.deadline = time.monotonic()
        assert stream.wait().error is not None
        assert pace.rows == 0


def test_several_answers_differ_and_are_told_apart(ask: Ask) -> None:
    whole = ask(n=3, max_tokens=10).wait().answers[0]
    assert len({bytes(value) for value in whole["text_output"]}) == 3
    streamed = ask(n=3, max_tokens=10, stream=True).wait().answers
    for index in range(3):
        joined = b"".join(a["text_output"][0] for a in streamed if a["index"][0] == index)
        assert joined == whole["text_output"][index]


def test_logprobs_are_those_of_the_drawn_tokens(ask: Ask) -> None:
    answer = ask(max_tokens=5, temperature=0, logprobs=2).wait().answers[0]
    found = json.loads(answer["logprobs"][0])
    assert [item["token_id"] for item in found] == answer["output_ids"].tolist()
    for item in found:
        assert item["top"][0]["token_id"] == item["token_id"]
        assert item["top"][0]["logprob"] >= item["top"][1]["logprob"]


@pytest.mark.parametrize(("stream", "method"), [(True, "push"), (True, "finish"), (False, "finish")])
def test_text_that_cannot_be_made_fails_its_request_alone(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, stream: bool, method: str
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("no text")

    with monkeypatch.context() as patch:
        patch.setattr(TextStream, method, fail)
        failed = ask(max_tokens=100, stream=stream).wait()
    assert isinstance(failed.error, EngineError)
    assert ask(max_tokens=10, stream=stream).wait().error is None


class Slow(Collected):
    """A caller that takes no answer until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        assert self.go_on.wait(60)
        super().send(outputs)


def test_a_slow_reader_slows_nobody_and_loses_nothing(ask: Ask) -> None:
    slow = ask(Slow(), max_tokens=600, stream=True, seed=5)
    quick = ask(max_tokens=600, stream=True, seed=5).wait()
    assert not slow.done.is_set()
    slow.go_on.set()
    slow.wait()
    assert slow.text == quick.text
    assert len(slow.answers) < len(quick.answers)


def test_a_caller_that_goes_away_frees_its_row(ask: Ask) -> None:
    gone = [ask(max_tokens=1900, stream=True) for _ in range(4)]
    until(lambda: all(caller.answers for caller in gone))
    waiting = ask(max_tokens=2)
    time.sleep(0.1)
    assert not waiting.done.is_set()
    for caller in gone:
        caller.gone = True
    assert waiting.wait().error is None
    assert all(isinstance(caller.wait().error, CancelledError) for caller in gone)


def test_a_full_queue_and_a_missed_deadline_are_their_own_errors(ask: Ask) -> None:
    long = [ask(max_tokens=1900) for _ in range(8)]
    time.sleep(0.2)
    assert isinstance(ask().wait().error, QueueFullError)
    for caller in long:
        caller.gone = True
    assert all(isinstance(caller.wait().error, CancelledError) for caller in long)
    assert isinstance(ask(max_tokens=1900, timeout_seconds=0.2).wait().error, DeadlineError)


def test_requests_that_are_not_read_yet_wait_in_the_queue_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, order and time count from arrival: many long prompts at once are refused without being tokenised."""
    gate, read = threading.Event(), tokens_of_text

    def held(*arguments: Any, **more: Any) -> Any:
        assert gate.wait(60)
        return read(*arguments, **more)

    monkeypatch.setattr("nereid.llm.requests.tokens_of_text", held)
    with answering(LlmLimits(max_rows=1, max_queue=3, stream_interval_seconds=0.0)) as ask:
        accepted = [ask(max_tokens=3) for _ in range(3)]
        late = ask(max_tokens=3, timeout_seconds=0.1)
        refused = [ask(max_tokens=3) for _ in range(20)]
        assert all(isinstance(caller.wait().error, QueueFullError) for caller in refused)
        assert not any(caller.done.is_set() for caller in (*accepted, late))
        time.sleep(0.1)
        gate.set()
        assert all(caller.wait().error is None for caller in accepted)
        assert isinstance(late.wait().error, DeadlineError)
        assert isinstance(ask(temperature=-1).wait().error, InvalidRequestError)
        assert all(caller.wait().error is None for caller in [ask(max_tokens=3) for _ in range(4)])


def test_a_bad_request_is_refused_and_the_next_one_served(ask: Ask) -> None:
    assert isinstance(ask(temperature=-1).wait().error, InvalidRequestError)
    assert ask(max_tokens=2).wait().error is None


def test_callers_get_the_places_of_a_batchs_requests_which_lose_nothing() -> None:
    with answering(LlmLimits(max_rows=2, max_queue=4, stream_interval_seconds=0.0)) as ask:
        before = [ask(prompt=f"w{number}", max_tokens=1200, seed=number) for number in range(2)]
        alone = [one.wait().text for one in before]
        batch = [ask(prompt=f"w{number}", max_tokens=1200, seed=number, stream=True, priority=9) for number in range(2)]
        until(lambda: all(one.answers for one in batch))
        callers = [ask(prompt="w7", max_tokens=5, n=2).wait() for _ in range(3)]
        assert not any(one.done.is_set() for one in batch)
        assert [caller.error for caller in callers] == [None] * 3
        assert [one.wait().text for one in batch] == alone
        assert [one.error for one in batch] == [None, None]
