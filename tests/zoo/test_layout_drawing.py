"""The zoo's drawing beside the server's: the same steps, levels and noise, by one network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from nereid.diffusion.solvers import SchedulerConfig, default_scheduler
from nereid.layout.settings import LayoutFacts, LayoutLimits, LayoutModel
from nereid.layout.tokens import bucket_of
from nereid_export.layout_drawing import LayoutDrawer
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.draw import Flow, draw, flow_of

pytestmark = pytest.mark.torch
FILE = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


def network(boxes: NDArray, timestep: NDArray) -> NDArray:
    """A smooth stand-in, other for every token and timestep; `timestep` has one a row."""
    own = np.arange(boxes.shape[1], dtype=np.float32)[:, None]
    made: NDArray = np.sin(0.8 * boxes + own + timestep[:, None, None] / 300).astype(np.float32)
    return made


def served(inputs: Mapping[str, NDArray], outputs: Sequence[str]) -> dict[str, NDArray]:
    return {"out_sample": network(inputs["sample"], inputs["timestep"][:, 0])}


@pytest.mark.parametrize("flow", [Flow(), Flow(0.08, stochastic=True), Flow(3.0)])
def test_a_seed_draws_the_same_layout_in_the_zoo_and_in_the_server(flow: Flow) -> None:
    rng = Random(4)
    sections = [sample_row(rng)[0] for _ in range(12)]
    assert len({bucket_of(len(section)) for section in sections}) > 1
    file: dict[str, Any] = {**FILE, "shift": flow.shift, "stochastic_sampling": flow.stochastic}
    facts = LayoutFacts(schedule=SchedulerConfig.from_diffusers(file), scheduler=default_scheduler(file))
    model = LayoutModel(name="layout", facts=facts, limits=LayoutLimits(), file=Path("model.onnx"))
    drawer = LayoutDrawer(model, {"": served})
    ours = draw(lambda inputs: network(inputs["boxes"], inputs["timestep"]), sections, range(12), steps=6, flow=flow)
    theirs = drawer.draw(sections, range(12), drawer.table(facts.scheduler, 6))
    for own, other in zip(ours, theirs, strict=True):
        assert np.abs(np.array(own) - np.array(other)).max() <= 1  # a half is rounded either way
    assert np.mean([np.array_equal(own, other) for own, other in zip(ours, theirs, strict=True)]) > 0.8


def test_a_checkpoints_flow_is_what_the_server_reads(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    cases: list[tuple[dict[str, Any], Flow]] = [({}, Flow()), ({"shift": 0.3}, Flow(0.3))]
    for settings, flow in [*cases, ({"stochastic_sampling": True}, Flow(1.0, stochastic=True))]:
        file.write_text(json.dumps({**FILE, **settings}))
        assert flow_of(tmp_path) == flow
    lcm = {"_class_name": "FlowMatchLCMScheduler", "shift": 0.5, "scale_factors": None, "upscale_mode": "bicubic"}
    file.write_text(json.dumps(lcm))
    assert flow_of(tmp_path) == Flow(0.5, stochastic=True)
    file.write_text(json.dumps({**FILE, "stochastic_sampling": "yes"}))
    with pytest.raises(ValueError, match="stochastic_sampling: 'yes' is not supported; it must be false or true"):
        flow_of(tmp_path)
