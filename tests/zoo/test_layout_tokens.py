"""Routers of tokens of the layout transformer: their training, slices with them, and the folder that comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from typer.testing import CliRunner

from nereid.diffusion.solvers import noise_levels
from nereid_zoo.cli import app
from nereid_zoo.layout.batches import Batches
from nereid_zoo.layout.draw import torch_predict
from nereid_zoo.layout.dynamic import DynamicLayoutTransformer, load_dynamic
from nereid_zoo.layout.dynamic_train import DynamicPlan, train_dynamic
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.skipping import Routing, SkippingBlock, counted
from nereid_zoo.layout.token_train import BOTH, MODES, TOKENS, WIDTHS, as_runs, step_losses
from nereid_zoo.layout.train import LEVEL_POWER
from nereid_zoo.optimisation import optimizer_of, optimizer_step
from nereid_zoo.stages import StageError

import checkpoints
from layout_inputs import inputs

pytestmark = pytest.mark.torch
GROUPS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_dynamic_layout(tmp_path_factory.mktemp("layout") / "tokens", tokens=True)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dynamic transformer without routers of tokens."""
    return checkpoints.make_dynamic_layout(tmp_path_factory.mktemp("layout") / "little")


# --- what is computed ---


def test_routers_are_added_to_what_was_trained_before_and_count_only_where_they_are_asked_for(without: Path) -> None:
    before, given = load_dynamic(without), inputs(3)
    network = before.with_token_routers().eval()
    assert network.widths == before.widths
    with torch.inference_mode():
        assert torch.equal(network.settled(**given), before.settled(**given))
        assert torch.equal(network(None, **given), before.transformer(**given))
        routing = Routing(counted(given["valid"]))
        off = ((network(None, routing, **given) - before.transformer(**given)) * given["valid"][..., None]).abs()
    assert all(torch.equal(gates, routing.counts) for gates in routing.gates)  # nearly all is as it was at the start
    assert 0 < off.mean() < 0.05
    with pytest.raises(ValueError, match="no routers of tokens"):
        before.narrowed(tokens=True)


def test_slices_that_pass_over_tokens_compute_what_the_masked_transformer_does(checkpoint: Path) -> None:
    network, given = load_dynamic(checkpoint), inputs(4)
    valid = given["valid"][..., None]
    for width in (None, *network.widths):
        slice_ = network.narrowed(width, tokens=True)
        assert all(isinstance(block, SkippingBlock) for block in slice_.blocks)
        gates = None if width is None else network.gates_of(width).repeat(4, 1, 1)
        with torch.inference_mode():
            routing, own = Routing(counted(given["valid"])), Routing(counted(given["valid"]))
            masked = network(gates, routing, **given) * valid
            ours = slice_(**given, opened=[(None, own)] * network.layers) * valid
            every = network(gates, **given) * valid
        assert (ours - masked).abs().max() < 1e-5
        assert (every - masked).abs().max() > 1e-3
        assert torch.equal(torch.stack(own.gates), torch.stack(routing.gates))
        kept = torch.stack(own.gates).sum() / (network.layers * own.counts.sum())
        assert 0.3 < kept < 0.95


def test_padding_changes_nothing(checkpoint: Path) -> None:
    network = load_dynamic(checkpoint).narrowed(tokens=True)
    short, long = inputs(3, 16), inputs(3, 16)
    for name, value in inputs(3, 16).items():
        if value.ndim > 1 and value.shape[1] == 16:
            long[name] = torch.cat([value, torch.zeros_like(value[:, :8])], 1)
    with torch.inference_mode():
        routings = [Routing(counted(its["valid"])) for its in (short, long)]
        ours, theirs = (network(**its, opened=[(None, one)] * 2) for its, one in zip((short, long), routings, strict=True))
    for one, other in zip(*(routing.gates for routing in routings), strict=True):
        assert torch.equal(one, other[:, :17])
        assert not other[:, 17:].any()
    assert ((ours - theirs[:, :16]).abs() * short["valid"][..., None]).max() < 1e-5
    every = Routing(counted(long["valid"]))
    with torch.inference_mode():
        for block in network.blocks:
            block.router.bias.fill_(100)
        network(**long, opened=[(None, every)] * 2)
    assert all(torch.equal(gates, every.counts) for gates in every.gates)


def test_flops_are_those_of_tokens_and_of_the_channels_that_they_meet(checkpoint: Path) -> None:
    network = load_dynamic(checkpoint)
    counts = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    gates = [torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]), torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])]
    routing = Routing(counts, gates=gates)
    assert network.token_flops(None, routing).tolist() == pytest.approx([0.5, 0.75])
    opened = torch.ones(2, 2, 3 + GROUPS)
    opened[:, 1, 3 + 2 :] = 0  # two of six groups are left in the second block
    assert network.token_flops(opened, routing).tolist() == pytest.approx([(0.25 + 0.75 / 3) / (4 / 3), (1 + 0.5 / 3) / (4 / 3)])


@pytest.mark.parametrize("shift", [0.08, 1.0, 3.0])
def test_noise_levels_of_training_count_as_those_of_runs(shift: float) -> None:
    levels = ((torch.arange(100_000) + 0.5) / 100_000) ** LEVEL_POWER
    weights = as_runs(levels, shift)
    run = torch.from_numpy(noise_levels(100_000, shift))
    for below in (0.02, 0.1, 0.5):
        share = ((weights * (levels < below)).sum() / weights.sum()).item()
        assert share == pytest.approx((run < below).double().mean().item(), abs=2e-3)


# --- training ---


def test_training_brings_tokens_to_what_is_asked_for(without: Path) -> None:
    torch.manual_seed(0)
    teacher, network = load(without), load_dynamic(without).with_token_routers()
    optimizer, generator = optimizer_of(network.transformer.parameters()), torch.Generator().manual_seed(0)
    supply, shares = Batches(8, seed=3), []
    batches, widths = [supply.next() for _ in range(4)], network.router.weight.clone()
    for step in range(240):
        target, drawn = max(0.5, 1 - step / 120), step < 180
        mode = (BOTH, TOKENS)[step % 2]
        made = step_losses(network, teacher, batches[step % 4], mode, generator, "cpu", target, drawn=drawn)
        optimizer_step(optimizer, made.total, 2e-3)
        shares.append(made.flops.item())
    assert shares[0] > 0.85
    assert np.mean(shares[-20:]) == pytest.approx(0.5, abs=0.08)
    assert torch.equal(network.router.weight, widths)


def test_a_step_with_all_tokens_is_about_its_widths_alone(without: Path) -> None:
    teacher, network = load(without), load_dynamic(without).with_token_routers()
    generator = torch.Generator().manual_seed(0)
    made = step_losses(network, teacher, Batches(4, seed=3).next(), WIDTHS, generator, "cpu", 0.5, drawn=True)
    assert (made.flops.item(), made.off.item()) == (1, 0)
    made.total.backward()
    routers = [block.router.weight.grad for block in network.transformer.blocks]
    assert routers == [None, None]
    assert {BOTH, TOKENS, WIDTHS} == set(MODES)


def test_routers_of_tokens_are_trained_after_widths_that_are_there_already(without: Path, tmp_path: Path) -> None:
    plan = DynamicPlan(source=without, work=tmp_path / "work", minutes=0.02, batch_size=4, groups=GROUPS)
    before = train_dynamic(plan, tmp_path / "widths")
    assert not before.config["tokens"]
    stages = [tmp_path / "work" / name / "stage.json" for name in ("1-routed", "2-settled")]
    times = [file.stat().st_mtime_ns for file in stages]
    asked = DynamicPlan(
        source=without, work=tmp_path / "work", minutes=0.02, batch_size=4, groups=GROUPS, tokens=0.6, token_minutes=0.03
    )
    made = train_dynamic(asked, tmp_path / "out")
    assert [file.stat().st_mtime_ns for file in stages] == times
    read = load_dynamic(tmp_path / "out")
    assert read.config["tokens"] is made.config["tokens"] is True
    assert read.widths == before.widths
    assert any(block.router.weight.any() for block in read.transformer.blocks)
    given = {name: value.numpy() for name, value in inputs(2).items()}
    for options in ({"widths": True}, {"tokens": True}, {"widths": True, "tokens": True}):
        assert np.isfinite(torch_predict(tmp_path / "out", **options)(given)).all()
    with pytest.raises(StageError, match=r"3-tokens was trained with tokens 0\.6, not 0\.7"):
        train_dynamic(
            DynamicPlan(
                source=without, work=tmp_path / "work", minutes=0.02, batch_size=4, groups=GROUPS, tokens=0.7, token_minutes=0.03
            ),
            tmp_path / "out",
        )


def test_the_command_trains_routers_of_tokens(without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[DynamicPlan] = []
    monkeypatch.setattr("nereid_zoo.layout.dynamic_train.train_dynamic", lambda plan, out: plans.append(plan))
    asked = ["train", "layout-dynamic", "--out", str(tmp_path), "--source", str(without)]
    for further in ([], ["--tokens", "0.7", "--token-minutes", "3"]):
        done = CliRunner().invoke(app, [*asked, *further])
        assert done.exit_code == 0, done.output
    assert [(plan.tokens, plan.token_minutes) for plan in plans] == [(None, 15), (0.7, 3)]


def test_zoo_score_layout_has_rows_of_dynamic_tokens(checkpoint: Path, tmp_path: Path) -> None:
    command = ["score", "layout", "--count", "2", "--steps", "2", "--seeds", "1", "--path", str(checkpoint), "--task", "size"]
    done = CliRunner().invoke(app, [*command, "--features", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    names = ["transformer", "dynamic width", "dynamic tokens", "dynamic width and tokens", "flow"]
    assert [row["layouts"] for row in json.loads(done.stdout)["scores"]] == names


def test_an_older_dynamic_transformer_is_read_as_one_without_routers_of_tokens(without: Path, tmp_path: Path) -> None:
    network = load_dynamic(without)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tokens"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = DynamicLayoutTransformer.from_pretrained(tmp_path, use_safetensors=True)
    assert read.state_dict().keys() == network.state_dict().keys()
