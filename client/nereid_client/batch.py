"""A file of requests, JSONL in OpenAI's form, sent one by one to any server with OpenAI's API; needs the standard library alone.

Answers are appended as they come, so a run that ended midway goes on where it was: what has its answer is not asked again.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nereid_client.addresses import AddressError, HttpAddress, is_own_time, why
from nereid_client.answer_file import AnswerFile
from nereid_client.batch_errors import BatchError
from nereid_protocol.json_lines import read_line, without_mark

_LATER = {408, 429, 500, 502, 503, 504}
"""Statuses after which the same request may go well."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_KEY = re.compile(r"[!-~]*")
_PATH = re.compile(r"/v1/[!-~]*")
"""What a request's line can hold."""


class NoJsonError(ValueError):
    """What has answered has not OpenAI's API; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go, and how."""

    server: HttpAddress
    api_key: str = field(default="", repr=False)
    timeout: float = 600.0

    @classmethod
    def of(cls, url: str, api_key: str = "", timeout: float = 600.0) -> Target:
        """`host:port`, or an address with http or https, which may end in /v1; raises BatchError."""
        if not _KEY.fullmatch(api_key):
            raise BatchError("the API key is not allowed: it must be of ASCII characters that are seen, without spaces")
        try:
            return cls(server=HttpAddress.of(url), api_key=api_key, timeout=timeout)
        except AddressError as error:
            raise BatchError(f"--url: {error}") from None

    def post(self, path: str, body: Any) -> tuple[int, str | None, float | None, Any]:
        """Status, request id, seconds to wait before the next try, and body.

        Raises OSError, http.client.HTTPException, and NoJsonError where an answer that went well is none.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        connection = self.server.connection(self.timeout)
        try:
            connection.request("POST", self.server.prefix + path, json.dumps(body), headers)
            response = connection.getresponse()
            raw = response.read()
            after = response.getheader("retry-after") or ""
            wait = float(after) if after.isdecimal() else None
            return response.status, response.getheader("x-request-id"), wait, _body(response.status, raw)
        finally:
            connection.close()


def _body(status: int, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        sentence = f"the answer is no JSON: {raw[:200].decode(errors='replace')}"
    if status == 200:  # somebody else's page: kept as an answer, it would never be asked for again
        raise NoJsonError(sentence)
    return {"error": {"message": sentence, "type": "server_error"}}


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input: where it begins, and what it is called."""

    custom_id: str
    start: int


def read_requests(file: Path) -> list[Request]:
    """Raises BatchError for the first line that is wrong, and for what cannot be read again where a request is sent."""
    if not file.is_file():
        raise BatchError(f"{file}: it is no regular file; requests must be in one, which is read again as each is sent")
    found: dict[str, Request] = {}
    for number, start, raw in _lines(file):
        try:
            value = read_line(raw)
        except UnicodeDecodeError:
            raise BatchError(f"{file}, line {number}: it is not UTF-8 text") from None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BatchError(f"{file}, line {number}: it is not a JSON object")
        custom_id = value.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            raise BatchError(f"{file}, line {number}: custom_id: it must be a string")
        if custom_id in found:
            raise BatchError(f"{file}, line {number}: custom_id: {custom_id!r} is not allowed; another line has it already")
        if (method := value.get("method")) is not None and str(method).upper() != "POST":
            raise BatchError(f"{file}, line {number}: method: {method!r} is not allowed; it must be POST")
        if not isinstance(value.get("url"), str) or not _PATH.fullmatch(value["url"]):
            raise BatchError(f"{file}, line {number}: url: it must be a path such as /v1/chat/completions")
        if not isinstance(value.get("body"), dict) or value["body"].get("stream"):
            raise BatchError(f"{file}, line {number}: body: it must be an object, and no stream")
        found[custom_id] = Request(custom_id, start)
    if not found:
        raise BatchError(f"{file}: it has no requests")
    return list(found.values())


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    with file.open("rb") as opened:
        start = 0
        for number, raw in enumerate(opened, 1):
            if without_mark(raw).strip():
                yield number, start, raw
            start += len(raw)


@dataclass(slots=True, eq=False)
class BatchRun:
    """Sends what is not answered, `at_once` requests together. Iterating runs it: each that is done, and whether it went well.

    Requests that a server cannot take now are tried again, `retries` times, after the time that it says. `trouble` is what was
    said of the last one that had no good answer, empty once one has; `failure` that of the last one that is done.
    """

    source: Path
    output: Path
    target: Target
    at_once: int = 8
    retries: int = 8
    _work: queue.SimpleQueue[Request] = field(default_factory=queue.SimpleQueue)
    _done: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    _stopped: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(init=False)
    trouble: str = field(init=False, default="")
    failure: str = field(init=False, default="")
    _answers: AnswerFile = field(init=False)

    def __post_init__(self) -> None:
        if self.output.exists() and self.output.samefile(self.source):
            raise BatchError(f"{self.output}: it is the file of the requests; answers must have another one")
        self.requests = read_requests(self.source)
        self._answers = AnswerFile.at(self.output)

    @property
    def left(self) -> list[Request]:
        return [request for request in self.requests if request.custom_id not in self._answers.answered]

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        left = self.left
        for request in left:
            self._work.put(request)
        for _ in range(min(self.at_once, len(left))):
            threading.Thread(target=self._work_off, daemon=True).start()
        try:
            for _ in left:
                line = self._done.get()
                self._answers.write(line)
                said = _trouble(line)
                self.failure = said or self.failure
                yield line["custom_id"], not said
        finally:
            self._stopped.set()
            self._answers.close()

    def _work_off(self) -> None:
        while not self._stopped.is_set():
            try:
                request = self._work.get_nowait()
            except queue.Empty:
                return
            try:
                line = self._answer(request)
            except Exception as error:  # whoever waits for this answer would wait for ever
                told = {"code": "client_error", "message": f"{type(error).__name__}: {error}"}
                line = _line(request, {"response": None, "error": told})
            self._done.put(line)

    def _answer(self, request: Request) -> dict[str, Any]:
        with self.source.open("rb") as opened:
            opened.seek(request.start)
            line = read_line(opened.readline())
        pause, tried = _FIRST_PAUSE, 0
        while True:
            wait: float | None = None
            told: dict[str, Any] = {"response": None, "error": None}
            try:
                status, request_id, wait, body = self.target.post(line["url"], line["body"])
                told["response"] = {"status_code": status, "request_id": request_id, "body": body}
            except (OSError, http.client.HTTPException) as error:
                status, told["error"] = 503, _failure(error, self.target)
            except NoJsonError as error:
                status = 200
                told["error"] = {"code": "invalid_answer", "message": str(error)}
            tried += 1
            self.trouble = _trouble(told)
            if status not in _LATER or tried > self.retries or self._stopped.is_set():
                return _line(request, told)
            self._stopped.wait(min(max(pause, wait or 0.0), _LONGEST_PAUSE))
            pause = min(2 * pause, _LONGEST_PAUSE)


def _failure(error: Exception, target: Target) -> dict[str, str]:
    """Why there is no answer."""
    host = target.server.host
    if isinstance(error, TimeoutError) and is_own_time(error):
        said = f"timeout: {host} has not answered within {target.timeout:g} s; raise --timeout"
        return {"code": "timeout_error", "message": said}
    return {"code": "connection_error", "message": f"{host} does not answer ({why(error)})"}


def _trouble(told: dict[str, Any]) -> str:
    """The sentence of an error; empty where there is none."""
    if told["error"] is not None:
        return str(told["error"]["message"])
    if told["response"]["status_code"] == 200:
        return ""
    body = told["response"]["body"]
    error = body.get("error") if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else None
    return str(said) if said else f"status {told['response']['status_code']}"


def _line(request: Request, told: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": request.custom_id, **told}
