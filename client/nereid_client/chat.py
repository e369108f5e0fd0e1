"""A conversation with a served model through the OpenAI-compatible gateway, token by token; needs the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nereid_client.errors import ConnectionLostError, InvalidRequestError, NereidError, ServerError, UnavailableError

_STATUS: dict[int, type[NereidError]] = {
    400: InvalidRequestError,
    401: InvalidRequestError,
    404: InvalidRequestError,
    503: UnavailableError,
}


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
        connection = http.client.HTTPConnection(self.url, timeout=self.timeout)
        written = []
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read())
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise ServerError(event["error"]["message"])
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    written.append(piece)
                    yield piece
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLostError(f"no gateway answers at {self.url} ({error})") from None
        finally:
            connection.close()
        self.messages = [*messages, {"role": "assistant", "content": "".join(written)}]


def _refusal(status: int, body: bytes) -> NereidError:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP status {status}"
    return _STATUS.get(status, ServerError)(message)
