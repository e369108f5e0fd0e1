"""A batch's input, line by line: what each asks for, or what is wrong with it; knows no store and no model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nereid.serving.gateway.bodies import SURROGATE
from nereid_protocol.json_lines import read_line, without_mark

MOST_LINES = 50_000
MOST_LINE_BYTES = 4 * 2**20
"""As much as a request's own body may have."""
MOST_PICTURE_LINE_BYTES = 32 * 2**20
"""The same of one with pictures in it."""
_WITH_PICTURES = ("/v1/images/edits",)
PART_BYTES = 2**20
"""Of a file that are looked at together: others wait for no more."""
MOST_PROBLEMS = 20
"""How many wrong lines are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request: where its line begins in the file, and what its caller calls it."""

    start: int
    custom_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a line, counted from 1; None: with the file."""

    message: str
    param: str | None
    line: int | None
    code: str = "invalid_request"


@dataclass(slots=True)
class CheckedLines:
    """A whole file: it is run where there are no problems."""

    lines: list[Line] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def whole_path(url: object) -> object:
    """A path of this API as it is here, where it was written without its first parts, as for Azure's; all else as it is."""
    if not isinstance(url, str):
        return url
    path = f"/{url.strip('/')}"
    return path if path.startswith("/v1/") else f"/v1{path}"


def read_body(file: Path, start: int) -> dict[str, Any]:
    """The body of the request whose line begins there; of a file that was checked."""
    with file.open("rb") as opened:
        opened.seek(start)
        body: dict[str, Any] = read_line(opened.readline())["body"]
    return body


@dataclass(slots=True, eq=False)
class Checking:
    """Looks at every line of a file for requests to `endpoint`, a part of the file at a time."""

    file: Path
    endpoint: str
    found: CheckedLines = field(default_factory=CheckedLines)
    _number: int = 0
    _start: int = 0
    _seen: set[str] = field(default_factory=set)

    @property
    def _most_bytes(self) -> int:
        return MOST_PICTURE_LINE_BYTES if self.endpoint in _WITH_PICTURES else MOST_LINE_BYTES

    def go_on(self) -> bool:
        """Look at the next part; whether that was the last. Raises OSError."""
        end = self._start + PART_BYTES
        for number, start, raw in _lines(self.file, self._number, self._start, self._most_bytes):
            self._number, self._start = number - 1, start
            if start >= end:
                return False
            if without_mark(raw).strip() and not self._take(raw, number, start):
                return True
        found = self.found
        if not found.lines and not found.problems:
            found.problems.append(Problem(message="the file has no requests", param=None, line=None, code="empty_file"))
        return True

    def _take(self, raw: bytes, number: int, start: int) -> bool:
        """Note a line; whether the next one is of interest."""
        lines, problems = self.found.lines, self.found.problems
        if len(lines) == MOST_LINES:
            message = f"the file has more than {MOST_LINES} requests"
            problems.append(Problem(message=message, param=None, line=None, code="too_many_requests"))
            return False
        found = _checked(raw, number, start, self.endpoint, self._seen, self._most_bytes)
        if isinstance(found, Problem):
            problems.append(found)
            return len(problems) < MOST_PROBLEMS
        self._seen.add(found.custom_id)
        lines.append(found)
        return True


def checked(file: Path, endpoint: str) -> CheckedLines:
    """Every line of a file for requests to `endpoint`."""
    checking = Checking(file, endpoint)
    while not checking.go_on():
        pass
    return checking.found


def _lines(file: Path, number: int, start: int, most: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of every line; of one that is too long as much as shows it.

    From `start` on, before which there are `number` lines.
    """
    with file.open("rb") as opened:
        opened.seek(start)
        while raw := opened.readline(most + 1):
            number += 1
            whole = len(raw)
            while raw[-1:] != b"\n" and (rest := opened.readline(most)):
                whole += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield number, start, raw
            start += whole


def _checked(raw: bytes, number: int, start: int, endpoint: str, seen: Collection[str], most: int) -> Line | Problem:
    def wrong(message: str, param: str | None = None, code: str = "invalid_request") -> Problem:
        return Problem(message=message if param is None else f"{param}: {message}", param=param, line=number, code=code)

    if len(raw) > most:
        return wrong(f"the line is larger than {most} bytes")
    try:
        value = read_line(raw)
    except UnicodeDecodeError:
        return wrong("the line is not UTF-8 text", code="invalid_json_line")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return wrong("the line is not a JSON object", code="invalid_json_line")
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 512:
        return wrong("it must be a string of 1 to 512 characters", "custom_id")
    if SURROGATE.search(custom_id):  # it can be kept nowhere
        return wrong("a text with half of a surrogate pair is not allowed; it must be Unicode", "custom_id")
    if custom_id in seen:
        return wrong(f"{custom_id[:80]!r} is not allowed; another line has it already", "custom_id", "duplicate_custom_id")
    if (method := value.get("method")) is not None and str(method).upper() != "POST":
        return wrong(f"{str(method)[:80]!r} is not allowed; it must be POST", "method")
    if whole_path(value.get("url")) != endpoint:
        return wrong(f"{str(value.get('url'))[:80]!r} is not allowed; it must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        return wrong("it must be an object", "body")
    if body.get("stream"):
        return wrong(f"{json.dumps(body['stream'])[:80]} is not allowed; an answer in a batch cannot be streamed", "body.stream")
    return Line(start=start, custom_id=custom_id)
