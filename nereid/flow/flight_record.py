"""Which requests were inside a process when it died: a small file that outlives it; knows nothing of what a request asks.

A request is known by a digest of what it asks for, so that its second try is the same request. `enter` when work on it begins,
`wait` when it waits its turn, `leave` when it has been answered. The next process that opens the file finds who was inside:
these are suspects and are to be run one at a time; one that was inside alone, at its second death, is refused from then on.

The file is a row of slots in shared memory (mmap): what is written there is kept when the process dies, at whatever moment, for
the kernel keeps the pages; only the machine's own death may lose them. A slot's digest is written before its state, and the
state with the count of deaths as one word.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nereid.flow.errors import PoisonousRequestError
from nereid.flow.state_folder import state_file

DIGEST_BYTES = 16
SLOTS = 1024
_SLOT = struct.Struct(f"{DIGEST_BYTES}sHB5x")
_FREE, _SUSPECT, _INSIDE, _REFUSED = range(4)
NOT_ASKED_FOR = ("run_id", "ticket", "timeout_seconds", "priority", "deadline_seconds", "stream_interval")
"""Inputs that say nothing of what is made: a request that is tried again has the same others."""


def forgive_all(folder: Path) -> None:
    """For whoever has ended the processes whose records lie in this folder: none of the requests inside is to blame."""
    for file in folder.glob("*.flight"):
        record = FlightRecord.at(file, judge=False)
        record.forgive()
        record.close()


def digest_of(parts: Iterable[bytes]) -> bytes:
    """The digest of a request from what it asks for, in a fixed order; not from its id, its deadline or its time."""
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.digest()


def digest_of_inputs(inputs: Mapping[str, np.ndarray], without: Collection[str]) -> bytes:
    """The digest of a request from its tensors, but those that say nothing of what is asked for."""
    asked = [(name, inputs[name]) for name in sorted(inputs) if name not in without]
    return digest_of(
        part
        for name, value in asked
        for part in (name.encode(), repr(value.tolist()).encode() if value.dtype == np.object_ else value.tobytes())
    )


@dataclass(slots=True)
class _Entry:
    slot: int
    inside: int = 0
    deaths: int = 0
    refused: bool = False


@dataclass(slots=True, eq=False)
class FlightRecord:
    """One model's record. Safe to use from several threads of one process; one process at a time has it open.

    More than 1,024 digests at once are not noted: they run like any other, and are no suspects later.
    """

    _memory: mmap.mmap
    _entries: dict[bytes, _Entry] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, model: str) -> FlightRecord | None:
        """The record of this model in the state folder; None where there is no such folder."""
        file = state_file(f"{model}.flight")
        return None if file is None else cls.at(file)

    @classmethod
    def at(cls, file: Path, *, judge: bool = True) -> FlightRecord:
        """Open the file or make it, and (with `judge`) blame those who were inside when the last process died."""
        size = SLOTS * _SLOT.size
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(handle).st_size != size:
                os.ftruncate(handle, 0)
                os.ftruncate(handle, size)
            record = cls(mmap.mmap(handle, size))
        finally:
            os.close(handle)
        record._read(judge)
        return record

    @property
    def suspects(self) -> frozenset[bytes]:
        """Those who were inside at a death and have not been answered since: to be run one at a time."""
        with self._lock:
            return frozenset(digest for digest, entry in self._entries.items() if entry.deaths and not entry.refused)

    def is_suspect(self, digest: bytes) -> bool:
        with self._lock:
            entry = self._entries.get(digest)
            return entry is not None and entry.deaths > 0 and not entry.refused

    def is_refused(self, digest: bytes) -> bool:
        """Whether it was alone inside at its second death."""
        with self._lock:
            entry = self._entries.get(digest)
            return entry is not None and entry.refused

    def enter(self, digest: bytes) -> None:
        """Work on it begins. The same request may be inside several times."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                if not self._free:
                    return
                entry = self._entries[digest] = _Entry(self._free.pop())
            entry.inside += 1
            self._write(digest, entry)

    def wait(self, digest: bytes) -> None:
        """Nothing is done for it for a while: a death is none of its doing; whether it is a suspect is kept."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.refused:
                return
            entry.inside = max(0, entry.inside - 1)
            if entry.inside or entry.deaths:
                self._write(digest, entry)
            else:
                self._forget(digest, entry)

    def leave(self, digest: bytes) -> None:
        """It has been answered, well or not: it has killed nobody, and is no suspect any more."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.refused:
                return
            entry.inside = max(0, entry.inside - 1)
            if not entry.inside:
                self._forget(digest, entry)

    def forgive(self) -> None:
        """Nobody is to blame for the next end of this process: it is ended from outside, with requests inside."""
        with self._lock:
            for digest, entry in list(self._entries.items()):
                entry.inside = 0
                if entry.refused or entry.deaths:
                    self._write(digest, entry)
                else:
                    self._forget(digest, entry)

    def close(self) -> None:
        self._memory.close()

    def _forget(self, digest: bytes, entry: _Entry) -> None:
        self._memory[entry.slot * _SLOT.size + DIGEST_BYTES + 2] = _FREE
        self._free.append(entry.slot)
        del self._entries[digest]

    def _read(self, judge: bool) -> None:
        found = [_SLOT.unpack_from(self._memory, slot * _SLOT.size) for slot in range(SLOTS)]
        self._free = [slot for slot, (_, _, state) in enumerate(found) if state not in (_SUSPECT, _INSIDE, _REFUSED)]
        inside = sum(state == _INSIDE for _, _, state in found)
        for slot, (digest, deaths, state) in enumerate(found):
            if state not in (_SUSPECT, _INSIDE, _REFUSED):
                continue
            died = min(deaths + (state == _INSIDE and judge), 2**16 - 1)
            refused = state == _REFUSED or (state == _INSIDE and judge and inside == 1 and died >= 2)
            entry = self._entries[digest] = _Entry(slot, int(state == _INSIDE and not judge), died, refused)
            if judge:
                self._write(digest, entry)

    def _write(self, digest: bytes, entry: _Entry) -> None:
        state = _REFUSED if entry.refused else _INSIDE if entry.inside else _SUSPECT
        place = entry.slot * _SLOT.size
        self._memory[place : place + DIGEST_BYTES] = digest
        word = slice(place + DIGEST_BYTES, place + DIGEST_BYTES + 4)  # one aligned word: written whole or not at all
        self._memory[word] = _SLOT.pack(digest, entry.deaths, state)[DIGEST_BYTES : DIGEST_BYTES + 4]


@dataclass(slots=True)
class Flight:
    """One request's part in the record, where there is one: entered and left once, however often it is told."""

    record: FlightRecord | None
    digest: bytes
    inside: bool = False

    @classmethod
    def of(cls, record: FlightRecord | None, inputs: Mapping[str, np.ndarray], model: str) -> Flight:
        """Of a request to `model`; raises PoisonousRequestError where that has died of it twice."""
        flight = cls(record, digest_of_inputs(inputs, NOT_ASKED_FOR))
        if flight.is_refused:
            raise PoisonousRequestError(f"the request was alone in `{model}` when it died, twice; it is not tried a third time")
        return flight

    @property
    def is_suspect(self) -> bool:
        """It was inside when this process died before: it is to run alone."""
        return self.record is not None and self.record.is_suspect(self.digest)

    @property
    def is_refused(self) -> bool:
        """It has ended this process before, twice."""
        return self.record is not None and self.record.is_refused(self.digest)

    def enter(self) -> None:
        if self.record is not None and not self.inside:
            self.record.enter(self.digest)
            self.inside = True

    def wait(self) -> None:
        if self.record is not None and self.inside:
            self.record.wait(self.digest)
        self.inside = False

    def leave(self) -> None:
        if self.record is not None and self.inside:
            self.record.leave(self.digest)
        self.inside = False
