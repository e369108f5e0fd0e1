"""The layout transformer: its form, its rows, its losses, its training and its export."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
from diffusers import FlowMatchEulerDiscreteScheduler

from nereid.diffusion.solvers import noise_levels
from nereid.layout.elements import Box, Element, ElementClass, Fixed, Section
from nereid.layout.settings import OUT, SAMPLE, TIMESTEP
from nereid.layout.tokens import Tokens, tokens_of
from nereid_export.engines.onnx_graph import OPSET, export_onnx, run_file
from nereid_export.engines.precision import Precision
from nereid_zoo.cli import app
from nereid_zoo.layout.batches import Batches, sample_row
from nereid_zoo.layout.component import layout_component
from nereid_zoo.layout.draw import Flow, draw, draw_tokens, flow_of, noise_of, torch_predict
from nereid_zoo.layout.features import Spoiled, features_of, frechet_distance, spoil
from nereid_zoo.layout.features_model import train_features
from nereid_zoo.layout.folders import load, save
from nereid_zoo.layout.losses import losses, sibling_overlap, unaligned
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.train import PHASES, TrainingPlan, fit, step_losses, tensors, train
from nereid_zoo.optimisation import optimizer_of, optimizer_step
from nereid_zoo.stages import StageError

pytestmark = pytest.mark.torch
SMALL = {"width": 48, "layers": 2, "heads": 3, "mlp_ratio": 2}


def awake(**size: int) -> LayoutTransformer:
    """With all its zeros replaced: as it starts, it answers nothing."""
    torch.manual_seed(0)
    transformer = LayoutTransformer(**(size or SMALL)).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return transformer


def sections(count: int, seed: int = 0) -> list[Section]:
    rng = Random(seed)
    return [sample_row(rng)[0] for _ in range(count)]


def velocity(transformer: LayoutTransformer, tokens: Tokens, boxes: NDArray, levels: list[float]) -> NDArray:
    timestep = torch.tensor([1000 * level for level in levels])
    with torch.inference_mode():
        made: NDArray = transformer(boxes=torch.from_numpy(boxes), timestep=timestep, **tensors(tokens, "cpu")).numpy()
    return made


def test_it_has_three_million_parameters_and_begins_by_answering_nothing() -> None:
    transformer = LayoutTransformer().eval()
    assert 2.8e6 < sum(parameter.numel() for parameter in transformer.parameters()) < 3.3e6
    tokens = tokens_of(sections(2), 32)
    assert not velocity(transformer, tokens, noise_of([0, 1], 32), [1.0, 0.5]).any()


def test_a_rows_answer_depends_on_that_row_alone() -> None:
    transformer, asked = awake(), sections(4)
    together = velocity(transformer, tokens_of(asked, 32), noise_of(range(4), 32), [0.1, 0.4, 0.7, 1.0])
    for row, (section, level) in enumerate(zip(asked, [0.1, 0.4, 0.7, 1.0], strict=True)):
        own = len(section)
        alone = velocity(transformer, tokens_of([section], own), noise_of([row], own), [level])
        assert np.abs(together[row, :own] - alone[0]).max() < 1e-5
        assert np.abs(alone).max() > 0.1


@pytest.mark.parametrize("name", ["classes", "parents", "depths", "content", "canvas", "known", "field_mask"])
def test_each_input_is_read(name: str) -> None:
    transformer, asked = awake(), sections(1)
    tokens = tokens_of(asked)
    value = getattr(tokens, name).copy()
    value[0, 0] = value[0, 0] + 1
    other = replace(tokens, **{name: value})
    if name == "known":  # read where it is given
        tokens, other = (replace(each, field_mask=np.ones_like(each.field_mask)) for each in (tokens, other))
    boxes = noise_of([0], tokens.valid.shape[1])
    assert np.abs(velocity(transformer, tokens, boxes, [0.5]) - velocity(transformer, other, boxes, [0.5])).max() > 1e-4


def test_order_is_read_from_the_place_of_a_token() -> None:
    transformer = awake()
    alike = Section.of(sections(1)[0].canvas, (Element(id=f"{n}", kind=ElementClass.BUTTON) for n in range(3)))
    tokens = tokens_of([alike])
    tokens.content[0, :3] = tokens.content[0, 0]
    made = velocity(transformer, tokens, np.zeros((1, 8, 4), np.float32), [0.5])
    assert np.abs(made[0, 0] - made[0, 2]).max() > 1e-4


def test_a_folder_is_diffusers_and_comes_back_the_same(tmp_path: Path) -> None:
    transformer = awake()
    save(transformer, tmp_path)
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()} == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert flow_of(tmp_path) == Flow(0.08, stochastic=True)
    again = tmp_path / "again"
    save(load(tmp_path), again)  # as a training does with what its last phase has kept
    assert "_name_or_path" not in (again / "transformer" / "config.json").read_text()
    kept = load(again).state_dict()  # not what they compute: sums of weights that lie elsewhere in memory may be in another order
    assert all(torch.equal(kept[name], value) for name, value in transformer.state_dict().items())


@pytest.mark.parametrize("shift", [1.0, 0.4, 3.0])
def test_noise_levels_are_those_of_diffusers_scheduler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8).tolist())
    assert noise_levels(8, shift) == pytest.approx(scheduler.sigmas.numpy(), abs=1e-6)


def straight(clean: NDArray) -> Callable[[Mapping[str, NDArray]], NDArray]:
    """The velocity of a flow that ends in `clean`, whatever it started from."""
    return lambda inputs: (inputs["boxes"] - clean) / np.maximum(inputs["timestep"][:, None, None] / 1000, 1e-6)


def test_drawing_ends_where_the_flow_leads_in_any_number_of_steps() -> None:
    (section,) = sections(1)
    tokens = tokens_of([section])
    clean = np.full((1, tokens.valid.shape[1], 4), 0.25, np.float32)
    for steps in (1, 5, 16):
        assert draw_tokens(straight(clean), tokens, [3], steps=steps) == pytest.approx(clean, abs=1e-5)


def test_fixed_fields_are_clean_in_every_step_and_kept() -> None:
    (section,) = sections(1)
    first = replace(section.elements[0], fixed=Fixed(x=72.0, y=None, width=None, height=200.0))
    fixed = Section.of(section.canvas, [first, *section.elements[1:]])
    seen = []

    def predict(inputs: Mapping[str, NDArray]) -> NDArray:
        seen.append(inputs["boxes"][0, 0, [0, 3]].tolist())
        return np.ones_like(inputs["boxes"])

    (boxes,) = draw(predict, [fixed], [0], steps=3)
    assert (boxes[0].x, boxes[0].height) == (72, 200)
    assert seen == [seen[0]] * 3


def test_a_draft_is_told_and_not_kept() -> None:
    asked = sections(2)
    drafts = [[Box(64, 0, 100, 100)] * len(asked[0]), None]
    seen = []

    def predict(inputs: Mapping[str, NDArray]) -> NDArray:
        seen.append(inputs["field_mask"].max((1, 2)).tolist())
        return np.ones_like(inputs["boxes"])

    boxes = draw(predict, asked, [0, 1], drafts=drafts, steps=1)
    assert sorted(value for masks in seen for value in masks) == [0, 0.5]
    assert boxes[0] != drafts[0]


def test_a_layout_is_the_same_alone_and_in_company() -> None:
    transformer, asked = awake(), sections(5)

    def predict(inputs: Mapping[str, NDArray]) -> NDArray:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            made: NDArray = transformer(**given).numpy()
        return made

    together = draw(predict, asked, range(5), steps=3)
    for seed, section in enumerate(asked):
        (alone,) = draw(predict, [section], [seed], steps=3)
        assert np.abs(np.array(alone) - np.array(together[seed])).max() <= 1  # rounding to whole pixels


def test_losses_are_nothing_for_a_perfect_velocity_of_valid_boxes() -> None:
    batch = Batches(8, seed=1).next()
    given = tensors(batch.tokens, "cpu")
    clean = torch.from_numpy(batch.clean)
    noise, levels = torch.randn(clean.shape), torch.rand(8)
    level = levels[:, None, None]
    noisy = (1 - level) * clean + level * noise
    made = losses(noise - clean, noisy, clean, noise, levels, given)
    assert made.total.item() == pytest.approx(0, abs=1e-4)
    wrong = losses(noise - clean + 1, noisy, clean, noise, levels, given)
    assert wrong.velocity.item() == pytest.approx(1)
    assert 0.2 < wrong.clean.item() < 0.9


def test_known_fields_and_padding_are_not_learned_from() -> None:
    batch = Batches(8, seed=2).next()
    given = tensors(batch.tokens, "cpu")
    clean = torch.from_numpy(batch.clean)
    noise = torch.randn(clean.shape)
    free = (given["field_mask"] < 1).float() * given["valid"][..., None]
    predicted = noise - clean + 9 * (1 - free)
    made = losses(predicted, clean, clean, noise, torch.zeros(8), given)
    assert made.velocity.item() == 0


def test_alignment_and_overlap_are_distances_in_units() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.0, -0.5], [0.01, 2.0, 0.3, 0.0], [5.0, 5.0, 5.0, 5.0]]])  # sizes less one unit
    valid, parents = torch.tensor([[1.0, 1.0, 0.0]]), torch.zeros(1, 3, dtype=torch.long)
    assert unaligned(boxes, valid)[0].tolist() == pytest.approx([0.01, 0.01, 0], abs=1e-6)
    over = boxes.clone()
    over[0, 1, 1] = 0.4
    assert sibling_overlap(boxes, valid, parents).item() == 0
    assert sibling_overlap(over, valid, parents).item() == pytest.approx(0.1, abs=1e-6)
    assert sibling_overlap(over, valid, torch.tensor([[0, 1, 0]])).item() == 0


def test_training_learns() -> None:
    torch.manual_seed(0)
    transformer, supply = LayoutTransformer(**SMALL), Batches(32, seed=3)
    batches = [supply.next() for _ in range(4)]
    optimizer, generator = optimizer_of(transformer.parameters()), torch.Generator().manual_seed(0)
    reached = []
    for step in range(60):
        made = step_losses(transformer, batches[step % 4], generator, "cpu")
        optimizer_step(optimizer, made.total, 3e-3)
        reached.append(made.velocity.item())
    assert np.mean(reached[-8:]) < 0.7 * np.mean(reached[:4])


def test_phases_are_kept_and_a_second_training_goes_on_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[str] = []

    def quick(plan: TrainingPlan, phase: object, transformer: LayoutTransformer, *, seed: int) -> LayoutTransformer:
        fitted.append(phase.name)  # type: ignore[attr-defined]
        if fitted == [PHASES[0].name, PHASES[1].name]:
            raise KeyboardInterrupt
        with torch.no_grad():
            transformer.last.bias += 1
        return transformer

    monkeypatch.setattr("nereid_zoo.layout.train.fit", quick)
    plan = TrainingPlan(work=tmp_path / "work", minutes=1)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "out")
    train(plan, tmp_path / "out")
    assert fitted == [PHASES[0].name, *(phase.name for phase in PHASES[1:2]), *(phase.name for phase in PHASES[1:])]
    assert load(tmp_path / "out").last.bias.tolist() == [3.0] * 4
    refused = CliRunner().invoke(app, ["train", "layout", "--work", str(plan.work), "--minutes", "2", "--out", str(tmp_path)])
    assert refused.exit_code == 2
    assert "1-coarse was trained with minutes 1" in " ".join(refused.output.replace("│", " ").split())


def test_phases_of_another_architecture_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """Also of one from before stages said theirs."""
    former = tmp_path / "1-coarse"
    LayoutTransformer(grid_periods=(), related=False).save_pretrained(former)
    facts = {"minutes": 1, "batch_size": 64, "seed": 0}
    for architecture in (None, "width 96"):
        (former / "stage.json").write_text(json.dumps(facts | ({"architecture": architecture} if architecture else {})))
        with pytest.raises(
            StageError, match=f"1-coarse was trained with architecture {architecture!r}, not 'width 192, .* inputs'; "
        ):
            train(TrainingPlan(work=tmp_path, minutes=1), tmp_path / "out")


def test_a_phase_returns_the_average_of_its_weights(tmp_path: Path) -> None:
    plan = TrainingPlan(work=tmp_path, minutes=0.02, batch_size=4)
    transformer = LayoutTransformer(**SMALL)
    average = fit(plan, replace(PHASES[0], share=1.0), transformer, seed=0)
    assert average is not transformer
    assert average.last.weight.any()


@pytest.mark.parametrize(("rows", "count"), [(1, 8), (3, 32)])
def test_the_exported_graph_answers_as_pytorch_does(rows: int, count: int, graph: tuple[Path, Path]) -> None:
    folder, file = graph
    tokens = tokens_of([section for section in sections(60, seed=9) if len(section) <= count][:rows], count)
    inputs = {
        **tokens.as_inputs(),
        "boxes": noise_of(range(rows), count),
        "timestep": np.linspace(20, 1000, rows, dtype=np.float32),
    }
    told = {**tokens.as_inputs(), SAMPLE: inputs["boxes"], TIMESTEP: inputs["timestep"][:, None]}
    wanted, made = torch_predict(folder)(inputs), run_file(file)(told, [OUT])[OUT]
    assert np.abs(wanted).max() > 0.1
    assert np.abs(made - wanted).max() < 1e-4


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("layout")
    save(awake(), folder)
    component = layout_component(folder)
    export_onnx(component, component.load(), folder / "model.onnx", Precision.FP32, component.opset or OPSET)
    return folder, folder / "model.onnx"


def test_blocks_compute_no_sizes_while_they_run_and_have_one_node_for_gelu(graph: tuple[Path, Path], tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(graph[1]), options, providers=["CPUExecutionProvider"])
    blocks = [node for node in onnx.load(tmp_path / "optimised.onnx").graph.node if "/blocks." in "".join(node.output)]
    kinds = Counter(node.op_type for node in blocks)
    assert kinds["Softmax"] == SMALL["layers"]
    assert kinds["FastGelu"] + kinds["Gelu"] == kinds["Softmax"]
    assert not {"Shape", "Gather", "Concat", "Pow", "Tanh"} & set(kinds)


def test_zoo_score_layout_prints_the_transformer_beside_its_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nereid_zoo.layout import score

    save(awake(), tmp_path)
    monkeypatch.setattr(score, "Neighbours", lambda: score_neighbours(40))
    command = ["score", "layout", "--count", "3", "--steps", "2", "--seeds", "2", "--path", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert (printed["checkpoint"], printed["task"], printed["steps"], printed["seeds"]) == ("layout", "all", 2, 2)
    rows = {row["layouts"]: row for row in printed["scores"]}
    assert list(rows) == ["transformer", "training data", "flow", "nearest neighbour"]
    assert rows["transformer"]["passed_after"] == 100
    assert rows["transformer"]["passed_before"] < 100 == rows["training data"]["passed_before"]


def test_zoo_score_layout_has_canvases_of_one_width_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nereid_zoo.layout import score

    save(awake(), tmp_path)
    seen: list[int] = []

    def baselines(asked: score.Asked, task: score.Task) -> dict[str, score.Drawer]:
        seen.extend(section.canvas.width for section in asked.sections)
        return {}

    monkeypatch.setattr(score, "baselines", baselines)
    command = ["score", "layout", "--count", "3", "--steps", "1", "--seeds", "1", "--path", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--canvas-width", "1024", "--json"])
    assert done.exit_code == 0, done.output
    assert (json.loads(done.stdout)["canvas_width"], seen) == (1024, [1024] * 3)
    for wrong, said in (
        ("100", "'--canvas-width': Input should be greater than or equal to 240"),
        ("1024 --task refine", "1024 is not allowed beside --task"),
    ):
        refused = CliRunner().invoke(app, [*command, "--canvas-width", *wrong.split()])
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output


def test_zoo_score_layout_of_drafts_has_the_draft_as_a_baseline(tmp_path: Path) -> None:
    save(awake(), tmp_path)
    command = ["score", "layout", "--count", "3", "--steps", "1", "--seeds", "1", "--path", str(tmp_path), "--task", "refine"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert [row["layouts"] for row in json.loads(done.stdout)["scores"]] == ["transformer", "draft", "flow"]
    assert "task refine" in CliRunner().invoke(app, command).output


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (None, "model_index.json cannot be read: [Errno 2]"),
        ("[]", "model_index.json holds no JSON object"),
        ('{"canvas_widths": {}}', "model_index.json: canvas_widths: {} is not allowed; it must have least and greatest width"),
    ],
)
def test_zoo_score_layout_refuses_widths_that_cannot_be_read(tmp_path: Path, told: str | None, said: str) -> None:
    save(awake(), tmp_path)
    index = tmp_path / "model_index.json"
    index.unlink() if told is None else index.write_text(told)
    done = CliRunner().invoke(app, ["score", "layout", "--count", "1", "--path", str(tmp_path)])
    assert done.exit_code == 2
    assert said.replace(" ", "") in "".join(done.output.replace("│", "").split())


def test_zoo_score_layouts_table_has_the_names_of_its_json(tmp_path: Path) -> None:
    save(awake(), tmp_path)
    command = ["score", "layout", "--count", "2", "--steps", "1", "--seeds", "1", "--path", str(tmp_path), "--task", "size"]
    done = CliRunner().invoke(app, [*command, "--features", str(tmp_path)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "spotless" in done.output


def score_neighbours(count: int) -> object:
    from nereid_zoo.layout.neighbours import Neighbours

    return Neighbours(count)


def test_features_are_trained_once_and_measure_distances(tmp_path: Path) -> None:
    train_features(tmp_path / "work", 0.05, tmp_path / "features")
    train_features(tmp_path / "work", 0.05, tmp_path / "features")
    assert {file.name for file in (tmp_path / "features").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    measure = features_of(tmp_path / "features")
    rng = Random(0)
    asked, layouts = zip(*(sample_row(rng) for _ in range(70)), strict=True)
    own = measure(asked, layouts)
    assert own.shape == (70, 96)
    assert np.abs(measure(asked[3:4], layouts[3:4]) - own[3]).max() < 1e-4
    spoiled = [spoil(*each, Spoiled.STRETCHED, rng) for each in zip(asked, layouts, strict=True)]
    assert frechet_distance(own, measure(asked, spoiled)) > frechet_distance(own, own) + 1e-3


def test_zoo_score_layout_refuses_a_folder_without_a_transformer(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["score", "layout", "--path", str(tmp_path)])
    assert done.exit_code == 2
    assert "must be a layout transformer" in " ".join(done.output.replace("│", " ").split())
