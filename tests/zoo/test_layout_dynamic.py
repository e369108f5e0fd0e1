"""Dynamic width of the layout transformer: routers and their training, ranges, slices, and the folder that comes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor
from typer.testing import CliRunner

from nereid.diffusion.dynamic_width import WidthEngine
from nereid.diffusion.solvers import noise_levels
from nereid_zoo.cli import app
from nereid_zoo.layout.batches import Batches
from nereid_zoo.layout.draw import torch_predict
from nereid_zoo.layout.dynamic import DynamicLayoutTransformer, Width, load_dynamic, ranges, straight_through
from nereid_zoo.layout.dynamic_train import DynamicPlan, fit, step_losses, train_dynamic
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.slices import NarrowBlock
from nereid_zoo.optimisation import optimizer_of, optimizer_step

import checkpoints
from layout_inputs import inputs

pytestmark = pytest.mark.torch
GROUPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_dynamic_layout(tmp_path_factory.mktemp("layout") / "little")


def routed(checkpoint: Path, spread: float = 1.0) -> DynamicLayoutTransformer:
    """With routers that open about half, other halves at other timesteps."""
    network = DynamicLayoutTransformer.of(load(checkpoint), GROUPS)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        network.router.weight.normal_(std=spread, generator=generator)
        network.router.bias.zero_()
    return network.eval()


def settled(checkpoint: Path) -> DynamicLayoutTransformer:
    """With three widths of one to all heads and groups."""
    return load_dynamic(checkpoint)


# --- routers ---


def test_all_open_it_computes_what_the_transformer_does(checkpoint: Path) -> None:
    given, network = inputs(3), DynamicLayoutTransformer.of(load(checkpoint), GROUPS)
    gates = torch.ones(3, 2, 3 + GROUPS)
    with torch.inference_mode():
        assert (network(gates, **given) - load(checkpoint)(**given)).abs().max() < 1e-5
        assert (network.logits(given["timestep"]) > 0).all()
        assert network.flops(gates).item() == pytest.approx(1)


def test_routers_read_the_timestep_and_rows_have_gates_of_their_own(checkpoint: Path) -> None:
    given, network = inputs(4), routed(checkpoint)
    with torch.inference_mode():
        gates = (network.logits(given["timestep"]) > 0).float()
        together = network(gates, **given)
        assert 0.2 < gates.mean() < 0.8
        assert not torch.equal(gates[0], gates[3])
        for row in range(4):
            alone = network(gates[row : row + 1], **{name: value[row : row + 1] for name, value in given.items()})
            assert (alone - together[row : row + 1]).abs().max() < 1e-5


def test_gates_are_drawn_by_their_chances_and_pass_gradients_on() -> None:
    logits = torch.tensor([-4.0, 0.0, 4.0]).repeat(4000, 1).requires_grad_()
    gates = straight_through(logits, torch.Generator().manual_seed(0))
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert gates.mean(0).tolist() == pytest.approx([1 / (1 + math.exp(4)), 0.5, 1 / (1 + math.exp(-4))], abs=0.03)
    gates.sum().backward()
    assert (logits.grad > 0).all()  # type: ignore[operator]


def test_training_brings_flops_to_what_is_asked_for(checkpoint: Path) -> None:
    torch.manual_seed(0)
    teacher = load(checkpoint)
    network, supply = DynamicLayoutTransformer.of(teacher, GROUPS), Batches(8, seed=3)
    optimizer, generator = optimizer_of(network.parameters()), torch.Generator().manual_seed(0)
    batches, shares = [supply.next() for _ in range(4)], []
    for step in range(150):
        made = step_losses(
            network,
            teacher,
            batches[step % 4],
            lambda timesteps: straight_through(network.logits(timesteps), generator),
            generator,
            "cpu",
            max(0.5, 1 - step / 100),
        )
        optimizer_step(optimizer, made.total, 1e-3)
        shares.append(made.flops.item())
    assert shares[0] > 0.9
    assert np.mean(shares[-20:]) == pytest.approx(0.5, abs=0.06)


# --- ranges ---


def test_ranges_end_where_what_is_open_changes_most() -> None:
    opened = torch.zeros(20, 5, dtype=torch.bool)
    opened[6:, 0] = opened[6:, 1] = opened[13:, 2] = opened[14:, 3] = True
    weights = torch.tensor([1.0, 1.0, 1.0, 1.5, 1.0])
    assert ranges(opened, weights, 1) == [20]
    assert ranges(opened, weights, 2) == [14, 20]
    assert ranges(opened, weights, 3) == [6, 14, 20]
    assert ranges(opened[:13], weights, 3) == [6, 13]  # no more than differ
    assert ranges(opened[:6], weights, 3) == [6]


def test_routers_settle_to_widths_of_ranges_and_leave_every_block_something(checkpoint: Path, tmp_path: Path) -> None:
    network = routed(checkpoint)
    for flops in (0.4, 0.7):
        network.settle(flops)
        assert network.flops(network.settled_gates(torch.arange(1000.0))).item() == pytest.approx(flops, abs=0.03)
    with torch.no_grad():
        network.router.bias[:3] = -100  # all heads of the first block
    network.settle(0.4)
    widths = network.widths
    assert 1 < len(widths) <= 3
    bounds = [width.up_to for width in widths]
    assert bounds[-1] is None
    assert bounds[:-1] == sorted(bounds[:-1])  # type: ignore[type-var]
    for width in widths:
        assert all(width.heads)
        assert all(width.groups)
        assert len(width.heads[0]) == 1
    network.save_pretrained(tmp_path)
    assert DynamicLayoutTransformer.from_pretrained(tmp_path, use_safetensors=True).widths == widths


def test_flops_and_ranges_are_those_of_the_steps_that_runs_take(checkpoint: Path) -> None:
    network, generator = routed(checkpoint), torch.Generator().manual_seed(0)
    network.settle(0.5, 0.08)
    run = torch.from_numpy(noise_levels(1000, 0.08)[:-1] * 1000).float()
    assert network.flops(network.settled_gates(run)).item() == pytest.approx(0.5, abs=0.03)
    assert all(width.up_to is None or 0 < width.up_to < 1000 for width in network.widths)

    def near(timesteps: Tensor) -> Tensor:
        """All near the data, else nothing."""
        return (timesteps < 100).float()[:, None, None].expand(-1, 2, 3 + GROUPS)

    shares = [
        step_losses(network, load(checkpoint), Batches(4, seed=3).next(), near, generator, "cpu", 1.0, shift).flops.item()
        for shift in (1.0, 0.08)
    ]
    assert shares == pytest.approx([0.1, float((run < 100).float().mean())], abs=0.03)


# --- slices ---


def test_a_slice_computes_what_the_masked_transformer_does(checkpoint: Path) -> None:
    network, given = settled(checkpoint), inputs(4)
    for width in network.widths:
        narrow = network.narrowed(width)
        assert sum(its.numel() for its in narrow.parameters()) < sum(its.numel() for its in network.transformer.parameters())
        with torch.inference_mode():
            masked = network(network.gates_of(width).repeat(4, 1, 1), **given)
            assert (narrow(**given) - masked).abs().max() < 1e-5
            assert (network.transformer(**given) - masked).abs().max() > 1e-2


def test_a_timestep_has_the_width_of_its_range(checkpoint: Path) -> None:
    network = settled(checkpoint)
    timesteps = torch.tensor([0.0, 200.0, 200.5, 500.0, 501.0, 1000.0])
    gates = network.settled_gates(timesteps)
    table, named = network.table(), network.named_widths()
    assert list(named) == list(WidthEngine)
    assert [network.flops(network.gates_of(width)[None]) for width in named.values()] == sorted(
        network.flops(network.gates_of(width)[None]) for width in named.values()
    )
    for timestep, own in zip(timesteps.tolist(), gates, strict=True):
        assert torch.equal(own, network.gates_of(named[table.engine(timestep)]))


def test_ranges_of_equal_widths_share_an_engine(checkpoint: Path) -> None:
    network = settled(checkpoint)
    first, second, _ = network.config["widths"]
    network.register_to_config(widths=[first, second, {**first, "up_to": None}])
    assert [engine for _, engine in network.table().ranges] == ["medium", "narrow", "medium"]
    assert list(network.named_widths()) == ["narrow", "medium"]


def test_a_narrow_block_is_as_small_as_it_says() -> None:
    block = NarrowBlock.of(LayoutTransformer(width=48, layers=1, heads=3, mlp_ratio=2).blocks[0], [1], range(16))
    assert (block.qkv.out_features, block.proj.in_features, block.fc1.out_features, block.fc2.in_features) == (48, 16, 16, 16)


# --- the whole training ---


def test_training_writes_a_copy_of_the_checkpoint_with_the_dynamic_transformer_beside_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    plan = DynamicPlan(source=checkpoint, work=tmp_path / "work", minutes=0.05, batch_size=4, groups=GROUPS)
    made = train_dynamic(plan, tmp_path / "out")
    files = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {
        "model_index.json",
        *(f"{part}/{file}" for part in ("transformer", "dynamic_transformer") for file in ("config.json", WEIGHTS)),
        "scheduler/scheduler_config.json",
    }
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["dynamic_transformer"] == ["nereid_zoo.layout.dynamic", "DynamicLayoutTransformer"]
    assert index["transformer"] == json.loads((checkpoint / "model_index.json").read_text())["transformer"]
    assert (tmp_path / "out" / "transformer" / WEIGHTS).read_bytes() == (checkpoint / "transformer" / WEIGHTS).read_bytes()
    read = load_dynamic(tmp_path / "out")
    assert read.widths == made.widths
    assert isinstance(read.widths[0], Width)
    again = train_dynamic(plan, tmp_path / "again")  # of what is kept
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())
    given = {name: value.numpy() for name, value in inputs(2).items()}
    assert np.isfinite(torch_predict(tmp_path / "out", widths=True)(given)).all()


WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_settled_training_leaves_the_routers_and_the_widths(checkpoint: Path, tmp_path: Path) -> None:
    network = settled(checkpoint)
    plan = DynamicPlan(source=checkpoint, work=tmp_path, minutes=0.05, batch_size=4, groups=GROUPS)
    before = network.router.weight.clone()
    fitted = fit(plan, load(checkpoint), network, routing=False)
    assert torch.equal(fitted.router.weight, before)
    assert fitted.widths == network.widths
    assert not torch.equal(fitted.transformer.last.weight, load(checkpoint).last.weight)


def test_how_much_of_a_training_is_done_is_by_the_same_clock_as_its_steps(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so few steps as tests take, too, the last aim at what was asked for."""
    targets: list[float] = []

    def noted(*given: Any) -> Any:
        targets.append(given[6])
        return step_losses(*given)

    monkeypatch.setattr("nereid_zoo.layout.dynamic_train.step_losses", noted)
    plan = DynamicPlan(source=checkpoint, work=tmp_path, minutes=0.05, batch_size=4, groups=GROUPS, flops=0.3)
    teacher = load(checkpoint)
    fit(plan, teacher, DynamicLayoutTransformer.of(teacher, GROUPS), routing=True)
    assert 8 <= len(targets) <= 10
    assert 0.8 < targets[0] < 1
    assert targets[-1] == pytest.approx(0.3)


def test_the_command_trains_and_refuses(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[DynamicPlan] = []
    monkeypatch.setattr("nereid_zoo.layout.dynamic_train.train_dynamic", lambda plan, out: plans.append(plan))
    asked = ["train", "layout-dynamic", "--out", str(tmp_path), "--source", str(checkpoint), "--flops", "0.5", "--minutes", "2"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert (plans[0].source, plans[0].flops, plans[0].minutes) == (checkpoint, 0.5, 2)
    refused = CliRunner().invoke(app, ["train", "layout-dynamic", "--out", str(tmp_path), "--source", str(tmp_path)])
    assert refused.exit_code == 2
    assert "must be a layout transformer" in " ".join(refused.output.replace("│", " ").split())


def test_zoo_score_layout_has_a_row_of_dynamic_width(checkpoint: Path, tmp_path: Path) -> None:
    command = ["score", "layout", "--count", "2", "--steps", "2", "--seeds", "1", "--path", str(checkpoint), "--task", "size"]
    done = CliRunner().invoke(app, [*command, "--features", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert [row["layouts"] for row in json.loads(done.stdout)["scores"]] == ["transformer", "dynamic width", "flow"]
