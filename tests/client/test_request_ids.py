"""A request's id goes to the server with every attempt and comes back in errors; what cannot be sent is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from nereid_client import (
    Client,
    ConnectionLostError,
    ContextLengthError,
    InvalidRequestError,
    LostError,
    QueueFullError,
    UnavailableError,
)
from nereid_client.server import ReplayPolicy
from nereid_client.session import Session

from scripted import Instant, World, answers, delta, draw, fails, image
from small_servers import SERVERS, RefusedError, Tensors


def small_models(refused: bool = False) -> dict[str, Any]:
    def llm(inputs: Tensors) -> Iterator[Tensors]:
        if refused:
            raise RefusedError("text_input: too long [nereid: INVALID_ARG too_long text_input]")
        yield delta([5], "hi", "stop")

    def text_to_image(inputs: Tensors) -> Iterator[Tensors]:
        if refused:
            raise RefusedError("seed: no [nereid: INVALID_ARG invalid seed]", grpc.StatusCode.INVALID_ARGUMENT)
        yield image()

    return {"llm": llm, "text_to_image": text_to_image}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_id_is_tritons_request_id_and_stands_in_the_error(protocol: str) -> None:
    with SERVERS[protocol](small_models()) as (port, small), Client(f"127.0.0.1:{port}", protocol=protocol) as client:
        client.generate_image("a box", request_id="mine-1")
        list(client.stream_text("Once", request_id="mine-2"))
        client.generate_image("a box")
    assert small.ids[:2] == ["mine-1", "mine-2"]
    assert small.ids[2].startswith("req-")
    with (
        SERVERS[protocol](small_models(refused=True)) as (port, small),
        Client(f"127.0.0.1:{port}", protocol=protocol) as client,
    ):
        with pytest.raises(InvalidRequestError) as image_error:
            client.generate_image("a box", request_id="mine-3")
        with pytest.raises(ContextLengthError) as text_error:
            list(client.stream_text("Once", request_id="mine-4"))
    assert (image_error.value.request_id, text_error.value.request_id) == ("mine-3", "mine-4")


def test_every_attempt_has_the_same_id() -> None:
    world = World(fails(LostError("died")), fails(UnavailableError("busy")), answers(image()))
    draw(world)
    ids = [call.request_id for _, call in world.calls]
    assert len(ids) == 3
    assert len(set(ids)) == 1


@pytest.mark.parametrize("wrong", ["", "two words", "x" * 129, "caf\u00e9", 3])
def test_an_id_that_may_not_stand_in_a_log_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="request_id"):
        Session(transport=Instant())._image("a box", {}, None, None, wrong)


def test_a_full_queue_can_be_told_at_once_but_not_to_what_was_inside_before() -> None:
    patient, at_once = ReplayPolicy(), ReplayPolicy(retry_full=False)
    full = fails(QueueFullError("queue: 3 wait"))
    draw(World(full, full, answers(image())), patient)
    world = World(full, answers(image()))
    with pytest.raises(QueueFullError):
        draw(world, at_once)
    assert len(world.calls) == 1
    draw(World(fails(UnavailableError("stopping")), answers(image())), at_once)  # the server goes, and comes back
    draw(World(fails(ConnectionLostError("connection refused")), answers(image())), at_once)
    draw(World(fails(LostError("died")), full, full, answers(image())), at_once)  # it was accepted once


@pytest.mark.parametrize("ids", [[4294967301], [2**31], [-1], [1.5], ["a"], [[1]], [2**70]])
def test_token_ids_are_never_sent_as_others(ids: list[Any]) -> None:
    with pytest.raises(InvalidRequestError, match="input_ids") as raised:
        Session(transport=Instant())._text(ids, {}, None, None)
    assert raised.value.field == "input_ids"


def test_token_ids_that_fit_are_sent_as_they_are() -> None:
    work, _ = Session(transport=Instant())._text([0, 5, 2**31 - 1], {}, None, None)
    assert work.tensors["input_ids"].tolist() == [0, 5, 2**31 - 1]
    assert work.tensors["input_ids"].dtype == np.int32


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_half_a_surrogate_pair_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        Session(transport=Instant())._image(**{"prompt": "a", "options": {}, "timeout": None, "run_id": None, **_with(field)})
    with pytest.raises(InvalidRequestError, match="text_input"):
        Session(transport=Instant())._text("\ud800", {}, None, None)


def _with(field: str) -> dict[str, Any]:
    return {"prompt": "\ud800"} if field == "prompt" else {"options": {field: "\ud800"}}


def test_an_error_before_the_request_has_no_id() -> None:
    assert InvalidRequestError("x").request_id is None
