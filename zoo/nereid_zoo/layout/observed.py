"""What the layers of a layout transformer are given while it draws, from which those with 8-bit products are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nereid_export.w4a8.inputs import Statistics
from nereid_zoo.layout.draw import Predict
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.timestep_ranges import Bounds, places_of

IN_BLOCK = ("qkv", "proj", "fc1", "fc2")
OF_CONDITION = ("time_embed.0", "time_embed.2", "canvas_embed.2", "condition", "last_condition")
"""Layers outside of blocks that are quantised."""
_ROWS = 8
"""Inputs of a layer that are kept of a call."""
MOST_ROWS = 1024
_EVERY = 16
"""Calls of which one is kept whole."""


def layer_names(transformer: LayoutTransformer) -> list[str]:
    """Those that are quantised."""
    return [*OF_CONDITION, *(f"blocks.{place}.{name}" for place in range(len(transformer.blocks)) for name in IN_BLOCK)]


@dataclass
class _Met:
    """Of one layer, over all calls so far."""

    low: Tensor
    high: Tensor
    gram: Tensor
    rows: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    @classmethod
    def none(cls, ranges: int, width: int) -> _Met:
        empty = torch.full((ranges, width), torch.inf)
        return cls(empty, -empty, torch.zeros(width, width, dtype=torch.float64))

    def add(self, rows: Tensor, places: Tensor, generator: torch.Generator) -> None:
        for place in torch.unique(places).tolist():
            own = rows[places == place]
            self.low[place] = torch.minimum(self.low[place], own.amin(0))
            self.high[place] = torch.maximum(self.high[place], own.amax(0))
        self.gram += rows.T @ rows
        chosen = torch.randperm(len(rows), generator=generator)[:_ROWS]
        self.rows.append(rows[chosen])
        self.places.append(places[chosen])

    def statistics(self) -> Statistics:
        seen = torch.isfinite(self.low[:, 0]).nonzero()[:, 0].numpy()
        nearest = [seen[np.abs(seen - place).argmin()] for place in range(len(self.low))]
        rows, places = torch.cat(self.rows), torch.cat(self.places)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
        return Statistics(
            low=self.low.numpy()[nearest].astype(np.float64),
            high=self.high.numpy()[nearest].astype(np.float64),
            gram=self.gram.numpy(),
            rows=rows[chosen].numpy(),
            places=places[chosen].numpy(),
        )


@dataclass(frozen=True, slots=True)
class Call:
    """Of a transformer in float32: its inputs, and the velocities that it gave; `valid` is B x N x 1."""

    inputs: Mapping[str, Tensor]
    velocities: Tensor
    valid: Tensor


@dataclass(slots=True)
class Observer:
    """A transformer in float32 whose layers' inputs are noted while it draws; padded tokens are not."""

    transformer: LayoutTransformer
    bounds: Bounds
    """Of the ranges of timesteps by which they are noted."""
    timesteps: Sequence[float] = ()
    """At which those of the layers of time and canvas are noted besides, with canvases of what is drawn: runs of other numbers of
    steps have other timesteps."""
    calls: list[Call] = field(default_factory=list)
    """Some of them."""
    _count: int = 0
    _canvases: list[Tensor] = field(default_factory=list)
    _met: dict[str, _Met] = field(default_factory=dict)
    _places: Tensor = field(default_factory=lambda: torch.zeros(0))
    _valid: Tensor = field(default_factory=lambda: torch.zeros(0))
    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @contextmanager
    def watching(self) -> Iterator[Predict]:
        """Within: what draws and is watched."""
        hooks = [
            self.transformer.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in layer_names(self.transformer)
        ]
        try:
            yield self._predict
            self._note_timesteps()
        finally:
            for hook in hooks:
                hook.remove()

    def statistics(self) -> dict[str, Statistics]:
        return {name: met.statistics() for name, met in self._met.items()}

    def _predict(self, inputs: Mapping[str, Any]) -> Any:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        self._places = places_of(given["timestep"], torch.tensor(self.bounds))
        self._valid = functional.pad(given["valid"], (1, 0), value=1.0) > 0
        with torch.inference_mode():
            made = self.transformer(**given)
        if self._count % _EVERY == self._count // _EVERY % _EVERY:  # another step each time
            self.calls.append(Call(given, made, given["valid"][..., None]))
        self._count += 1
        self._canvases.append(given["canvas"])
        return made.numpy()

    def _note_timesteps(self) -> None:
        if not self.timesteps:
            return
        canvases = torch.cat(self._canvases)
        for timesteps in torch.split(torch.tensor(self.timesteps), _ROWS):
            chosen = torch.randint(len(canvases), timesteps.shape, generator=self._generator)
            self._places = torch.zeros(len(timesteps), dtype=torch.int64)
            with torch.inference_mode():
                condition = self.transformer.conditioned(timesteps, canvases[chosen])
                self.transformer.condition(condition)
                self.transformer.last_condition(condition)

    def _hook(self, name: str) -> Callable[..., None]:
        ranged = name not in OF_CONDITION

        def met(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0]
            places = self._places
            if rows.ndim == 3:
                places, rows = places[:, None].expand(rows.shape[:2])[self._valid], rows[self._valid]
            places = places if ranged else torch.zeros_like(places)
            if name not in self._met:
                self._met[name] = _Met.none(1 + ranged * len(self.bounds), rows.shape[-1])
            self._met[name].add(rows, places, self._generator)

        return met
