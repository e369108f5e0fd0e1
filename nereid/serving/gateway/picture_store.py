"""Pictures that callers fetch by an address: in memory, each for a while, bounded by bytes of a key and of all; no HTTP."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """A file as it is given out, until `expires`, of the store's clock."""

    data: bytes
    media_type: str
    expires: float
    owner: str


@dataclass(slots=True, eq=False)
class PictureStore:
    """Used by one event loop. Who knows a name may have the picture: it has 192 random bits.

    Where a key has too many bytes, its oldest go. Where all have too many, the oldest of the key that has most go: those of
    others make no room for it, but where it has none beside those of the answer that is being given.
    """

    seconds: float
    most_bytes: int
    """Of one key."""
    most_bytes_together: int
    clock: Callable[[], float] = time.monotonic
    held_bytes: int = 0
    """What all pictures take together; other threads may read it."""
    _kept: OrderedDict[str, KeptPicture] = field(default_factory=OrderedDict)
    _bytes: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, owner: str, data: bytes, media_type: str, beside: Collection[str] = ()) -> str:
        """Its name, under which it is found for `seconds`, unless it has more bytes than `largest`, or newer ones need room.

        `beside`: names of the same answer, which make none.
        """
        self.sweep()
        name = f"{secrets.token_urlsafe(24)}.{media_type.rpartition('/')[2]}"
        self._kept[name] = KeptPicture(data, media_type, self.clock() + self.seconds, owner)
        self._bytes[owner] = self._bytes.get(owner, 0) + len(data)
        self.held_bytes += len(data)
        given = {*beside, name}
        while self._bytes.get(owner, 0) > self.most_bytes:
            self._drop(self._oldest(given, owner) or name)
        while self.held_bytes > self.most_bytes_together:
            most = max(self._bytes, key=lambda key: self._bytes[key])
            self._drop(self._oldest(given, most) or self._oldest(given) or name)
        return name

    @property
    def largest(self) -> int:
        """Bytes that pictures of one answer may have."""
        return min(self.most_bytes, self.most_bytes_together)

    def find(self, name: str) -> KeptPicture | None:
        """None for one whose time is over, too."""
        self.sweep()
        return self._kept.get(name)

    def sweep(self) -> None:
        """Forget those whose time is over."""
        now = self.clock()
        while self._kept and next(iter(self._kept.values())).expires <= now:
            self._drop(next(iter(self._kept)))

    def _oldest(self, without: Collection[str], owner: str | None = None) -> str | None:
        """Of a key, or of all."""
        found = (name for name, picture in self._kept.items() if owner in (None, picture.owner))
        return next((name for name in found if name not in without), None)

    def _drop(self, name: str) -> None:
        picture = self._kept.pop(name)
        self.held_bytes -= len(picture.data)
        self._bytes[picture.owner] -= len(picture.data)
        if not self._bytes[picture.owner]:
            del self._bytes[picture.owner]
