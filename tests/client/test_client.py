"""The SDK without a server: retries, types, errors, and what installing it drags in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

import nereid_client as sdk
from nereid_client import Client, ConnectionLostError, ImageRequest, InvalidRequestError, NereidError, UnavailableError
from nereid_client.errors import from_triton


class Scripted:
    """A transport that raises or returns what it was told to, in order."""

    def __init__(self, *script: Any) -> None:
        self.script, self.calls = list(script), []

    def infer(self, model: str, tensors: dict[str, np.ndarray], outputs: Sequence[str], timeout: float | None) -> Any:
        self.calls.append((model, tensors, timeout))
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def is_ready(self, model: str) -> bool:
        return True

    def close(self) -> None: ...


ANSWER = {
    "generated_image": np.zeros((2, 4, 4, 3), np.uint8),
    "image_seed": np.array([[5], [6]]),
    "warnings": np.array([[b"one\ntwo"]], object),
    "timings": np.array([[0.5, 1.5]], np.float32),
}


def test_unavailable_is_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("nereid_client.client.time.sleep", pauses.append)
    transport = Scripted(UnavailableError("x"), UnavailableError("x"), UnavailableError("x"), ANSWER)
    result = Client(transport=transport, retries=3, backoff=1.0).generate_image("a box")
    assert result.seeds == (5, 6)
    assert [0.5 * 2**i <= pause <= 1.5 * 2**i for i, pause in enumerate(pauses)] == [True] * 3


def test_a_stream_refused_before_its_request_is_written_says_who_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    start = grpcclient.InferenceServerClient.start_stream

    def start_and_linger(self: Any, callback: Any, **options: Any) -> None:
        start(self, callback, **options)
        time.sleep(0.5)  # long enough for the refusal to arrive first

    monkeypatch.setattr(grpcclient.InferenceServerClient, "start_stream", start_and_linger)
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
        next(iter(client.stream_image("a box")))


def test_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid_client.client.time.sleep", lambda seconds: None)
    transport = Scripted(*[UnavailableError(str(i)) for i in range(3)])
    with pytest.raises(UnavailableError, match="2"):
        Client(transport=transport, retries=2).generate_image("a box")


def test_invalid_requests_are_not_tried_again() -> None:
    transport = Scripted(InvalidRequestError("width: 13"))
    with pytest.raises(InvalidRequestError):
        Client(transport=transport).generate_image("a box", width=13)
    assert len(transport.calls) == 1


def test_result_is_typed() -> None:
    result = Client(transport=Scripted(ANSWER)).generate_image("a box")
    assert result.warnings == ("one", "two")
    assert (result.queue_seconds, result.denoise_seconds) == (0.5, 1.5)
    assert len(result.images) == 2
    assert result.image.size == (4, 4)


def test_name_prefixes_the_models_and_the_timeout_reaches_the_server() -> None:
    transport = Scripted(ANSWER)
    Client(transport=transport, name="xl", timeout=9.0).generate_image("a box")
    model, tensors, timeout = transport.calls[0]
    assert model == "xl_text_to_image"
    assert tensors["timeout_seconds"].tolist() == [[9.0]]
    assert timeout is not None
    assert timeout > 9.0


def test_only_given_options_are_sent() -> None:
    tensors = ImageRequest.of(prompt="a", seed=2**62).tensors(timeout=None, batched=True)
    assert {name: value.dtype.name for name, value in tensors.items()} == {"prompt": "object", "seed": "int64"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 3}, "steps"),
        ({"num_inference_steps": "4"}, "num_inference_steps"),
        ({"guidance_scale": "a"}, "guidance_scale"),
    ],
)
def test_wrong_types_and_unknown_options_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequestError, match=word):
        Client(transport=Scripted()).generate_image("a box", **options)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "width: 13", sdk.InvalidRequestError),
        ("400", "width: 13", sdk.InvalidRequestError),
        ("StatusCode.UNAVAILABLE", "queue: 3 requests wait", sdk.UnavailableError),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", sdk.ConnectionLostError),
        ("StatusCode.UNAVAILABLE", "timeout_seconds: the request was still running", sdk.DeadlineExceededError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", sdk.DeadlineExceededError),
        ("StatusCode.CANCELLED", "Locally cancelled", sdk.CancelledError),
        ("StatusCode.INTERNAL", "unet: broken", sdk.ServerError),
    ],
)
def test_every_status_has_its_type(status: str, message: str, kind: type[NereidError]) -> None:
    error = from_triton(InferenceServerException(message, status))
    assert type(error) is kind
    assert str(error) == message.partition(" [nereid")[0]


def test_nobody_at_the_address_is_one_clear_error() -> None:
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(sdk.ConnectionLostError):
        client.generate_image("a box")
    with Client("127.0.0.1:1", protocol="http", retries=0) as client, pytest.raises(sdk.ConnectionLostError):
        client.generate_image("a box")


def test_client_and_command_line_need_no_heavy_packages() -> None:
    code = (
        "import sys; import nereid_client, nereid_client.main;"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'diffusers', 'transformers', 'pytriton'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
