"""A decoder-only OpenVINO engine with its KV cache in blocks: tokens of any sequences in one call; knows no requests.

The graph is what `nereid export llm --engine openvino` writes: `input_ids`, `position_ids`, `logits_to_keep`, with adapters also
`adapters`, and attention left open, which nereid.engines.paged_attention puts in. It gives `logits`, and where the export kept
them `hidden_states`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from nereid.engines.adapters import ADAPTERS
from nereid.engines.hidden_states import HIDDEN_STATES
from nereid.engines.kv_blocks import SCRATCH, Piece
from nereid.engines.openvino_graph import compile_graph
from nereid.engines.paged_attention import close

_KV_PRECISIONS = {"fp32": "f32", "int8": "u8"}
"""OpenVINO's names, by those that a config.pbtxt has for them."""

LARGEST_CALL = 512
"""Tokens of a call beyond which nothing is gained."""


@dataclass(slots=True, eq=False)
class OpenVinoCausalEngine:
    """One compiled graph and a KV cache of `blocks` blocks of `block_size` tokens, the scratch block among them.

    Kernels round a single row differently from several, attention one new token of a sequence differently from several (and
    fewer sequences of one new token each than there are `threads` differently from more), and products with quantised matrices
    many rows differently from few. So rows that are fewer have a companion in the scratch block, a lone token of a prompt is
    followed by a padding one, for which the table must have a place, and no call has more than `call_tokens` tokens, which is
    found by trying when the engine is loaded: a row's logits are the same bits in any company, a prompt's the same bits in any
    chunks. Without `batch_invariant` all this is left out.
    """

    request: Any
    blocks: int
    block_size: int
    block_bytes: int
    vocabulary: int
    batch_invariant: bool = True
    call_tokens: int = LARGEST_CALL
    """Of a call, the companion's not counted."""
    threads: int = 1
    has_adapters: bool = False
    states_width: int = 0
    """Of a token's last hidden state; 0 where the export kept none."""

    @classmethod
    def load(
        cls,
        file: Path,
        *,
        tokens: int,
        cached_bytes: int = 0,
        threads: int = 0,
        batch_invariant: bool = True,
        kv_cache_precision: str = "fp32",
    ) -> OpenVinoCausalEngine:
        """Compile the graph and reserve a KV cache of `tokens`, and of blocks for `cached_bytes` besides.

        `threads` 0 lets OpenVINO choose. `kv_cache_precision` is fp32 or int8, where a token is rounded with those of its block,
        so that what is written later changes what was before. Raises ValueError where the graph is not one of ours, or OpenVINO
        cannot compile it, MemoryError where the cache is larger than the memory.
        """
        wanted = _properties(threads, kv_cache_precision)
        compiled = compile_graph(ov.Core(), file, wanted, close)
        ports = {port.get_any_name(): port for port in compiled.inputs if "_cache." in port.get_any_name()}
        shapes = {name: [size.get_length() for size in list(port.get_partial_shape())[1:]] for name, port in ports.items()}
        block_size = shapes["value_cache.0"][1]
        block_bytes = sum(int(np.prod(shapes[name])) * port.get_element_type().size for name, port in ports.items())
        blocks = 1 + -(-tokens // block_size) + cached_bytes // block_bytes
        request = compiled.create_infer_request()
        for name, port in ports.items():
            try:
                cache = ov.Tensor(port.get_element_type(), ov.Shape([blocks, *shapes[name]]))
            except RuntimeError as error:  # its "bad_alloc"
                raise MemoryError(f"{blocks * block_bytes} bytes of KV cache") from error
            cache.data[...] = 0
            request.set_tensor(name, cache)
        vocabulary = compiled.output("logits").get_partial_shape()[1].get_length()
        used = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        adapted = any(ADAPTERS in port.get_names() for port in compiled.inputs)
        engine = cls(request, blocks, block_size, block_bytes, vocabulary, batch_invariant, threads=used, has_adapters=adapted)
        kept = [port for port in compiled.outputs if HIDDEN_STATES in port.get_names()]
        engine.states_width = kept[0].get_partial_shape()[1].get_length() if kept else 0
        if batch_invariant:
            engine.call_tokens = engine._largest_call() - len(engine._companion)
        return engine

    def run(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """One call for all pieces, or as few as `call_tokens` allows; the logits that they keep, piece after piece.

        They are valid until the next call.
        """
        return self.run_with_states(pieces)[0]

    def run_with_states(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The same, and the last hidden states of the pieces that want them: a row a token, piece after piece."""
        if not self.batch_invariant or sum(map(self._cost, pieces)) <= self.call_tokens:
            return self._run(pieces)
        made = []
        for call in self._split(pieces):
            logits, states = self._run(call)
            made.append((logits.copy(), states.copy()))
        return np.concatenate([logits for logits, _ in made]), np.concatenate([states for _, states in made])

    def _cost(self, piece: Piece) -> int:
        """Tokens that a piece has in a call, the padding one included."""
        return len(piece.tokens) + self._is_padded(piece)

    def _is_padded(self, piece: Piece) -> bool:
        return self.batch_invariant and len(piece.tokens) == 1 and not piece.decoded

    def _split(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """The pieces in parts, call by call."""
        call: list[Piece] = []
        room = self.call_tokens
        for piece in pieces:
            done = 0
            while done < len(piece.tokens):
                left = len(piece.tokens) - done
                if room < 2:
                    yield call
                    call, room = [], self.call_tokens
                count = min(left, room)
                keep = min(count, max(0, piece.keep - (left - count)))
                part = replace(piece, start=piece.start + done, tokens=piece.tokens[done : done + count], keep=keep)
                call.append(part)
                done += count
                room -= self._cost(part)
        if call:
            yield call

    def _run(self, pieces: Sequence[Piece]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        call = _Call(self.block_size)
        for piece in pieces:
            call.add(piece, [0] if self._is_padded(piece) else [])
        wanted = len(call.kept)
        if self.batch_invariant and len(call.tokens) == len(pieces) < max(2, self.threads):
            call.add(Piece((SCRATCH,), 0, self._companion, keep=0), [])
        if wanted < 2 and (self.batch_invariant or not wanted):  # the head, too, rounds a lone row differently
            call.kept.append((call.kept[0] + 1) % len(call.tokens) if wanted else 0)
        feeds = call.feeds()
        if self.has_adapters:
            feeds[ADAPTERS] = np.array(call.adapters, np.int64)
        made = self.request.infer(feeds, share_inputs=True, share_outputs=True)
        states = made[HIDDEN_STATES][call.stated] if call.stated else np.zeros((0, self.states_width), np.float32)
        return made["logits"][:wanted], states

    @property
    def _companion(self) -> tuple[int, ...]:
        """Tokens that make attention choose the kernel that it has for many sequences; two sequences are many for two threads."""
        return (0,) if self.threads <= 2 else (0, 0)

    def _largest_call(self) -> int:
        """How many tokens a call may have before a row is rounded differently from one in a call of few."""
        few = Piece((1,), 0, (1, 2), adapter=int(self.has_adapters))
        expected, largest = self._run([few])[0].copy(), 4
        while largest < LARGEST_CALL and 2 * largest <= (self.blocks - 2) * self.block_size:
            many = Piece(range(2, self.blocks), 0, [token % self.vocabulary for token in range(2 * largest - 2)])
            if not np.array_equal(self._run([few, many])[0][:1], expected):
                break
            largest *= 2
        return largest


@dataclass(slots=True)
class _Call:
    """The feeds of one call, sequence by sequence."""

    block_size: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    adapters: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    stated: list[int] = field(default_factory=list)
    """Tokens whose last hidden states are wanted."""
    starts: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=lambda: [0])
    blocks: list[int] = field(default_factory=list)
    block_begins: list[int] = field(default_factory=lambda: [0])
    longest: int = 0

    def add(self, piece: Piece, padding: list[int]) -> None:
        own = len(piece.tokens)
        end = piece.start + own + len(padding)
        needed = -(-end // self.block_size)
        if needed > len(piece.table):
            raise ValueError(f"a sequence of {end} tokens needs {needed} blocks, and its table has {len(piece.table)}")
        self.kept += range(len(self.tokens) + own - piece.keep, len(self.tokens) + own)
        self.stated += range(len(self.tokens), len(self.tokens) + own) if piece.states else ()
        self.tokens += [*piece.tokens, *padding]
        self.adapters += [piece.adapter] * (own + len(padding))
        self.positions += range(piece.start, end)
        self.starts.append(piece.start)
        self.begins.append(len(self.tokens))
        self.blocks += piece.table[:needed]
        self.block_begins.append(len(self.blocks))
        self.longest = max(self.longest, end)

    def feeds(self) -> dict[str, NDArray]:
        return {
            "input_ids": np.array(self.tokens, np.int64),
            "position_ids": np.array(self.positions, np.int64),
            "logits_to_keep": np.array(self.kept, np.int64),
            "past_lens": np.array(self.starts, np.int32),
            "subsequence_begins": np.array(self.begins, np.int32),
            "block_indices": np.array(self.blocks, np.int32),
            "block_indices_begins": np.array(self.block_begins, np.int32),
            "max_context_len": np.array(self.longest, np.int32),
        }


def _properties(threads: int, kv_cache_precision: str) -> dict[str, Any]:
    """Everything in float32, also on processors where OpenVINO would choose bfloat16 by itself."""
    made: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "KV_CACHE_PRECISION": _KV_PRECISIONS[kv_cache_precision],
    }
    return {**made, "INFERENCE_NUM_THREADS": threads} if threads else made
