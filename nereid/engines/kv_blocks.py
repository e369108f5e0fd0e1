"""What is asked of an engine whose KV cache lies in blocks: pieces of sequences, each with its table of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SCRATCH = 0
"""The block in which a lone row's companion is computed; in no table."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that a call appends to one sequence, which holds `start` tokens in the blocks of `table`.

    The last `keep` of them give logits. `decoded`: a token whose logits and KV are rounded as decoding rounds them; one that is
    not is computed as a part of a prompt is, and the table must have a place for one more. `adapter`: see `adapters` beside this.
    `states`: what is wanted are the last hidden states of all of them, and `keep` is 0.
    """

    table: Sequence[int]
    start: int
    tokens: Sequence[int]
    keep: int = 1
    decoded: bool = False
    adapter: int = 0
    states: bool = False
