"""What may be asked of an engine beyond its precision, and how it is written on a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nereid_export.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Each is the command line's option of that name; an engine that has none of it refuses it."""

    compute_capability: tuple[str, ...] = ()
    """Cards to build for ("8.9"), which need not be here; the library's own choice where empty."""
    timing_cache: Path | None = None
    """Measured kernels of earlier builds: read where it exists, and written back."""
    version_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False
    bucket: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels of pictures that engines run when they are loaded; plans have a profile for each."""
    max_autotune: bool = False
    """Whether several kernels are tried for each matrix product, and the fastest kept."""
    threads: int = 0
    """Of one call on the processor; the library's own choice where 0."""
    compiled_shapes_mib: int = 512
    """Memory for graphs that OpenVINO compiles for one shape each, where the engine is small; 0 compiles one for all shapes."""
    plain_attention: bool = False
    """Whether attention stays as the products and the softmax that the checkpoint has, and holds all scores at once."""

    def asked(self) -> dict[str, str]:
        """The options that were given, as a manifest has them."""
        return given(self)


def given(options: Any) -> dict[str, str]:
    """Those of a dataclass of options that are not as by default, as a manifest has them."""
    values = (
        (field.name, getattr(options, field.name)) for field in fields(options) if getattr(options, field.name) != field.default
    )
    return {name: _written(value) for name, value in values}


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join("x".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)
    return str(value)


def option(name: str) -> str:
    """An option as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def parse_buckets(texts: list[str]) -> tuple[tuple[int, int], ...]:
    """`WIDTHxHEIGHT` to pairs of pixels, each once; raises ExportError naming one that is not of this form."""
    found = []
    for text in texts:
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None:
            raise ExportError(f"--bucket: {text!r} is not allowed; it must be WIDTHxHEIGHT in pixels, like 768x512")
        found.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(found))


def parse_capabilities(text: str) -> tuple[str, ...]:
    """`8.9,12.0` to its parts; whether the library knows them is its engine's to say."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
