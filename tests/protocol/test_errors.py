"""Errors keep status, kind and field on their way through Triton, whatever Triton wraps around them."""

from __future__ import annotations

import re

import pytest

from nereid.flow import errors
from nereid.flow.errors import DeadlineError, EngineError, InvalidRequestError, QueueFullError, RequestError
from nereid_client.errors import (
    CancelledError,
    DeadlineExceededError,
    LostError,
    ServerError,
    typed,
)
from nereid_client.errors import (
    InvalidRequestError as ClientInvalidRequestError,
)
from nereid_client.errors import (
    QueueFullError as ClientQueueFullError,
)
from nereid_protocol.errors import ErrorKind, WireError


@pytest.mark.parametrize("kind", list(ErrorKind))
@pytest.mark.parametrize("field", [None, "seed", "structured_outputs.json"])
@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "in ensemble 'text_to_image', {}",
        "in ensemble 'a', Failed to process the request(s) for model 'b', message: {}, at x",
    ],
)
def test_kind_field_and_sentence_survive_the_wrappings_of_triton(kind: ErrorKind, field: str | None, wrap: str) -> None:
    sent = WireError("seed: -1 is not allowed [it must be 0]\nor more", kind, field)
    assert WireError.parse(wrap.format(sent)) == sent


def test_each_error_has_the_status_that_its_tree_says() -> None:
    """Clients of Triton alone see the status and nothing else: UNAVAILABLE may be tried again, INTERNAL may not."""
    drawn = dict(re.findall(r"[├└]── (\w+) +([A-Z_]+) ", errors.__doc__ or ""))
    kinds = [kind for top in RequestError.__subclasses__() for kind in (top, *top.__subclasses__())]
    assert drawn == {kind.__name__: str(kind("x").status) for kind in kinds}


@pytest.mark.parametrize("text", ["", "deadline exceeded", "x [nereid: INTERNAL]", "x [nereid: INTERNAL what]"])
def test_other_messages_are_nobodys_errors(text: str) -> None:
    assert WireError.parse(text) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequestError.of("seed", -1, "0 or more"), ClientInvalidRequestError),
        (DeadlineError("timeout_seconds: the request was still waiting after 1 s"), DeadlineExceededError),
        (QueueFullError("queue: 3 requests wait already"), ClientQueueFullError),
        (EngineError("unet: the deadline of something else was cancelled"), ServerError),
    ],
)
def test_a_streams_error_is_typed_by_its_kind_and_not_by_its_words(error: RequestError, expected: type[Exception]) -> None:
    raised = typed(error.wire())
    assert type(raised) is expected
    assert str(raised) == str(error)
    assert raised.field == error.field


def test_what_is_no_unicode_in_a_name_that_was_sent_crosses_escaped() -> None:
    raised = typed(InvalidRequestError.of("elements.\ud800.class", 3, "a string").wire())
    assert str(raised).encode() == b"elements.\\ud800.class: 3 is not allowed; it must be a string"


def test_a_hyphen_may_be_in_the_name_of_what_is_to_blame() -> None:
    assert typed(InvalidRequestError.of("elements.card-1.class", 3, "a string").wire()).field == "elements.card-1.class"
    assert InvalidRequestError.of("width x height", "3 x 4", "less").field is None
    assert InvalidRequestError.of("-", 3, "a string").field is None


def test_a_cancelled_stream_is_a_cancelled_error() -> None:
    from nereid.flow.errors import CancelledError as ServerCancelled

    assert type(typed(ServerCancelled("the request was cancelled").wire())) is CancelledError


def test_a_dead_stub_is_a_lost_request() -> None:
    message = "Stub process 'unet_0_0' is not healthy."
    assert isinstance(typed(message, "StatusCode.INTERNAL"), LostError)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("seed", "seed"),
        ("shape of latents", "latents"),
        ("width x height", None),
        ("structured_outputs.json", "structured_outputs.json"),
    ],
)
def test_a_refusal_names_its_field(field: str, named: str | None) -> None:
    assert InvalidRequestError.of(field, 1, "2").field == named
