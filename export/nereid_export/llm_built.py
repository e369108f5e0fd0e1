"""What building a language model's engine gives, whichever engine it is: its figures, for the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from nereid_export.frame import Progress
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_options import LlmExportOptions
from nereid_export.llm_quantize import MatrixError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """`matrices` are what could be quantised, worst first; `eight_bit` names those kept in 8 bits of an int4 engine.

    `checks` is the comparison with PyTorch, `adapters` the same with each adapter.
    """

    matrices: Sequence[MatrixError]
    eight_bit: Sequence[str]
    checks: dict[str, Any]
    adapters: Sequence[dict[str, Any]] = ()

    def figures(self) -> dict[str, Any]:
        made = {**self.checks, "eight_bit": list(self.eight_bit), "matrices": [asdict(error) for error in self.matrices]}
        return {**made, "adapters": list(self.adapters)} if self.adapters else made


class EngineBuilder(Protocol):
    """One file for each engine."""

    packages: tuple[str, ...]
    """Whose versions the manifest names."""
    files: tuple[str, ...]
    """What it leaves, as patterns."""
    max_rows: int
    """Answers written at once: as many as one call still computes quicker than two calls, each with half of them."""

    def check(self, checkpoint: LlmCheckpoint, options: LlmExportOptions) -> None:
        """Before anything slow begins: raise ExportError where a package is missing, or the engine cannot compute the model."""

    def build(
        self, checkpoint: LlmCheckpoint, options: LlmExportOptions, sample: list[int], folder: Path, progress: Progress
    ) -> BuiltEngine:
        """Write the engine to `folder` and check it; raises ExportError where it is not what PyTorch computes.

        Tells `progress` of building, of quantising, of the check, and of the comparison.
        """
