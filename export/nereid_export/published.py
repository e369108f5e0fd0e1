"""Engines of a published pipeline, run in this process as they are served."""

from __future__ import annotations

from pathlib import Path

from nereid_export.components import Component
from nereid_export.configs import prefixed
from nereid_export.edited import Manifest
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target
from nereid_export.engines.check import Run
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.frame import Device


def load_published(component: Component, repository: Path, manifest: Manifest, prefix: str) -> Run:
    """A component's engine, with the settings that it is served with."""
    model = prefixed(component.name, prefix)
    figures, asked = manifest["engines"][model], manifest["arguments"]
    engine = Engine(figures["engine"])
    target = Target(
        precision=Precision(figures["precision"]),
        device=Device(asked["device"]),
        max_batch_size=int(asked["max_batch_size"]),
        default_side=0,
        max_side=int(asked["max_side"]),
        scale=1,
        plan=PlanOptions(
            threads=figures.get("threads", 0),
            compiled_shapes_mib=int(asked.get("compiled_shapes_mib", PlanOptions().compiled_shapes_mib)),
        ),
    )
    BUILDERS[engine].require_run(target)
    return BUILDERS[engine].load(component, repository / model / "1", target)
