"""The worker of `llm` dies, hangs or is poisoned: what was asked is answered all the same, token for token."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_requests import text
from test_service import Ask, Collected, answering

from nereid.engines.digests import MANIFEST_VERSION, DigestError, sign
from nereid.flow.errors import CancelledError, EngineError, InvalidRequestError, PoisonousRequestError
from nereid.flow.flight_record import FlightRecord
from nereid.flow.state_folder import STATE_FOLDER, models_with_worker_down
from nereid.llm.answers import Answer
from nereid.llm.sequences import Delta, FinishReason, TokenLogprob
from nereid.llm.service import _digest
from nereid.llm.settings import LlmLimits
from nereid.llm.tasks import LlmTask
from nereid.llm.text import TextStream
from nereid.llm.worker import run

from waiting import until

LIMITS = LlmLimits(max_rows=4, max_queue=16, stream_interval_seconds=0.0, watchdog_seconds=2.0)
POISON, HANG = "w48 w1", "w47 w1"


def tokens(caller: Collected) -> list[int]:
    return [int(token) for answer in caller.answers for token in answer["output_ids"]]


def question(ask: Ask, **inputs: str) -> str:
    caller = Collected()
    ask.service.handle({name: text(value) for name, value in inputs.items()}, caller)  # type: ignore[attr-defined]
    caller.wait()
    if caller.error is not None:
        raise caller.error
    return bytes(caller.answers[0]["run_state"][0]).decode()


def test_the_supervisor_is_told_while_there_is_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path))
    with answering(LIMITS) as ask:
        service: Any = ask.service  # type: ignore[attr-defined]
        assert models_with_worker_down(tmp_path) == []
        os.kill(service.worker_pid, signal.SIGKILL)
        until(lambda: models_with_worker_down(tmp_path) == [service.model.name])
        until(lambda: models_with_worker_down(tmp_path) == [])
        assert ask(max_tokens=3).wait().error is None


def test_streams_over_a_death_lose_nothing_and_repeat_nothing() -> None:
    with answering(LIMITS) as ask:
        undisturbed = [ask(max_tokens=400, stream=True, seed=i, logprobs=1) for i in range(4)]
        assert all(caller.wait().error is None for caller in undisturbed)
        service: Any = ask.service  # type: ignore[attr-defined]
        running = [ask(max_tokens=400, stream=True, seed=i, logprobs=1) for i in range(4)]
        whole = ask(max_tokens=400, seed=2)
        until(lambda: all(caller.answers for caller in running))
        before = service.worker_pid
        os.kill(before, signal.SIGKILL)
        for caller, expected in zip(running, undisturbed, strict=True):
            assert caller.wait().error is None
            assert tokens(caller) == tokens(expected)
            assert caller.text == expected.text
            assert b"".join(a["finish_reason"][0] for a in caller.answers) == b"length"
        assert whole.wait().error is None
        assert tokens(whole) == tokens(undisturbed[2])
        until(lambda: service.worker_pid not in (None, before))


def test_a_worker_that_hangs_or_dies_by_a_request_takes_no_others_along() -> None:
    with answering(LIMITS) as ask:
        expected = tokens(ask(max_tokens=60, seed=3).wait())
        for bad, words in ((POISON, "exit code 9"), (HANG, "did not tick")):
            innocent = [ask(max_tokens=60, seed=3, stream=True) for _ in range(2)]
            guilty = ask(prompt=bad, max_tokens=60)
            late = ask(max_tokens=60, seed=3)
            assert isinstance(guilty.wait().error, PoisonousRequestError)
            assert words in str(guilty.error)
            for caller in (*innocent, late):
                assert caller.wait().error is None
                assert tokens(caller) == expected


def test_a_runaway_grammar_is_refused_by_name_and_stops_nobody() -> None:
    with answering(LIMITS) as ask:
        expected = tokens(ask(max_tokens=900, seed=3).wait())
        innocent = ask(max_tokens=900, seed=3, stream=True)
        until(lambda: bool(innocent.answers))
        guilty = ask(structured_outputs={"grammar": "start: /a*/ start"})
        assert isinstance(guilty.wait().error, InvalidRequestError)
        assert "structured_outputs.grammar" in str(guilty.error)
        assert "within 1 s" in str(guilty.error)
        assert innocent.wait().error is None
        assert tokens(innocent) == expected


def test_a_stopped_worker_is_replaced() -> None:
    with answering(LIMITS) as ask:
        expected = tokens(ask(max_tokens=100, seed=3).wait())
        caller = ask(max_tokens=100, seed=3, stream=True)
        until(lambda: bool(caller.answers))
        os.kill(ask.service.worker_pid, signal.SIGSTOP)  # type: ignore[attr-defined]
        assert caller.wait().error is None
        assert tokens(caller) == expected


class Stuck(Collected):
    """A caller whose answers are sent once `go_on` is set."""

    go_on = threading.Event()

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        assert self.go_on.wait(60)
        super().send(outputs)


def test_many_slow_senders_do_not_hold_up_a_quick_answer() -> None:
    with answering(LIMITS) as ask:
        slow = [ask(Stuck(), max_tokens=3) for _ in range(12)]
        assert ask(max_tokens=3).wait().error is None
        assert not any(caller.done.is_set() for caller in slow)
        Stuck.go_on.set()
        assert all(caller.wait().error is None for caller in slow)


def test_a_grammar_is_compiled_once_for_all_answers_of_its_request() -> None:
    with answering(LIMITS) as ask:
        for number in (1, 2):
            asked = ask(n=4, max_tokens=2, structured_outputs={"choice": ["w1"]}).wait()
            assert asked.error is None
            assert asked.answers[0]["text_output"].tolist() == [f" w{number}".encode()] * 4


def test_a_run_can_be_watched_and_cancelled_by_its_id() -> None:
    with answering(LIMITS) as ask:
        assert question(ask, watch="nobody") == "unknown"
        run = ask(max_tokens=1900, run_id="mine-1", stream=True)
        others = [ask(max_tokens=1900) for _ in range(3)]
        waits = ask(max_tokens=1900, run_id="mine-2")
        until(lambda: bool(run.answers))
        until(lambda: question(ask, watch="mine-2") == "waiting")
        assert question(ask, watch="mine-1") == "running"
        assert question(ask, cancel="mine-1") == "running"
        assert isinstance(run.wait().error, CancelledError)
        assert question(ask, watch="mine-1") == "failed"
        for caller in (*others, waits):
            caller.gone = True
        done = ask(max_tokens=3, run_id="mine-3").wait()
        assert done.answers[0]["system_fingerprint"][0] == b"closed-form"
        assert question(ask, watch="mine-3") == "done"
        for name in ("no spaces", "", "x" * 65):
            with pytest.raises(InvalidRequestError, match="watch"):
                question(ask, watch=name)


def test_asking_again_under_an_id_ends_the_older_run() -> None:
    with answering(LIMITS) as ask:
        older = ask(max_tokens=1900, run_id="same", stream=True)
        until(lambda: bool(older.answers))
        newer = ask(max_tokens=5, run_id="same")
        assert newer.wait().error is None
        assert isinstance(older.wait().error, CancelledError)
        assert question(ask, watch="same") == "done"


def test_a_token_that_differs_after_a_death_is_an_error() -> None:
    answer = Answer(text=TextStream(None), stop_ids=frozenset())  # type: ignore[arg-type]
    for token in (5, 6):
        assert answer.receive(Delta((token,)), 0) is not None
    answer.rewind()
    assert answer.receive(Delta((5,)), 0) is None
    with pytest.raises(EngineError, match="token 1 came out differently"):
        answer.receive(Delta((7,)), 0)
    answer.rewind()
    assert answer.receive(Delta((5,)), 0) is None
    with pytest.raises(EngineError):
        answer.receive(Delta((6,), finish_reason=FinishReason.STOP), 0)
    assert np.array(answer.written).tolist() == [5, 6]


def test_of_an_answer_that_nobody_has_seen_other_tokens_may_come_the_next_time() -> None:
    """Of a model that is not batch-invariant, or with speculation."""
    score = [TokenLogprob(token, -float(token), ()) for token in range(9)]
    answer = Answer(text=TextStream(None), stop_ids=frozenset())  # type: ignore[arg-type]
    answer.receive(Delta((5,), (score[5],), text="a"), 3)
    answer.receive(Delta((6,), (score[6],), FinishReason.STOP, "b"), 3)
    request = SimpleNamespace(stream=False)
    LlmTask(request, None, None, None, None, answers=[answer]).begin_again()  # type: ignore[arg-type]
    assert not answer.finished
    answer.receive(Delta((5,), (score[5],), text="c"), 4)
    answer.receive(Delta((7,), (score[7],), FinishReason.LENGTH, "d"), 4)
    assert (answer.written, answer.finish_reason, answer.cached_tokens) == ([5, 7], FinishReason.LENGTH, 4)
    assert (answer.all_logprobs, answer.cumulative_logprob, answer.show_all()) == ([score[5], score[7]], -12.0, "cd")


def test_requests_stand_in_the_flight_record_while_they_are_inside_and_no_longer(tmp_path: Path) -> None:
    record = FlightRecord.at(tmp_path / "llm.flight")
    with answering(LIMITS, record) as ask:
        run = ask(max_tokens=1900, stream=True)
        until(lambda: bool(run.answers))
        (tmp_path / "seen.flight").write_bytes((tmp_path / "llm.flight").read_bytes())
        assert len(FlightRecord.at(tmp_path / "seen.flight").suspects) == 1
        run.gone = True
        run.wait()
    assert not FlightRecord.at(tmp_path / "llm.flight").suspects


def test_a_worker_loads_only_what_was_exported(tmp_path: Path) -> None:
    """Each time it is started: its model's process, which looks at the files too, lives on when the worker dies."""
    folder = tmp_path / "llm" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"engine")
    (tmp_path / "llm" / "manifest.json").write_text(json.dumps({"version": MANIFEST_VERSION, "models": ["llm"], "files": {}}))
    sign(tmp_path)
    (folder / "model.onnx").write_bytes(b"enginf")
    seat: Any = SimpleNamespace(settings={"folder": str(folder), "limits": {}, "gpu": None})
    with pytest.raises(DigestError, match=r"llm/1/model\.onnx was changed after its export"):
        run(seat)


def test_requests_that_differ_in_their_parameters_are_not_taken_for_one_another() -> None:
    same = {"text_input": text("w1")}
    asked = [{**same, "request_parameters": text(json.dumps({"max_tokens": number}))} for number in (1, 2)]
    assert len({_digest(inputs) for inputs in (same, *asked, {"sampling_parameters": same["text_input"]})}) == 4
