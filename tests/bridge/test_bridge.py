"""The bridge without Triton: what a request brings, and how its id goes to logs, errors and called models."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.flow.errors import EngineError, InvalidRequestError
from nereid.flow.parameters import read_tensor_names
from nereid.flow.request_ids import LOG_FORMAT, NamedThreads, RequestIds, current, handling, named
from nereid.flow.state_folder import STATE_FOLDER
from nereid.flow.unanswered import Unanswered, take_unanswered
from nereid_protocol.errors import WireError

from stub_utils import Request, Tensor, TritonError


@pytest.mark.parametrize("sent", ["", "two words", "line\nbreak", "x" * 129])
def test_a_request_without_an_id_that_may_be_logged_gets_one(bridge: Any, sent: str) -> None:
    with bridge.handling(Request(sent)):
        assert current().startswith("req-")


def test_an_internal_error_tells_the_id_that_the_log_has(bridge: Any, caplog: pytest.LogCaptureFixture) -> None:
    request = Request("mine")
    with bridge.handling(request):
        reply = bridge.late_reply(request)
    reply(None, ValueError("a secret"))  # from a thread that is nobody's
    (answer,) = request.sender.sent
    error = WireError.parse(answer.error.message())
    assert error is not None
    assert error.sentence == "internal error; see the server's log (request mine)"
    assert "a secret" in caplog.text


def test_an_internal_error_tells_the_id_once_however_many_models_it_crosses(bridge: Any, calls: Any) -> None:
    with bridge.handling(Request("mine")):
        inner = bridge.error_response(EngineError("internal error in a step"))
        outer = bridge.error_response(calls._sibling_error("denoise", inner.error))
    assert str(WireError.parse(outer.error.message())).count("mine") == 1


def test_an_engine_that_fails_for_several_requests_at_once_tells_each_its_own_id(
    bridge: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("mine", "yours"):
        error = bridge.answer_of(Request(name), EngineError("unet: out of memory")).error
        assert str(WireError.parse(error.message())).count(f"(request {name})") == 1
    assert caplog.text.count("unet: out of memory") == 2
    assert bridge.answer_of(Request("mine"), {"y": np.zeros(1)}).error is None


def test_late_answers_that_are_owed_are_counted_until_they_are_given(
    bridge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton never ends those that die with this process: the supervisor must know whether there were any."""
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path))

    def owed() -> int:
        return int(bridge._unanswered._count)

    monkeypatch.setattr(bridge, "_unanswered", Unanswered.of("first"))
    replies = [bridge.late_reply(Request()) for _ in range(2)]
    streams = [bridge.Stream.of(Request()) for _ in range(2)]
    assert owed() == 4
    streams[0].send({})
    assert owed() == 4
    replies[0]({}, None)
    replies[1](None, EngineError("x"))
    streams[0].close()
    streams[1].close(EngineError("x"))
    assert owed() == 0
    assert take_unanswered(tmp_path, ["first"]) == []


def test_a_refusal_says_nothing_of_ids(bridge: Any) -> None:
    with bridge.handling(Request("mine")):
        answer = bridge.error_response(InvalidRequestError.of("seed", -1, "0 or more"))
    assert "mine" not in answer.error.message()
    assert answer.error.code() == TritonError.INVALID_ARG


@pytest.mark.parametrize(
    ("own_id", "brought", "expected"),
    [
        ("", "{}", None),
        ("mine", '{"id": "mine"}', None),
        ("mine", '{"id": "mine", "temperature": 0}', {"temperature": 0}),
        ("", '{"max_tokens": 3}', {"max_tokens": 3}),
    ],
)
def test_request_parameters_are_read_without_the_id_that_generate_puts_there(
    bridge: Any, own_id: str, brought: str, expected: dict[str, Any] | None
) -> None:
    inputs = bridge.read_inputs_and_parameters(Request(own_id, [Tensor("x", np.zeros(1))], brought))
    found = inputs.get("request_parameters")
    assert (None if found is None else json.loads(found[0])) == expected


def test_each_log_line_of_a_requests_work_begins_with_its_id_on_whatever_thread() -> None:
    page = io.StringIO()
    handler = logging.StreamHandler(page)
    handler.addFilter(RequestIds())
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    log = logging.getLogger("nereid.test_ids")
    log.addHandler(handler)
    try:
        with NamedThreads(1) as threads, handling("mine"):
            threads.submit(log.warning, "it is slow").result()
        log.warning("nobody's")
    finally:
        log.removeHandler(handler)
    assert page.getvalue() == "WARNING nereid.test_ids: request mine: it is slow\nWARNING nereid.test_ids: nobody's\n"


def test_several_requests_are_named_up_to_a_number() -> None:
    assert named(["a"]) == "request a"
    assert named(["a", "b"]) == "requests a, b"
    assert named([str(number) for number in range(10)]) == "requests 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert named(["", ""]) == "2 requests"


@pytest.mark.parametrize("text", ["unet", "[]", '{"unet": "sample"}'])
def test_names_of_tensors_that_are_no_mapping_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r'parameter tensor_names: it must be JSON like {"unet": {"sample": "INPUT__0"}}'):
        read_tensor_names({"tensor_names": text})
