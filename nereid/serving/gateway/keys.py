"""API keys: each has a name, and may have limits of its own; knows no HTTP.

The file is TOML, a table for each key, named as metrics and logs are to call it:

    [alice]
    key = "a long random text"
    requests_per_minute = 60     # optional
    requests_at_once = 4         # optional
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import API_KEY

OWN_NAME = "default"
"""What the key in the environment is called."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-~]+")
_KEY_RULE = "it must be of ASCII characters that are seen, without spaces: no header could bring another one"
_LIMITS = ("requests_per_minute", "requests_at_once")


class RateLimitError(Exception):
    """A key has had what it may have; `seconds` is when to ask again."""

    def __init__(self, sentence: str, seconds: int) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class Caller:
    """One key's name, limits and use; used by one event loop. Requests a minute are a bucket that is filled steadily."""

    name: str
    requests_per_minute: int | None = None
    requests_at_once: int | None = None
    clock: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _filled: float = field(init=False)
    _inside: int = 0

    def __post_init__(self) -> None:
        self._left, self._filled = float(self.requests_per_minute or 0), self.clock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """One request, for as long as this lasts; raises RateLimitError."""
        if self.requests_at_once is not None and self._inside >= self.requests_at_once:
            raise RateLimitError(f"key {self.name}: {self._inside} requests are under way, the most it may have at once", 1)
        self._take()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _take(self) -> None:
        most = self.requests_per_minute
        if most is None:
            return
        now = self.clock()
        self._left, self._filled = min(float(most), self._left + (now - self._filled) * most / 60), now
        if self._left < 1:
            seconds = math.ceil((1 - self._left) * 60 / most)
            raise RateLimitError(f"key {self.name}: it may send {most} requests a minute; try again in {seconds} s", seconds)
        self._left -= 1

    def headers(self) -> dict[str, str]:
        """OpenAI's headers of what is left."""
        if self.requests_per_minute is None:
            return {}
        return {
            "x-ratelimit-limit-requests": str(self.requests_per_minute),
            "x-ratelimit-remaining-requests": str(int(self._left)),
        }


@dataclass(frozen=True, slots=True)
class Keys:
    """Whom a key belongs to. With none everybody may ask. Keys are kept as digests: how long a look-up takes tells nothing."""

    callers: Mapping[bytes, Caller] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, key: str, file: Path | None) -> Keys:
        """The environment's key, unless it is empty, and those of a file; raises ServingError that names what is wrong."""
        if key and not _KEY.fullmatch(key):
            raise ServingError(f"{API_KEY}: its value is not allowed; {_KEY_RULE}")
        callers = {_digest(key.encode()): Caller(OWN_NAME)} if key else {}
        for name, entry in _entries(file).items() if file is not None else ():
            digest = _digest(entry.pop("key").encode())
            if digest in callers:
                raise ServingError(f"{file}: {name} has the key that {callers[digest].name} has already")
            callers[digest] = Caller(name, **entry)
        return cls(callers)

    def caller(self, authorization: bytes, *, by_password: bool = False) -> Caller | None:
        """Who sends this header `Authorization`; None: nobody who may.

        `by_password`: the key may come as the password of HTTP's Basic scheme (RFC 7617), with any user's name.
        """
        kind, _, key = authorization.partition(b" ")
        if by_password and kind.lower() == b"basic":
            return self.callers.get(_digest(_password(key.strip())))
        return self.callers.get(_digest(key.strip())) if kind.lower() == b"bearer" else None


def _password(credentials: bytes) -> bytes:
    """That of a header's user and password; empty, which is nobody's key, where they cannot be read."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _entries(file: Path) -> dict[str, dict[str, Any]]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(f"--openai-keys: {file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not found:
        raise ServingError(f"--openai-keys: {file} has no keys; it must have a table for each, [NAME] with key = ...")
    for name, entry in found.items():
        where = f"--openai-keys: {file}, {name}"
        if not _NAME.fullmatch(name) or name == OWN_NAME:
            raise ServingError(f"{where}: not allowed as a name; it must be 1 to 64 of A-Z a-z 0-9 . _ -, not {OWN_NAME}")
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ServingError(f"{where}: it must be a table with key, a text")
        if not _KEY.fullmatch(entry["key"]):
            raise ServingError(f"{where}: its key is not allowed; {_KEY_RULE}")
        for option, value in entry.items():
            if option != "key" and option not in _LIMITS:
                raise ServingError(f"{where}: {option} is not known; known are key, {', '.join(_LIMITS)}")
            if option != "key" and (type(value) is not int or value < 1):
                raise ServingError(f"{where}: {option} {value!r} is not allowed; it must be an integer, at least 1")
    return found
