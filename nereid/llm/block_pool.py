"""Who uses which block of a paged KV cache, and what is known to be in it; knows neither engines nor sequences.

A block whose content is known (the whole prefix up to its end, by which adapter it was computed, and for which salt, see
nereid.llm.prefix_cache) is found by it and shared: nothing is copied. One that nobody uses keeps its content until its place is
needed; the one unused for longest goes first, and of one prefix the last block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.llm.prefix_cache import block_keys


@dataclass(frozen=True, slots=True)
class _Known:
    """The key of a block's prefix, and its own tokens."""

    key: bytes
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class BlockPool:
    """Blocks 1 to `blocks` - 1 of `block_size` tokens each. Used by one thread."""

    blocks: int
    block_size: int
    _users: dict[int, int] = field(default_factory=dict)
    _free: list[int] = field(init=False)
    _unused: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _known: dict[int, _Known] = field(default_factory=dict)
    _by_key: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = list(range(self.blocks - 1, 0, -1))

    @property
    def available(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free) + len(self._unused)

    def match(self, tokens: Sequence[int], adapter: int = 0, salt: str = "") -> list[int]:
        """The longest run of leading blocks that is known; never all of `tokens`: one must be left to compute logits from."""
        found = []
        for key, own in block_keys(tokens[:-1], self.block_size, adapter, salt):
            block = self._by_key.get(key)
            if block is None or self._known[block].tokens != own:
                break
            found.append(block)
        return found

    def take(self, shared: Sequence[int], more: int) -> list[int] | None:
        """Use the `shared` blocks, and `more` besides; None, and nothing is taken, where there are not so many."""
        if more > self.available - sum(block in self._unused for block in shared):
            return None
        for block in shared:
            self._unused.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1
        return [*shared, *(self._fresh() for _ in range(more))]

    def give_back(self, table: Sequence[int]) -> None:
        """One user fewer for each block of a sequence; the last first, so that it is the first to lose its content."""
        for block in reversed(table):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._known:
                self._unused[block] = None
            else:
                self._free.append(block)

    def remember(self, tokens: Sequence[int], table: Sequence[int], adapter: int = 0, salt: str = "") -> None:
        """The blocks of `table` hold `tokens`; what is known in another block already stays known there."""
        for (key, own), block in zip(block_keys(tokens, self.block_size, adapter, salt), table, strict=False):
            if key not in self._by_key and block not in self._known:
                self._by_key[key] = block
                self._known[block] = _Known(key, own)

    def _fresh(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._unused.popitem(last=False)
            del self._by_key[self._known.pop(block).key]
        self._users[block] = 1
        return block
