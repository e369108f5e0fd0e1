"""KV of token blocks seen before, found by content: least recently used out first, within a budget of bytes.

Of one prefix the last block goes first: the others are found without it, and it is not found without them. A block's key is
the hash of its parent's key and of its own tokens, so a key stands for the whole prefix (the idea of vLLM's automatic prefix
caching), for the adapter that it was computed by: the same tokens have another KV under another one, and for the caller's salt
(vLLM's `cache_salt`): who does not send it finds nothing, and cannot tell by the time of an answer what others have sent. SHA-256
makes collisions practically impossible; the tokens are compared all the same.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Tokens in a block."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One block's tokens and their KV (token slots are the last axis but one)."""

    tokens: tuple[int, ...]
    values: NDArray


def block_keys(
    tokens: Sequence[int], size: int = BLOCK, adapter: int = 0, salt: str = ""
) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Key and tokens of every full block, in order."""
    key = adapter.to_bytes(8, "little")
    if salt:
        key = hashlib.sha256(key + salt.encode("utf-8", "surrogatepass")).digest()
    for start in range(0, len(tokens) - size + 1, size):
        own = tuple(tokens[start : start + size])
        key = hashlib.sha256(key + np.asarray(own, np.int64).tobytes()).digest()
        yield key, own


@dataclass(slots=True)
class PrefixCache:
    """`budget` 0 switches it off. Used by one thread."""

    budget: int
    used: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    _blocks: OrderedDict[bytes, Block] = field(default_factory=OrderedDict)

    def match(self, tokens: Sequence[int], adapter: int = 0, salt: str = "", *, counted: bool = True) -> list[Block]:
        """The longest run of leading blocks that is kept; never all of `tokens`: one must be left to compute logits from."""
        found: dict[bytes, Block] = {}
        if not self.budget:
            return []
        for key, own in block_keys(tokens[:-1], adapter=adapter, salt=salt):
            block = self._blocks.get(key)
            if block is None or block.tokens != own:
                break
            found[key] = block
        self._use(found)
        if counted:
            self.queried_tokens += len(tokens)
            self.hit_tokens += BLOCK * len(found)
        return list(found.values())

    def insert(self, tokens: Sequence[int], read: Callable[[int, int], NDArray], adapter: int = 0, salt: str = "") -> None:
        """Keep the full blocks of `tokens`, the first as far as the budget goes; `read(start, end)` is asked for new ones."""
        chain = list(block_keys(tokens, adapter=adapter, salt=salt)) if self.budget else []
        for key, _ in chain:
            if key in self._blocks:
                self._blocks.move_to_end(key)  # what is dropped below is another's
        held, kept = 0, []
        for number, (key, own) in enumerate(chain):
            block = self._blocks.get(key) or Block(own, read(number * BLOCK, (number + 1) * BLOCK))
            held += block.values.nbytes
            if held > self.budget:
                break
            kept.append(key)
            if key not in self._blocks:
                self._blocks[key] = block
                self.used += block.values.nbytes
                while self.used > self.budget:
                    self.used -= self._blocks.popitem(last=False)[1].values.nbytes
        self._use(kept)

    def _use(self, chain: Iterable[bytes]) -> None:
        """Note a use of a prefix, its last block first: so a block is dropped after those that need it."""
        for key in reversed(list(chain)):
            self._blocks.move_to_end(key)

    def __len__(self) -> int:
        return len(self._blocks)
