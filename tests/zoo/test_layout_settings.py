"""What a layout transformer is made with: what is made of it has the same, and older files say less."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor

from nereid.layout.tokens import tokens_of
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.draw import draw, noise_of
from nereid_zoo.layout.dynamic import load_dynamic
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.observed import Observer
from nereid_zoo.layout.quantised import QuantisedTransformer
from nereid_zoo.layout.rounding import quantised_layers
from nereid_zoo.layout.train import tensors

import checkpoints

pytestmark = pytest.mark.torch
BOUNDS = (250.0, 500.0, 750.0)
SIZE = {"width": 48, "layers": 2, "heads": 3, "mlp_ratio": 2}
SETTINGS: list[dict[str, Any]] = [
    {"grid_periods": (), "related": False},
    {"grid_periods": (8,), "related": False},
    {"grid_periods": (), "related": True},
]


def inputs(rows: int = 3) -> dict[str, Tensor]:
    rng = Random(5)
    tokens = tokens_of([sample_row(rng)[0] for _ in range(rows)], 32)
    boxes = torch.from_numpy(noise_of(range(rows), 32))
    return {**tensors(tokens, "cpu"), "boxes": boxes, "timestep": torch.linspace(40, 960, rows)}


@pytest.mark.parametrize("settings", SETTINGS)
def test_slices_have_the_architecture_that_they_are_of(settings: dict[str, Any], tmp_path: Path) -> None:
    network = load_dynamic(checkpoints.make_dynamic_layout(tmp_path, tokens=True, **SIZE, **settings))
    given = inputs()
    for width in network.widths:
        with torch.inference_mode():
            masked = network(network.gates_of(width).repeat(3, 1, 1), **given)
            assert (network.narrowed(width)(**given) - masked).abs().max() < 1e-5
    assert network.narrowed(tokens=True).settings == network.transformer.settings == load(tmp_path).settings


@pytest.mark.parametrize("settings", SETTINGS[:1])
def test_products_of_8_bits_have_the_architecture_that_they_are_of(settings: dict[str, Any], tmp_path: Path) -> None:
    transformer, rng = load(checkpoints.make_layout(tmp_path, **SIZE, **settings)), Random(6)
    observer = Observer(transformer, BOUNDS)
    with observer.watching() as predict:
        draw(predict, [sample_row(rng)[0] for _ in range(4)], range(4), steps=3)
    made = QuantisedTransformer.of(transformer, quantised_layers(transformer, observer.statistics(), observer.calls), BOUNDS)
    with torch.inference_mode():
        off = (made(**inputs()) - transformer(**inputs())) * inputs()["valid"][..., None]
        assert 0 < off.abs().mean() < 0.2 * transformer(**inputs()).abs().mean()


def test_files_from_before_there_were_grids_and_relations_are_read_as_what_they_are(tmp_path: Path) -> None:
    checkpoints.make_dynamic_layout(tmp_path, **SIZE, grid_periods=(), related=False)
    before, dynamic = load(tmp_path).state_dict(), load_dynamic(tmp_path).state_dict()
    for part in ("transformer", "dynamic_transformer"):
        file = tmp_path / part / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({name: value for name, value in config.items() if name not in SETTINGS[0]}))
    read = load(tmp_path)
    assert type(read) is LayoutTransformer
    assert (read.grid_periods, read.related) == ((), False)
    assert all(torch.equal(value, before[name]) for name, value in read.state_dict().items())
    assert all(torch.equal(value, dynamic[name]) for name, value in load_dynamic(tmp_path).state_dict().items())
