"""`--scheduler` of the commands that calibrate."""

from __future__ import annotations

from nereid.diffusion.solvers import SchedulerName
from nereid_export.errors import ExportError


def scheduler_named(name: str) -> SchedulerName:
    """Raises ExportError where there is none of this name."""
    try:
        return SchedulerName(name)
    except ValueError:
        raise ExportError(f"--scheduler: {name!r} is not allowed; it must be one of {', '.join(SchedulerName)}") from None
