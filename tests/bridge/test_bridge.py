"""The bridge without Triton: what a request brings, and how its id goes to logs, errors and called models."""

from __future__ import annotations

import importlib
import io
import json
import logging
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.flow.errors import EngineError, InvalidRequestError, LostError
from nereid.flow.parameters import read_tensor_names
from nereid.flow.request_ids import LOG_FORMAT, NamedThreads, RequestIds, current, handling, named
from nereid.flow.state_folder import STATE_FOLDER
from nereid.flow.unanswered import Unanswered, take_unanswered
from nereid_protocol.errors import WireError


@dataclass
class Tensor:
    _name: str
    value: Any

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self.value


class TritonError:
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = range(4)

    def __init__(self, sentence: str, code: int = INTERNAL) -> None:
        self.sentence, self._code = sentence, code

    def message(self) -> str:
        return self.sentence

    def code(self) -> int:
        return self._code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def has_error(self) -> bool:
        return self.error is not None


@dataclass
class Sender:
    sent: list[Any] = field(default_factory=list)

    def send(self, answer: Any = None, flags: int = 0) -> None:
        self.sent.append(answer)


@dataclass
class Request:
    """One that came."""

    own_id: str = ""
    tensors: list[Tensor] = field(default_factory=list)
    brought: str = "{}"
    sender: Sender = field(default_factory=Sender)

    def request_id(self) -> str:
        return self.own_id

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def parameters(self) -> str:
        return self.brought

    def requested_output_names(self) -> list[str]:
        return ["y"]

    def get_response_sender(self) -> Sender:
        return self.sender


class InferenceRequest:
    """One that is made; the last is kept."""

    last: dict[str, Any] = {}  # noqa: RUF012
    answer = InferenceResponse([Tensor("y", np.array([1]))])

    def __init__(self, **arguments: Any) -> None:
        InferenceRequest.last = arguments

    def exec(self) -> InferenceResponse:
        return self.answer


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake = types.ModuleType("triton_python_backend_utils")
    for name, value in {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "InferenceRequest": InferenceRequest,
        "PreferredMemory": lambda *_: None,
        "TRITONSERVER_MEMORY_CPU": 0,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
        "get_output_tensor_by_name": lambda answer, name: next((t for t in answer.output_tensors if t.name() == name), None),
    }.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.delitem(sys.modules, "nereid.triton.bridge", raising=False)
    yield importlib.import_module("nereid.triton.bridge")
    sys.modules.pop("nereid.triton.bridge", None)


def test_a_requests_id_is_tritons_and_goes_on_to_called_models(bridge: Any) -> None:
    with bridge.handling(Request("mine")):
        bridge.Callers.of(1).call("other", {"x": np.zeros(1)}, ["y"])
    assert InferenceRequest.last["request_id"] == "mine"
    assert current() == ""


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


def test_an_internal_error_tells_the_id_once_however_many_models_it_crosses(bridge: Any) -> None:
    with bridge.handling(Request("mine")):
        inner = bridge.error_response(EngineError("internal error in a step"))
        outer = bridge.error_response(bridge._sibling_error("denoise", inner.error))
    assert str(WireError.parse(outer.error.message())).count("mine") == 1


def test_an_engine_error_as_long_as_a_graph_is_cut_and_still_known_for_what_it_is(bridge: Any) -> None:
    cut = bridge._sibling_error("unet", TritonError("node " * 1000, TritonError.INTERNAL))
    assert isinstance(cut, EngineError)
    assert 290 < len(str(cut)) < 320
    dead = bridge._sibling_error("unet", TritonError("node " * 1000 + "is not healthy", TritonError.INTERNAL))
    assert isinstance(dead, LostError)
    gone = bridge._sibling_error("unet", TritonError("unexpected inference output '' for model 'unet'", TritonError.INVALID_ARG))
    assert isinstance(gone, LostError)


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


@pytest.mark.parametrize(
    "said",
    [
        "Model denoise - Error when running inference: Server not ready",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    ],
)
def test_a_call_that_the_ending_server_refuses_is_lost_and_can_be_made_again(bridge: Any, said: str) -> None:
    assert isinstance(bridge._sibling_error("denoise", TritonError(said)), LostError)


def test_a_called_models_tensors_have_the_names_that_its_backend_gives_them(
    bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.dumps({"unet": {"sample": "INPUT__0", "y": "OUTPUT__0"}})
    config = {"parameters": {"tensor_names": {"string_value": told}, "own": {"string_value": "1"}}}
    arguments = {"model_name": "m", "model_config": json.dumps(config), "model_repository": str(tmp_path / "m")}
    model = bridge.ModelArguments.parse(
        {**arguments, "model_version": "1", "model_instance_kind": "CPU", "model_instance_device_id": "0"}, known=("own",)
    )
    assert dict(model.parameters) == {"own": "1"}
    monkeypatch.setattr(InferenceRequest, "answer", InferenceResponse([Tensor("OUTPUT__0", np.array([7]))]))
    made = bridge.Callers.of(1, model.tensor_names).call("unet", {"sample": np.zeros(1), "x": np.zeros(1)}, ["y"])
    assert [tensor.name() for tensor in InferenceRequest.last["inputs"]] == ["INPUT__0", "x"]
    assert InferenceRequest.last["requested_output_names"] == ["OUTPUT__0"]
    assert made["y"].tolist() == [7]
    monkeypatch.setattr(InferenceRequest, "answer", InferenceResponse([Tensor("y", np.array([8]))]))
    assert bridge.Callers.of(1, model.tensor_names).call("other", {"sample": np.zeros(1)}, ["y"])["y"].tolist() == [8]
    assert [tensor.name() for tensor in InferenceRequest.last["inputs"]] == ["sample"]


@pytest.mark.parametrize("text", ["unet", "[]", '{"unet": "sample"}'])
def test_names_of_tensors_that_are_no_mapping_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r'parameter tensor_names: it must be JSON like {"unet": {"sample": "INPUT__0"}}'):
        read_tensor_names({"tensor_names": text})
