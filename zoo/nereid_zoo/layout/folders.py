"""A layout transformer's folder, as diffusers has them: written and read."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, __version__

from nereid.layout.known_widths import KnownWidths
from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid_zoo.layout.briefs import WIDTHS
from nereid_zoo.layout.model import SETTINGS_BEFORE, LayoutTransformer
from nereid_zoo.layout.weights import read_network
from nereid_zoo.stages import forget_places

SCHEDULER_CONFIG = {"num_train_timesteps": TRAIN_TIMESTEPS, "shift": 0.08, "stochastic_sampling": True}
"""Of the shifts 1, 0.3, 0.15, 0.08, 0.05 and 0.03, with fresh noise and without, what passes most checks on briefs trained on."""


def save(transformer: LayoutTransformer, destination: Path) -> None:
    """An ordinary diffusers folder: `transformer` (safetensors), `scheduler`, `model_index.json`."""
    transformer.save_pretrained(destination / "transformer", safe_serialization=True)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER_CONFIG).save_pretrained(destination / "scheduler")
    index = {
        "_class_name": "LayoutPipeline",
        "_diffusers_version": __version__,
        "canvas_widths": KnownWidths.of(WIDTHS).written(),
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["nereid_zoo.layout.model", "LayoutTransformer"],
    }
    (destination / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    forget_places(destination)


def load(folder: Path) -> LayoutTransformer:
    """The transformer of such a folder, in float32; raises WeightsError."""
    return read_network(LayoutTransformer, folder / "transformer", SETTINGS_BEFORE)
