"""What an engine's call costs: t = a + b x rows for each key (variant and shape), learned while serving and kept on disk."""

from __future__ import annotations

import json
import logging
import math
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

_MEMORY = 0.97
"""What a past call counts for at each new one: an engine shares its machine, and its costs change with what else runs there."""
_LARGEST_SURPRISE = 3.0
"""A call that took longer than this many times what was expected was interrupted, and counts for no more."""


@dataclass(slots=True)
class Fit:
    """Least squares of seconds over rows, with fading memory; sums of weight, rows, seconds and their products."""

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_seconds: float = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        if self.weight > 3:
            seconds = min(seconds, _LARGEST_SURPRISE * self.predict(rows))
        for name, value in (
            ("weight", 1.0),
            ("rows", rows),
            ("seconds", seconds),
            ("rows_squared", rows * rows),
            ("rows_seconds", rows * seconds),
        ):
            setattr(self, name, _MEMORY * getattr(self, name) + value)

    def predict(self, rows: float) -> float:
        fixed, each = self.coefficients
        return fixed + each * rows

    @property
    def one_size(self) -> bool:
        """Calls of one size alone are remembered: a and b cannot be told apart."""
        return self._spread < 1e-3 * self.weight**2

    @property
    def _spread(self) -> float:
        return self.weight * self.rows_squared - self.rows**2

    @property
    def coefficients(self) -> tuple[float, float]:
        """a and b, neither below zero."""
        mean_rows, mean = self.rows / self.weight, self.seconds / self.weight
        if self.one_size:
            return 0.0, mean / mean_rows
        each = (self.weight * self.rows_seconds - self.rows * self.seconds) / self._spread
        each = min(max(each, 0.0), mean / mean_rows)
        return mean - each * mean_rows, each


@dataclass(slots=True, eq=False)
class StepCosts:
    """Safe between threads: one learns, others ask. With a `file`, starts from what an earlier process has learned."""

    file: Path | None = None
    _fits: dict[str, Fit] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.file is None or not self.file.is_file():
            return
        try:
            raw = json.loads(self.file.read_text())
            self._fits = {key: Fit(**{name: float(number) for name, number in fit.items()}) for key, fit in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s: not read, costs are learned again (%s)", self.file.name, error)

    def learn(self, key: str, rows: int, seconds: float) -> None:
        with self._lock:
            self._fits.setdefault(key, Fit()).learn(rows, seconds)

    def predict(self, key: str, rows: float) -> float:
        """Seconds of a call, or of one on average; NaN where nothing is known of the key."""
        with self._lock:
            fit = self._fits.get(key)
            return math.nan if fit is None or not fit.weight else fit.predict(rows)

    def known(self, key: str, rows: int) -> float:
        """As `predict`, but NaN for another size than the only one that was called: no guess to choose a size by, for the size
        that it makes seem good would be the only one for good."""
        with self._lock:
            fit = self._fits.get(key)
            if fit is None or not fit.weight:
                return math.nan
            another = abs(rows - fit.rows / fit.weight) > 0.5
            return math.nan if fit.one_size and another else fit.predict(rows)

    def coefficients(self) -> dict[str, tuple[float, float]]:
        """a and b of every key, in seconds."""
        with self._lock:
            return {key: fit.coefficients for key, fit in self._fits.items() if fit.weight}

    def save(self) -> None:
        """Write the file, if there is one; a reader sees the old one or the new one, whole."""
        if self.file is None:
            return
        with self._lock:
            text = json.dumps({key: asdict(fit) for key, fit in self._fits.items()})
        beside = self.file.with_suffix(".new")
        try:
            beside.write_text(text)
            beside.replace(self.file)
        except OSError as error:
            log.warning("%s: not written (%s)", self.file.name, error)
