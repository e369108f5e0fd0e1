"""What is said of a request whose time has run out: which call, after how many seconds, and what is to be raised."""

from __future__ import annotations

from nereid_client.errors import DeadlineExceededError, NereidError
from nereid_client.server import Work


def out_of_time(work: Work, failure: NereidError | None, *, shown: bool) -> DeadlineExceededError:
    """The caller's own deadline. `shown`: a part of the answer has come; `failure`: what the attempt before has failed of."""
    done = "has not ended its answer" if shown else "has not answered"
    why = "" if failure is None else f" (the attempt before: {failure})"
    return DeadlineExceededError(f"timeout: {work.model} {done} within {work.timeout or 0:g} s{why}; raise timeout")


def with_advice(error: DeadlineExceededError, work: Work) -> DeadlineExceededError:
    """The model's own sentence, which says where the time went, for a caller who gave it some."""
    if error.field == "timeout_seconds" and work.timeout is not None:
        error.args = (f"{error} ({work.model} was given {work.timeout:g} s); raise timeout",)
    return error


def ended_by_another(error: DeadlineExceededError, work: Work, seconds: float) -> DeadlineExceededError:
    """A call that somebody between here and the model has ended, so many seconds after it began."""
    return DeadlineExceededError(
        f"{work.model}: the server, or a proxy before it, has ended the call after {seconds:.3g} s ({error}); "
        "raise that limit, it is not timeout",
        bare=True,
    )
