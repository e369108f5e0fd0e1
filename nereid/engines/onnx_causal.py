"""A decoder-only ONNX engine with its KV cache: prefill by chunks, decode of many rows, all in place; knows no requests.

The graph is what `nereid export llm` makes of onnxruntime-genai's: `input_ids`, `attention_mask`, `logits_to_keep`, and
`past_key_values.N.{key,value}` that are read and, as `present.N.{key,value}`, written in the same buffers. With adapters it has
an input `adapters`, too, and where the export kept them an output `hidden_states`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from nereid.engines.adapters import ADAPTERS
from nereid.engines.hidden_states import HIDDEN_STATES
from nereid.engines.kv_cache import DeviceMemory, HostMemory

_WIDTH_STEP = 32
_ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(slots=True, eq=False)
class OnnxCausalEngine:
    """One session and a KV cache of a fixed number of slots, one a token, arranged as rows of equal capacity.

    `tokens` slots are divided into `rows` rows of `capacity`; `arrange` changes the division, the memory stays the same.

    Kernels take 32 rows at a time and round a single row differently from several. So the memory begins with a scratch row,
    beside which a lone row is computed, and a lone appended token is followed by a padding one: a row's logits are the same bits
    in any batch, and a prompt's the same bits in any chunks. (Attention of one new token is rounded differently from that of
    several: logits of `decode` and of `extend` agree to rounding only.) Without `batch_invariant` this is left out: a lone
    row is quicker, and rounded in its own way.
    """

    session: ort.InferenceSession
    tokens: int
    layers: int
    kv_heads: int
    head_size: int
    vocabulary: int
    dtype: type
    logits_dtype: type
    memory: HostMemory | DeviceMemory
    batch_invariant: bool = True
    has_adapters: bool = False
    states_width: int = 0
    """Of a token's last hidden state; 0 where the export kept none."""
    rows: int = 0
    capacity: int = 0
    _flat: list[Any] = field(default_factory=list)
    _views: list[Any] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _decoding: dict[int, _Binding] = field(default_factory=dict)
    _extending: dict[int, _Binding] = field(default_factory=dict)

    @classmethod
    def load(
        cls, file: Path, *, tokens: int, threads: int = 0, gpu: int | None = None, batch_invariant: bool = True
    ) -> OnnxCausalEngine:
        """Open the engine and reserve its KV cache, on graphics card `gpu` where one is given.

        `threads` 0 lets ONNX Runtime choose. Raises ValueError where the graph is not one of ours, or there is no such card.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Threads wait for one another spinning within a call, but not between two: the sampler and the server need them then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(str(file), options, providers=_providers(gpu))
        inputs = {item.name: item for item in session.get_inputs()}
        past = [name for name in inputs if re.fullmatch(r"past_key_values\.\d+\.(key|value)", name)]
        missing = {"input_ids", "attention_mask", "logits_to_keep"} - set(inputs)
        if missing or not past:
            raise ValueError(f"{file}: the graph lacks {', '.join(sorted(missing)) or 'past_key_values'}")
        sample = inputs[past[0]]
        outputs = {item.name: item for item in session.get_outputs()}
        logits = outputs["logits"]
        engine = cls(
            session=session,
            tokens=tokens,
            layers=len(past) // 2,
            kv_heads=sample.shape[1],
            head_size=_head_size(file, sample.shape[3]),
            vocabulary=logits.shape[2],
            dtype=_ELEMENTS[sample.type],
            logits_dtype=_ELEMENTS[logits.type],
            memory=HostMemory() if gpu is None else DeviceMemory("cuda", gpu),
            batch_invariant=batch_invariant,
            has_adapters=ADAPTERS in inputs,
            states_width=outputs[HIDDEN_STATES].shape[2] if HIDDEN_STATES in outputs else 0,
        )
        engine._names = past
        engine._flat = [engine.memory.zeros(tokens * engine.kv_heads * engine.head_size, engine.dtype) for _ in past]
        return engine

    def arrange(self, rows: int, capacity: int, lengths: Sequence[int] = ()) -> None:
        """Divide the memory again; the first `lengths[i]` slots of row i keep their contents."""
        if (rows + 1) * capacity > self.tokens:
            raise ValueError(f"{rows + 1} rows of {capacity} slots are more than the {self.tokens} there are")
        longest = max(lengths, default=0)
        made = []
        for flat, old in zip(self._flat, self._views or self._flat, strict=True):
            kept = self.memory.copy(old[1 : 1 + len(lengths), :, :longest]) if lengths else None
            shape = (rows + 1, self.kv_heads, capacity, self.head_size)
            view = flat[: math.prod(shape)].reshape(shape)
            if kept is not None:
                view[1 : 1 + len(lengths), :, :longest] = kept
            made.append(view)
        self._views, self.rows, self.capacity = made, rows, capacity
        self._decoding.clear()
        self._extending.clear()

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` slots over another row's."""
        for view in self._views:
            view[target + 1, :, :length] = view[source + 1, :, :length]

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` slots of two rows."""
        for view in self._views:
            kept = self.memory.copy(view[first + 1, :, :length])
            view[first + 1, :, :length] = view[second + 1, :, :length]
            view[second + 1, :, :length] = kept

    def read(self, row: int, start: int, end: int) -> NDArray:
        """The KV of slots start to end: (2 x layers) x heads x slots x head size, a copy."""
        return self.memory.read([view[row + 1, :, start:end] for view in self._views])

    def write(self, row: int, start: int, block: NDArray) -> None:
        """Put back what `read` gave."""
        for view, values in zip(self._views, block, strict=True):
            self.memory.write(view[row + 1, :, start : start + values.shape[1]], values)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], adapters: Sequence[int] = ()) -> NDArray[np.float32]:
        """One token for each of the first rows, in slot `lengths[i]`; logits: rows x vocabulary, valid until the next call.

        `adapters`: by which adapter each row is computed, counted from 1; 0, or none at all, is the model itself.
        """
        count = len(tokens)
        first = 0 if self._leaves_one(count) else 1
        width = self._width(max(lengths) + 1)
        bound = self._decoding.get(count)
        if bound is None or bound.width != width:
            bound = self._decoding[count] = self._bind(slice(first, count + 1), 1, 1, width)
        bound.input_ids[1 - first :, 0] = tokens
        for row, length in enumerate(lengths, 1 - first):
            bound.fill(row, length + 1)
        bound.adapters[1 - first :] = adapters or 0
        if first == 0:
            bound.fill(0, 1)
        return self._run(bound)[1 - first :, 0]

    def extend(self, row: int, start: int, tokens: Sequence[int], keep: int = 1, adapter: int = 0) -> NDArray[np.float32]:
        """Append tokens to a row that holds `start`; logits of the last `keep` of them: keep x vocabulary.

        The slot after the last token is overwritten, so `capacity` must leave one free.
        """
        padding = 1 if self._leaves_one(len(tokens)) else 0
        kept = max(2 if self.batch_invariant else 1, keep + padding)
        bound = self._extension(row, start, tokens, padding, kept, adapter, states=False)
        return self._run(bound)[0, kept - padding - keep : kept - padding]

    def read_states(self, row: int, start: int, tokens: Sequence[int], adapter: int = 0) -> NDArray[np.float32]:
        """Append tokens as `extend` does; the last hidden states of all of them: tokens x width."""
        padding = 1 if self._leaves_one(len(tokens)) else 0
        bound = self._extension(row, start, tokens, padding, 1, adapter, states=True)
        self._run(bound)
        assert bound.states is not None
        return bound.states[0, : len(tokens)].astype(np.float32, copy=False)

    def _extension(
        self, row: int, start: int, tokens: Sequence[int], padding: int, kept: int, adapter: int, *, states: bool
    ) -> _Binding:
        count = len(tokens) + padding
        wanted = count, kept, self._width(start + count), states
        bound = self._extending.get(row)
        if bound is None or (bound.input_ids.shape[1], bound.logits.shape[1], bound.width, bound.states is not None) != wanted:
            bound = self._extending[row] = self._bind(slice(row + 1, row + 2), count, kept, wanted[2], states=states)
        bound.input_ids[0, : len(tokens)] = tokens
        bound.fill(0, start + count)
        bound.adapters[0] = adapter
        return bound

    def _width(self, length: int) -> int:
        """Slots that a call's attention is told of: a little more than the longest row has, for buffers grow with them."""
        return min(-(-length // _WIDTH_STEP) * _WIDTH_STEP, self.capacity)

    def _leaves_one(self, rows: int) -> bool:
        """Whether the kernels would compute one row alone that must be computed as others are."""
        return self.batch_invariant and rows % 32 == 1

    def _run(self, bound: _Binding) -> NDArray[np.float32]:
        if self.memory.device != "cpu":  # what is bound from here goes to the card when it is bound, not when it is used
            for name, value in bound.inputs.items():
                bound.binding.bind_ortvalue_input(name, value)
        self.session.run_with_iobinding(bound.binding)
        return bound.logits.astype(np.float32, copy=False)

    def _bind(self, rows: slice, tokens: int, keep: int, width: int, *, states: bool = False) -> _Binding:
        count = rows.stop - rows.start
        binding = self.session.io_binding()
        input_ids = np.zeros((count, tokens), np.int64)
        logits: NDArray = np.zeros((count, keep, self.vocabulary), self.logits_dtype)
        keeping = np.arange(tokens - keep, tokens)
        mask = np.zeros((count, width), np.int64)
        adapters = np.zeros(count, np.int64)
        feeds = {"input_ids": input_ids, "attention_mask": mask, "logits_to_keep": keeping}
        if self.has_adapters:
            feeds[ADAPTERS] = adapters
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        out = ort.OrtValue.ortvalue_from_numpy(logits)
        binding.bind_ortvalue_output("logits", out)
        alive: tuple[object, ...] = (out, keeping)
        hidden: NDArray | None = None
        if states:
            hidden = np.zeros((count, tokens, self.states_width), self.dtype)
            out = ort.OrtValue.ortvalue_from_numpy(hidden)
            binding.bind_ortvalue_output(HIDDEN_STATES, out)
            alive = (*alive, out)
        for name, view in zip(self._names, self._views, strict=True):
            part = view[rows]
            where = (self.memory.device, self.memory.index, self.dtype, list(part.shape), self.memory.address(part))
            binding.bind_input(name, *where)
            binding.bind_output(name.replace("past_key_values", "present"), *where)
        return _Binding(binding, inputs, input_ids, mask, adapters, [0] * count, logits, alive, hidden)


def _providers(gpu: int | None) -> list[Any]:
    if gpu is None:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ValueError("instance_group: KIND_GPU needs the package onnxruntime-gpu and a CUDA device")
    return [("CUDAExecutionProvider", {"device_id": gpu}), "CPUExecutionProvider"]


@dataclass(frozen=True, slots=True, eq=False)
class _Binding:
    """A bound call; `alive` keeps the memory that the binding points to."""

    binding: ort.IOBinding
    inputs: dict[str, ort.OrtValue]
    input_ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    adapters: NDArray[np.int64]
    filled: list[int]
    logits: NDArray
    alive: tuple[object, ...]
    states: NDArray | None = None
    """Last hidden states, where they are wanted."""

    @property
    def width(self) -> int:
        return int(self.mask.shape[1])

    def fill(self, row: int, length: int) -> None:
        """Make the row's mask hold exactly `length` ones: mostly one more than before."""
        before = self.filled[row]
        if length > before:
            self.mask[row, before:length] = 1
        elif length < before:
            self.mask[row, length:before] = 0
        self.filled[row] = length


def _head_size(file: Path, declared: object) -> int:
    """The cache's last dimension, from llm.json where the graph leaves it open."""
    if isinstance(declared, int):
        return declared
    import json

    return int(json.loads((file.parent / "llm.json").read_text())["head_size"])
