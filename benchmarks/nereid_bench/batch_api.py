"""/v1/files and /v1/batches of a server with OpenAI's API, as much of them as a measurement needs."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nereid.serving.errors import ServingError

ENDPOINT = "/v1/completions"
_POLL_SECONDS = 0.1
_LONGEST_SECONDS = 120.0
"""In which a batch must begin, and end once it is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Answers of a batch, and their tokens, in so many seconds."""

    requests: int
    tokens: int
    seconds: float

    @classmethod
    def of(cls, lines: Iterable[bytes], seconds: float) -> Progress:
        """Of an output file; raises ServingError where an answer is no completion with its usage."""
        counted = []
        for line in lines:
            body = (json.loads(line).get("response") or {}).get("body") or {}
            try:
                counted.append(int(body["usage"]["completion_tokens"]))
            except (KeyError, TypeError, ValueError):
                raise ServingError(f"an answer of the batch has no usage: {line[:200].decode(errors='replace')}") from None
        return cls(requests=len(counted), tokens=sum(counted), seconds=seconds)


@dataclass(frozen=True, slots=True)
class BatchApi:
    """The server at `url`. Raises ServingError, and urllib's OSError."""

    url: str

    def begin(self, bodies: Sequence[dict[str, Any]]) -> str:
        """Send these completions as a batch; its id, once it is being worked on."""
        lines = [
            json.dumps({"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body})
            for number, body in enumerate(bodies)
        ]
        file = self._upload("\n".join(lines).encode())
        asked = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h"}
        batch = str(self._asked("POST", "/v1/batches", json.dumps(asked).encode())["id"])
        self._wait(batch, ("in_progress", "finalizing", "completed"))
        return batch

    def end(self, batch: str, seconds: float) -> Progress:
        """Cancel it; what it had answered, which was in `seconds`. Raises ServingError where answers were errors."""
        state = self._asked("GET", f"/v1/batches/{batch}")
        if state["status"] == "in_progress":
            self._asked("POST", f"/v1/batches/{batch}/cancel", b"{}")
        state = self._wait(batch, ("cancelled", "completed"))
        if state["request_counts"]["failed"]:
            raise ServingError(f"{state['request_counts']['failed']} requests of the batch failed")
        output = state["output_file_id"]
        lines = self._read("GET", f"/v1/files/{output}/content").splitlines() if output else []
        for file in (state["input_file_id"], output, state["error_file_id"]):
            if file:
                self._asked("DELETE", f"/v1/files/{file}")
        return Progress.of(lines, seconds)

    def _wait(self, batch: str, wanted: Sequence[str]) -> dict[str, Any]:
        deadline = time.monotonic() + _LONGEST_SECONDS
        while (state := self._asked("GET", f"/v1/batches/{batch}"))["status"] not in wanted:
            if time.monotonic() > deadline or state["status"] in ("failed", "expired"):
                raise ServingError(f"the batch is {state['status']}, and not {' or '.join(wanted)}: {state['errors']}")
            time.sleep(_POLL_SECONDS)
        return state

    def _upload(self, content: bytes) -> str:
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\n'
        head += 'Content-Disposition: form-data; name="file"; filename="asked.jsonl"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return str(self._asked("POST", "/v1/files", body, f"multipart/form-data; boundary={boundary}")["id"])

    def _asked(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        return dict(json.loads(self._read(method, path, body, kind)))

    def _read(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=_LONGEST_SECONDS) as answer:
            return bytes(answer.read())
