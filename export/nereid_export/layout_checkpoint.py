"""A layout transformer's folder: looked through, and its networks as components to export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine, WidthEngine, WidthTable
from nereid.diffusion.solvers import ScheduleError
from nereid.engines.digests import file_digest
from nereid.layout.known_widths import KnownWidths
from nereid.layout.settings import layout_schedule
from nereid_export.checkpoint import check_weights, read_json, understood, weights_in
from nereid_export.components import Component
from nereid_export.errors import ExportError

CLASS, _ARCHITECTURE = "LayoutPipeline", ["nereid_zoo.layout.model", "LayoutTransformer"]
_PARTS = ("transformer", "scheduler")
_DYNAMIC = "dynamic_transformer"
"""Where the weights of slices lie, in a folder as `nereid zoo train layout-dynamic` writes it."""


@dataclass(frozen=True, slots=True)
class LayoutCheckpoint:
    """A diffusers folder as `nereid zoo train layout` writes it, looked through and found exportable."""

    folder: Path
    scheduler: dict[str, Any]
    canvas_widths: KnownWidths | None = None

    @classmethod
    def open(cls, folder: Path) -> LayoutCheckpoint:
        """Look the folder through without loading weights; raises ExportError with what is wrong."""
        if not (folder / "model_index.json").is_file():
            raise ExportError(f"{folder} has no model_index.json; it must be a folder as `nereid zoo train layout` writes it")
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != CLASS or index.get("transformer") != _ARCHITECTURE:
            found = f"{index.get('_class_name')!r} with transformer {index.get('transformer')!r}"
            raise ExportError(f"{folder}: architecture {found} is not supported; it must be a {CLASS} with {_ARCHITECTURE}")
        for part in _PARTS:
            if not (folder / part).is_dir():
                raise ExportError(f"{folder} has no {part}/, which a {CLASS} needs")
        for part in _weighty(folder):
            read_json(folder / part / "config.json")
            check_weights(folder / part)
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        try:
            layout_schedule(scheduler)
        except ScheduleError as error:
            raise ExportError(f"{folder / 'scheduler'}: {error}") from None
        try:
            known = KnownWidths.parse(index["canvas_widths"]) if "canvas_widths" in index else None
        except ValueError as error:
            raise ExportError(f"{folder / 'model_index.json'}: {error}") from None
        return cls(folder, dict(scheduler), known)

    def digest(self) -> str:
        """SHA-256 over all files that are read, names included."""
        total = hashlib.sha256()
        files = [self.folder / "model_index.json"]
        parts = (*_weighty(self.folder), "scheduler")
        files += [file for part in parts for file in sorted((self.folder / part).iterdir()) if file.is_file()]
        for file in files:
            total.update(f"{file.relative_to(self.folder)}\0{file_digest(file)}".encode())
        return total.hexdigest()

    def weight_bytes(self) -> int:
        return sum(file.stat().st_size for file in weights_in(self.folder / "transformer"))

    def component(self) -> Component:
        """Raises ExportError where the architecture's package is not installed, or does not fit the weights."""
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import layout_component
        return self._understood(layout_component(self.folder))

    def branches(self) -> dict[BranchEngine, Component]:
        """The engines that reuse branches of earlier steps; raises ExportError as `component` does."""
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import branch_components
        parts = _understood(self.folder / "transformer", lambda: branch_components(self.folder))
        return {engine: self._understood(part) for engine, part in parts.items()}

    def widths(self) -> tuple[dict[WidthEngine, Component], WidthTable]:
        """The slices, and which of them a timestep calls; raises ExportError as `component` does, and where there are none."""
        self._require_dynamic("--widths")
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import width_components
        parts, table = _understood(self.folder / _DYNAMIC, lambda: width_components(self.folder))
        return {engine: self._understood(part) for engine, part in parts.items()}, table

    def tokens(self, *, widths: bool) -> dict[TokenEngine, Component]:
        """Engines whose MLPs pass over tokens, those of slices with `widths`; raises ExportError as `widths` does."""
        self._require_dynamic("--tokens")
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import token_components
        parts = _understood(self.folder / _DYNAMIC, lambda: token_components(self.folder, widths=widths))
        return {engine: self._understood(part) for engine, part in parts.items()}

    def _require_dynamic(self, option: str) -> None:
        if _DYNAMIC not in _weighty(self.folder):
            raise ExportError(
                f"{option}: {self.folder} is not allowed; it has no {_DYNAMIC}/, which `nereid zoo train layout-dynamic` writes"
            )

    def _understood(self, part: Component) -> Component:
        return replace(part, load=lambda: _understood(self.folder / part.source, part.load))


def _weighty(folder: Path) -> tuple[str, ...]:
    """Parts that have weights."""
    return ("transformer", _DYNAMIC) if (folder / _DYNAMIC).is_dir() else ("transformer",)


@contextmanager
def architecture(command: str) -> Iterator[None]:
    """Raise ExportError, for this command, where the body cannot import the layout transformer's package."""
    try:
        yield
    except ImportError:
        raise ExportError(
            f"{command} needs the package nereid-zoo, which has the transformer's architecture; install it (README, Install)"
        ) from None


def _understood(folder: Path, load: Callable[[], Any]) -> Any:
    with understood(folder):
        return load()
