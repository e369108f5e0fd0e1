"""Questions about runs, and requests that come in: answered or refused once, whoever has gone meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from nereid.flow.errors import EngineError, InvalidRequestError, QueueFullError, RequestError
from nereid.flow.replies import answer_question, is_question, take
from nereid.flow.runs import Runs


class Answers:
    def __init__(self, gone: bool = False) -> None:
        self.sent: list[Mapping[str, np.ndarray]] = []
        self.ends: list[Exception | None] = []
        self.gone = gone

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        if self.gone:
            raise RuntimeError("nobody is there")
        self.sent.append(outputs)

    def close(self, error: Exception | None = None) -> None:
        if self.gone:
            raise RuntimeError("nobody is there")
        self.ends.append(error)

    def is_cancelled(self) -> bool:
        return self.gone


class Run:
    cancelled = False


def asked(**names: str) -> dict[str, np.ndarray]:
    return {name: np.array([value.encode()], np.object_) for name, value in names.items()}


def test_a_run_is_watched_and_cancelled_by_its_id() -> None:
    runs, run = Runs(), Run()
    runs.begin("mine", run)
    for question, cancelled in (({"watch": "mine"}, False), ({"cancel": "mine"}, True)):
        inputs, reply = asked(**question), Answers()
        assert is_question(inputs)
        answer_question(inputs, reply, runs, "print")
        (sent,) = reply.sent
        assert {name: value.item() for name, value in sent.items()} == {
            "run_state": b"waiting",
            "system_fingerprint": b"print",
        }
        assert (reply.ends, run.cancelled) == ([None], cancelled)
    assert not is_question(asked(brief="a"))


@pytest.mark.parametrize("name", ["mine", "no id!"])
def test_a_question_whose_caller_has_gone_ends_quietly(name: str) -> None:
    answer_question(asked(watch=name), Answers(gone=True), Runs(), "print")


def test_a_question_that_is_none_is_refused_once() -> None:
    reply = Answers()
    answer_question(asked(cancel="no id!"), reply, Runs(), "print")
    (error,) = reply.ends
    assert isinstance(error, InvalidRequestError)
    assert (error.field, reply.sent) == ("cancel", [])


@pytest.mark.parametrize(("raised", "kind"), [(QueueFullError("full"), QueueFullError), (KeyError("x"), EngineError)])
def test_a_request_that_does_not_start_is_refused_once(raised: Exception, kind: type[RequestError]) -> None:
    refused: list[RequestError] = []

    def start(inputs: Any, reply: Any) -> None:
        raise raised

    take({}, Answers(), Runs(), "print", start, lambda error, reply: refused.append(error))
    (error,) = refused
    assert type(error) is kind


def test_a_question_starts_nothing() -> None:
    reply, begun = Answers(), []  # type: ignore[var-annotated]
    take(asked(watch="mine"), reply, Runs(), "print", lambda *given: begun.append(given), lambda *given: begun.append(given))
    assert [sent["run_state"].item() for sent in reply.sent] == [b"unknown"]
    assert (reply.ends, begun) == ([None], [])
