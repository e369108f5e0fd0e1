"""A conversation with a served model through the OpenAI-compatible gateway, token by token; needs the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nereid_client.addresses import AddressError, HttpAddress, is_own_time, why
from nereid_client.errors import (
    CancelledError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    NereidError,
    ServerError,
    UnavailableError,
)

_STATUS: dict[int, type[NereidError]] = {
    400: InvalidRequestError,
    401: InvalidRequestError,
    404: InvalidRequestError,
    413: InvalidRequestError,
    429: UnavailableError,
    499: CancelledError,
    503: UnavailableError,
    504: DeadlineExceededError,
}
_BY_TYPE: dict[str, type[NereidError]] = {
    "invalid_request_error": InvalidRequestError,
    "service_unavailable_error": UnavailableError,
    "timeout_error": DeadlineExceededError,
    "cancelled_error": CancelledError,
}
"""What an error calls itself once a stream has begun, when there is no status any more."""


@dataclass(slots=True)
class Chat:
    """The turns so far; `say` adds two. `options` go into the request's body (temperature, max_tokens, ...)."""

    url: str
    model: str = "llm"
    api_key: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    messages: list[dict[str, str]] = field(default_factory=list)

    def say(self, text: str) -> Iterator[str]:
        """Send a user's turn and yield the answer as it is written; leaving the loop cancels it. Raises NereidError."""
        messages = [*self.messages, {"role": "user", "content": text}]
        body = json.dumps({"model": self.model, "messages": messages, "stream": True, **self.options})
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            server = HttpAddress.of(self.url)
        except AddressError as error:
            raise InvalidRequestError(f"url: {error}", "url") from None
        connection = server.connection(self.timeout)
        written, sent = [], False
        request_id: str | None = None
        try:
            connection.connect()
            sent = True
            connection.request("POST", f"{server.prefix}/v1/chat/completions", body, headers)
            response = connection.getresponse()
            request_id = response.getheader("x-request-id")
            if response.status != 200:
                raise _refusal(self.url, response.status, response.read())
            for event in _events(response):
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    written.append(piece)
                    yield piece
        except NereidError as error:
            error.request_id = request_id
            raise
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) and is_own_time(error):
                raise self._out_of_time(sent=sent, written=bool(written)) from None
            sentence = "the connection to {} broke ({})" if sent else "no gateway answers at {} ({})"
            raise ConnectionLostError(sentence.format(self.url, why(error)), sent=sent) from None
        finally:
            connection.close()
        self.messages = [*messages, {"role": "assistant", "content": "".join(written)}]

    def _out_of_time(self, *, sent: bool, written: bool) -> NereidError:
        if not sent:
            return ConnectionLostError(f"no gateway answers at {self.url} within {self.timeout:g} s", sent=False)
        done = "has not gone on with its answer" if written else "has not answered"
        return DeadlineExceededError(
            f"timeout: {self.model} at {self.url} {done} within {self.timeout:g} s; raise timeout", bare=True
        )


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The answer's events until its `[DONE]`; a stream without that was cut."""
    for line in response:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise _BY_TYPE.get(str(event["error"].get("type")), ServerError)(event["error"]["message"])
            yield event
    raise http.client.IncompleteRead(b"")


def _refusal(url: str, status: int, body: bytes) -> NereidError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = (
            f"{url} answers with HTTP status {status}, and not as OpenAI's API does; is that the gateway's port (--openai-port)?"
        )
    return _STATUS.get(status, ServerError)(message)
