"""Dynamic width and tokens: which slice of a transformer a step calls, by its timestep; knows no engine.

TDW of DyDiT (Zhao et al., 2024). Heads and MLP channels that a range of timesteps can do without are cut out of the transformer
when it is exported, which leaves an engine of its own for each range. A run goes by its own timesteps alone. Of the whole
transformer and of each slice there may be one more engine, whose MLPs pass over tokens (SDT): which, it decides itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class WidthEngine(StrEnum):
    """The engines that a step of a run with dynamic width may call, by how much they compute."""

    NARROW = "narrow"
    MEDIUM = "medium"
    WIDE = "wide"


class TokenEngine(StrEnum):
    """The same where MLPs pass over tokens: of the whole transformer, and of the slices."""

    WHOLE = "tokens"
    NARROW = "narrow_tokens"
    MEDIUM = "medium_tokens"
    WIDE = "wide_tokens"

    @classmethod
    def of(cls, width: WidthEngine) -> TokenEngine:
        return cls(f"{width}_{cls.WHOLE}")

    @property
    def width(self) -> WidthEngine | None:
        """The slice; None of the whole transformer."""
        return next((width for width in WidthEngine if TokenEngine.of(width) is self), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthTable:
    """Engines by timestep: `ranges` are (timestep up to, engine), rising; the last has no bound."""

    ranges: tuple[tuple[float, WidthEngine | TokenEngine], ...]

    def engine(self, timestep: float) -> WidthEngine | TokenEngine:
        return next(engine for most, engine in self.ranges if timestep <= most)

    @property
    def is_dynamic(self) -> bool:
        """Whether any of its engines is a slice; else all are the whole transformer."""
        return any(isinstance(engine, WidthEngine) or engine.width is not None for _, engine in self.ranges)

    @property
    def engines(self) -> tuple[WidthEngine | TokenEngine, ...]:
        """Those that a timestep has, the narrowest first."""
        named = {engine for _, engine in self.ranges}
        return tuple(engine for engine in (*WidthEngine, *TokenEngine) if engine in named)

    def passing_over_tokens(self) -> WidthTable:
        """The same ranges with the slices' engines whose MLPs pass over tokens."""
        return WidthTable(
            ranges=tuple((most, TokenEngine.of(its) if isinstance(its, WidthEngine) else its) for most, its in self.ranges)
        )

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> WidthTable:
        """What export's file has of it; raises ValueError where it is not what export writes."""
        try:
            ranges = [
                (math.inf if its["up_to"] is None else float(its["up_to"]), WidthEngine(its["engine"])) for its in raw["ranges"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"widths: they are not what export writes ({error!r}); export the model again") from None
        bounds = [most for most, _ in ranges]
        if not ranges or bounds != sorted(set(bounds)) or bounds[-1] != math.inf:
            raise ValueError(f"widths: timesteps up to {bounds} are not allowed; export the model again")
        return cls(ranges=tuple(ranges))

    def written(self) -> dict[str, Any]:
        """As `parse` reads it."""
        return {"ranges": [{"up_to": None if math.isinf(most) else most, "engine": str(engine)} for most, engine in self.ranges]}


WHOLE_WITH_TOKENS = WidthTable(ranges=((math.inf, TokenEngine.WHOLE),))
"""Of runs of the whole transformer whose MLPs pass over tokens."""
