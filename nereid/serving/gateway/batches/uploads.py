"""Files while they are sent: bounded before they are whole, with the words of their expiry; knows no route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from nereid.serving.gateway.batches.files import STORAGE_FULL, FileStore, StorageFullError
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.sent import Sent

SHORTEST_SECONDS, LONGEST_SECONDS = 3600, 2_592_000
"""In which a file may expire, as in OpenAI's API."""
ANCHOR = "created_at"
_FIELD = "expires_after"


class ExpiresAfter(Sent):
    """When a file expires: `seconds` after it was made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_SECONDS, le=LONGEST_SECONDS)


def expiry_of(fields: dict[str, str]) -> int | None:
    """Take `expires_after` out of a form's fields: in how many seconds, None: never; raises ApiError.

    OpenAI's form is `expires_after[anchor]` and `expires_after[seconds]`. Some packages write a dot, one object in JSON, or the
    seconds alone.
    """
    anchor, seconds = (_taken(fields, f"{_FIELD}[{name}]", f"{_FIELD}.{name}") for name in ("anchor", "seconds"))
    if (whole := fields.pop(_FIELD, None)) is not None:
        anchor, seconds = _whole(whole)
    if anchor is None and seconds is None:
        return None
    if anchor != ANCHOR:
        raise _refused("anchor", anchor, ANCHOR)
    if seconds is None or not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 10):
        raise _refused("seconds", seconds, f"{SHORTEST_SECONDS} to {LONGEST_SECONDS}")
    if not SHORTEST_SECONDS <= int(seconds) <= LONGEST_SECONDS:
        raise _refused("seconds", seconds, f"{SHORTEST_SECONDS} to {LONGEST_SECONDS}")
    return int(seconds)


def _taken(fields: dict[str, str], *names: str) -> str | None:
    found = [value for name in names if (value := fields.pop(name, None)) is not None]
    return found[0] if found else None


def _whole(text: str) -> tuple[str | None, str | None]:
    """Anchor and seconds of a field that holds both."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if type(value) is int:
        return ANCHOR, str(value)
    if not isinstance(value, dict) or value.keys() - {"anchor", "seconds"}:
        sentence = f"{_FIELD}: {text[:80]!r} is not allowed; it must have anchor and seconds"
        raise ApiError(400, sentence, param=_FIELD)
    anchor, seconds = value.get("anchor"), value.get("seconds")
    return None if anchor is None else str(anchor), None if seconds is None else str(seconds)


def _refused(name: str, sent: str | None, allowed: str) -> ApiError:
    what = "it is missing" if sent is None else f"{sent[:80]!r} is not allowed"
    return ApiError(400, f"{_FIELD}.{name}: {what}; it must be {allowed}", param=f"{_FIELD}.{name}")


def storage_full(error: StorageFullError, param: str) -> ApiError:
    """What a file or a batch is refused with where there is no room for it."""
    return ApiError(400, f"{error}; delete files that are not needed any more", param=param, code=STORAGE_FULL)


@dataclass(slots=True, eq=False)
class Uploads:
    """Those that are under way, used by one event loop: what they bring is bounded together with what is kept."""

    store: FileStore
    _coming: dict[str, int] = field(default_factory=dict)
    """Bytes by key."""

    @asynccontextmanager
    async def under_way(self, owner: str) -> AsyncIterator[Upload]:
        """One upload, for as long as this lasts."""
        await asyncio.to_thread(self.store.sweep)
        upload = Upload(self, owner, *await asyncio.to_thread(self.store.used, owner))
        try:
            yield upload
        finally:
            self._coming[owner] = self._coming.get(owner, 0) - upload.size
            if not self._coming[owner]:
                del self._coming[owner]

    def come(self, owner: str, size: int, used: int, used_together: int) -> None:
        """Note bytes of a key beside those that were `used` when they began to come; raises StorageFullError."""
        self._coming[owner] = self._coming.get(owner, 0) + size
        self.store.limits.check(owner, used + self._coming[owner], used_together + sum(self._coming.values()))


@dataclass(slots=True, eq=False)
class Upload:
    """One file that is sent; `used` and `used_together` were kept when it began."""

    uploads: Uploads
    owner: str
    used: int
    used_together: int
    size: int = 0

    def into(self, write: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """The same `write`, which raises StorageFullError where there is no room for more."""

        def bounded(piece: bytes) -> None:
            self.size += len(piece)
            self.uploads.come(self.owner, len(piece), self.used, self.used_together)
            write(piece)

        return bounded
