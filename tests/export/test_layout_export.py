"""Export of layout transformers: what is written, what it computes, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from drawing import Answers, boxes_of, text

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid.diffusion.dynamic_width import WidthEngine
from nereid.engines.engine_process import EngineProcess
from nereid.engines.engine_process_main import load_engine
from nereid.flow.metrics import Recorder
from nereid.layout.elements import Section
from nereid.layout.repair import repair
from nereid.layout.service import LayoutService
from nereid.layout.settings import LAYOUT_FILE, BranchFacts, LayoutFacts, LayoutLimits, LayoutModel
from nereid.layout.tokens import tokens_of
from nereid_bench.layout_load import asked_for
from nereid_export.configs import read_config
from nereid_export.engines.check import random_inputs
from nereid_export.errors import ExportError
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.component import branch_components, layout_component
from nereid_zoo.layout.draw import draw, flow_of, torch_predict

import checkpoints
from conftest import Silent, export_layout

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_layout(tmp_path_factory.mktemp("layout") / "little")


@pytest.fixture(scope="module")
def repositories(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By engine; to be read only."""
    made = {engine: tmp_path_factory.mktemp(engine) / "out" for engine in ("onnxruntime", "openvino")}
    for engine, out in made.items():
        export_layout(checkpoint, out, engine=engine)
    return made


def sections(count: int) -> list[Section]:
    rng = Random(3)
    return [sample_row(rng)[0] for _ in range(count)]


def inputs_of(section: Section, **options: Any) -> dict[str, np.ndarray]:
    elements, given = asked_for(section)
    made = {"canvas": text(json.dumps(given)), "elements": text(json.dumps(elements))}
    for name, value in options.items():
        made[name] = text(value) if isinstance(value, str) else np.array([value], np.int64 if name == "seed" else np.int32)
    return made


@pytest.fixture(params=["onnxruntime", "openvino"])
def service(request: pytest.FixtureRequest, repositories: dict[str, Path]) -> Any:
    """The exported model, its engine in a real process."""
    folder = repositories[request.param] / "layout"
    parameters = {key: value.string_value for key, value in read_config(folder / "config.pbtxt").parameters.items()}
    model = LayoutModel.read("layout", folder / "1", LayoutLimits.from_parameters(parameters), "one")
    engine = EngineProcess(model.worker_options())
    engine.wait_ready()
    service = LayoutService(model=model, engine=engine, recorder=Recorder(lambda metric, value, labels: None))
    yield service
    service.stop()


def ask(service: LayoutService, section: Section, **options: Any) -> Answers:
    answers = Answers()
    service.handle(inputs_of(section, **options), answers)
    return answers


def test_what_is_served_is_what_pytorch_draws(service: LayoutService, checkpoint: Path) -> None:
    asked = sections(6)
    drawn = draw(torch_predict(checkpoint), asked, list(range(6)), steps=5, flow=flow_of(checkpoint))
    for seed, (section, boxes) in enumerate(zip(asked, drawn, strict=True)):
        answer = ask(service, section, seed=seed, num_inference_steps=5).layout
        assert answer["drawn_by"] == "transformer"
        expected = repair(section, boxes).boxes
        off = np.abs(np.array(list(boxes_of(answer).values())) - np.array(expected)).max(axis=1)
        assert (off <= 8).mean() > 0.9  # where rounding takes another pixel, snapping may take another line


def test_the_same_bytes_alone_and_in_company(service: LayoutService) -> None:
    asked = sections(24)
    alone = [ask(service, section, seed=seed).wait().sent[-1] for seed, section in enumerate(asked)]
    together = [ask(service, section, seed=seed) for seed, section in enumerate(asked)]
    for one, answers in zip(alone, together, strict=True):
        other = answers.wait().sent[-1]
        assert one.keys() == other.keys()
        assert all(one[name].tolist() == other[name].tolist() for name in one)


def test_onnxruntime_gives_the_same_bits_with_any_number_of_threads(checkpoint: Path, repositories: dict[str, Path]) -> None:
    file = repositories["onnxruntime"] / "layout" / "1" / "model.onnx"
    random = [random_inputs(layout_component(checkpoint), rows, {"tokens": 16}, rows) for rows in (1, 3, 8)]
    given = [{name: value.numpy() for name, value in inputs.items()} for inputs in random]
    alone = load_engine(file, "onnxruntime", 1)
    for threads in (2, 3):
        several = load_engine(file, "onnxruntime", threads)
        for inputs in given:
            assert np.array_equal(several(inputs, ["out_sample"])["out_sample"], alone(inputs, ["out_sample"])["out_sample"])


def test_the_repository_holds_the_engine_its_facts_and_a_signed_manifest(repositories: dict[str, Path]) -> None:
    for engine, file in (("onnxruntime", "model.onnx"), ("openvino", "model.xml")):
        folder = repositories[engine] / "layout"
        assert [path.name for path in repositories[engine].iterdir()] == ["layout"]
        assert (folder / "1" / file).is_file()
        assert LayoutFacts.read(folder / "1").schedule.flow
        parameters = read_config(folder / "config.pbtxt").parameters
        assert (parameters["engine"].string_value, parameters["threads"].string_value) == (engine, "2")
        manifest = json.loads((folder / "manifest.json").read_text())
        said = manifest["engines"]["layout"]
        assert said["engine"] == engine
        assert {check["sizes"]["tokens"] for check in said["checks"]} == {8, 16, 24, 32}
        assert said["batch_invariant_from_rows"] in (1, 2)
        assert said["memory"]["bytes_per_row"] > 0
        assert {f"layout/1/{file}", f"layout/1/{LAYOUT_FILE}", "layout/config.pbtxt"} <= manifest["files"].keys()


def test_onnx_runtimes_graph_has_one_node_for_each_gelu(repositories: dict[str, Path]) -> None:
    found = Counter(
        node.op_type for node in onnx.load(str(repositories["onnxruntime"] / "layout" / "1" / "model.onnx")).graph.node
    )
    assert found["Gelu"] == 2  # of as many blocks


def test_an_export_adds_to_a_repository_and_a_second_one_builds_nothing_again(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_layout(checkpoint, out)
    export_layout(checkpoint, out, name="second", max_batch_size=4)
    assert {path.name for path in out.iterdir()} == {"layout", "second_layout"}
    config = read_config(out / "second_layout" / "config.pbtxt")
    assert (config.name, config.parameters["engine_max_batch_size"].string_value) == ("second_layout", "4")


def test_auto_measures_both_engines_and_serves_one(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nereid_export import speed

    monkeypatch.setattr(speed, "_SECONDS", 0.02)
    manifest: dict[str, Any] = export_layout(checkpoint, tmp_path / "out", engine="auto")
    rows = manifest["candidates"]["layout"]
    assert {row["engine"] for row in rows} == {"onnxruntime", "openvino"}
    (chosen,) = (row for row in rows if row["chosen"])
    assert manifest["engines"]["layout"]["engine"] == chosen["engine"]
    parameters = read_config(tmp_path / "out" / "layout" / "config.pbtxt").parameters
    assert parameters["engine"].string_value == chosen["engine"]


# --- branches ---


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def cut(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with engines that reuse branches; to be read only."""
    out = tmp_path_factory.mktemp(f"cut-{request.param}") / "out"
    export_layout(checkpoint, out, engine=request.param, cache=True)
    return out


def test_engines_that_reuse_branches_are_exported_checked_and_named(cut: Path, repositories: dict[str, Path]) -> None:
    folder = cut / "layout"
    manifest = json.loads((folder / "manifest.json").read_text())
    engine = manifest["engines"]["layout"]["engine"]
    assert manifest["branch_engines"].keys() == set(BranchEngine)
    for name, said in manifest["branch_engines"].items():
        assert said["engine"] == engine
        assert {check["sizes"]["tokens"] for check in said["checks"]} == {8, 16, 24, 32}
        assert {check["output"] for check in said["checks"]} == {"out_sample", *BranchEngine(name).computed}
        assert said["memory"]["bytes_per_row"] > 0
    facts = LayoutFacts.read(folder / "1").branches
    assert facts == BranchFacts(blocks=2, width=48)
    file = {"onnxruntime": "model.onnx", "openvino": "model.xml"}[engine]
    assert {f"layout/1/{name}/{file}" for name in BranchEngine} <= manifest["files"].keys()
    assert (folder / "1" / file).is_file()
    assert LayoutFacts.read(repositories[engine] / "layout" / "1").branches is None


@contextmanager
def served(repository: Path) -> Iterator[LayoutService]:
    """The exported model, its engines in a real process."""
    folder = repository / "layout"
    parameters = {key: value.string_value for key, value in read_config(folder / "config.pbtxt").parameters.items()}
    model = LayoutModel.read("layout", folder / "1", LayoutLimits.from_parameters(parameters), "one")
    engine = EngineProcess(model.worker_options())
    engine.wait_ready()
    service = LayoutService(model=model, engine=engine, recorder=Recorder(lambda metric, value, labels: None))
    try:
        yield service
    finally:
        service.stop()


def test_caching_is_the_same_in_any_company_and_off_is_what_it_is_without_such_engines(
    cut: Path, repositories: dict[str, Path]
) -> None:
    asked = sections(12)
    engine = json.loads((cut / "layout" / "manifest.json").read_text())["engines"]["layout"]["engine"]

    def options(n: int) -> dict[str, Any]:
        return {"seed": n, "cache": ("0.9", "off", "0.3")[n % 3]}

    def bytes_of(answers: Answers) -> dict[str, Any]:
        return {name: value.tolist() for name, value in answers.wait().sent[-1].items()}

    with served(cut) as service:
        alone = [bytes_of(ask(service, section, **options(n))) for n, section in enumerate(asked)]
        inside = [ask(service, section, **options(n)) for n, section in enumerate(asked)]
        assert [bytes_of(answers) for answers in inside] == alone
        off = [bytes_of(ask(service, section, seed=n)) for n, section in enumerate(asked)]
    assert off[1::3] == alone[1::3]
    assert off != alone
    with served(repositories[engine]) as service:
        assert [bytes_of(ask(service, section, seed=n)) for n, section in enumerate(asked)] == off


def test_what_is_reused_while_nothing_has_changed_changes_nothing(cut: Path, checkpoint: Path) -> None:
    """Every engine, given the branches of its very inputs, answers as PyTorch's whole transformer does."""
    from nereid.engines.engine_process_main import load_engine

    model = LayoutModel.read("layout", cut / "layout" / "1", _limits(cut), "one")
    others = model.worker_options().settings["others"]
    tokens = tokens_of(sections(3), 32)
    sample = np.random.default_rng(1).standard_normal((3, 32, 4), np.float32)
    inputs = {**tokens.as_inputs(), "sample": sample, "timestep": np.full((3, 1), 400, np.float32)}
    expected = torch_predict(checkpoint)({**tokens.as_inputs(), "boxes": sample, "timestep": inputs["timestep"][:, 0]})
    branches: dict[str, np.ndarray] = {}
    for name in BranchEngine:
        its = others[name]
        run = load_engine(Path(its["file"]), model.limits.engine, 1)
        given = {key: value for key, value in inputs.items() if key not in name.untaken}
        made = run({**given, **{branch: branches[branch] for branch in name.reused}}, its["outputs"])
        branches = branches or made
        for row, section in enumerate(sections(3)):
            ours, theirs = made["out_sample"][row, : len(section)], expected[row, : len(section)]
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


# --- dynamic width ---


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_dynamic_layout(tmp_path_factory.mktemp("layout") / "dynamic")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def sliced(request: pytest.FixtureRequest, dynamic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with slices of the transformer; to be read only."""
    out = tmp_path_factory.mktemp(f"sliced-{request.param}") / "out"
    export_layout(dynamic, out, engine=request.param, widths=True)
    return out


def test_slices_are_exported_checked_and_named_with_their_ranges(sliced: Path) -> None:
    folder = sliced / "layout"
    manifest = json.loads((folder / "manifest.json").read_text())
    engine = manifest["engines"]["layout"]["engine"]
    assert manifest["width_engines"].keys() == set(WidthEngine)
    assert "branch_engines" not in manifest
    for said in manifest["width_engines"].values():
        assert said["engine"] == engine
        assert {check["sizes"]["tokens"] for check in said["checks"]} == {8, 16, 24, 32}
    file = {"onnxruntime": "model.onnx", "openvino": "model.xml"}[engine]
    assert {f"layout/1/{name}/{file}" for name in WidthEngine} <= manifest["files"].keys()
    table = LayoutFacts.read(folder / "1").widths
    assert table is not None
    assert [(most, str(name)) for most, name in table.ranges] == [(200, "medium"), (500, "narrow"), (math.inf, "wide")]


def test_every_slice_answers_as_the_masked_transformer_does(sliced: Path, dynamic: Path) -> None:
    from nereid.engines.engine_process_main import load_engine

    model = LayoutModel.read("layout", sliced / "layout" / "1", _limits(sliced), "one")
    others, table = model.worker_options().settings["others"], model.facts.widths
    assert table is not None
    tokens, masked = tokens_of(sections(3), 32), torch_predict(dynamic, widths=True)
    sample = np.random.default_rng(1).standard_normal((3, 32, 4), np.float32)
    for timestep in (100, 400, 900):
        its = others[str(table.engine(timestep))]
        run = load_engine(Path(its["file"]), model.limits.engine, 1)
        told = {**tokens.as_inputs(), "timestep": np.full((3, 1), timestep, np.float32)}
        made = run({**told, "sample": sample}, its["outputs"])["out_sample"]
        expected = masked({**told, "boxes": sample, "timestep": told["timestep"][:, 0]})
        whole = torch_predict(dynamic)({**told, "boxes": sample, "timestep": told["timestep"][:, 0]})
        for row, section in enumerate(sections(3)):
            ours, theirs, others_ = (its[row, : len(section)] for its in (made, expected, whole))
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
            assert np.abs(ours - others_).max() > 1e-2 * np.abs(theirs).max()


def test_dynamic_width_is_the_same_in_any_company_and_full_is_what_it_is_without_slices(
    sliced: Path, repositories: dict[str, Path]
) -> None:
    asked = sections(12)
    engine = json.loads((sliced / "layout" / "manifest.json").read_text())["engines"]["layout"]["engine"]

    def options(n: int) -> dict[str, Any]:
        return {"seed": n, "transformer_width": ("dynamic", "full", "dynamic")[n % 3]}

    def bytes_of(answers: Answers) -> dict[str, Any]:
        return {name: value.tolist() for name, value in answers.wait().sent[-1].items()}

    with served(sliced) as service:
        alone = [bytes_of(ask(service, section, **options(n))) for n, section in enumerate(asked)]
        inside = [ask(service, section, **options(n)) for n, section in enumerate(asked)]
        assert [bytes_of(answers) for answers in inside] == alone
        full = [bytes_of(ask(service, section, seed=n)) for n, section in enumerate(asked)]
    assert full[1::3] == alone[1::3]
    assert full != alone
    with served(repositories[engine]) as service:
        assert [bytes_of(ask(service, section, seed=n)) for n, section in enumerate(asked)] == full


def test_slices_and_branches_are_exported_together(dynamic: Path, tmp_path: Path) -> None:
    manifest: dict[str, Any] = export_layout(dynamic, tmp_path / "out", cache=True, widths=True)
    assert manifest["branch_engines"].keys() == set(BranchEngine)
    assert manifest["width_engines"].keys() == set(WidthEngine)
    facts = LayoutFacts.read(tmp_path / "out" / "layout" / "1")
    assert facts.branches == BranchFacts(blocks=2, width=48)
    assert facts.widths is not None


def test_a_checkpoint_without_widths_is_refused(checkpoint: Path, dynamic: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--widths: .* has no dynamic_transformer/, which `nereid zoo train layout-dynamic`"):
        export_layout(checkpoint, tmp_path / "out", widths=True)
    folder = tmp_path / "routed"
    shutil.copytree(dynamic, folder)
    edit("config.json", widths=None)(folder / "dynamic_transformer")
    with pytest.raises(ExportError, match=r"dynamic_transformer cannot be used: .* it has routers and no widths"):
        export_layout(folder, tmp_path / "out", widths=True)
    assert not (tmp_path / "out").exists()


def _limits(repository: Path) -> LayoutLimits:
    parameters = read_config(repository / "layout" / "config.pbtxt").parameters
    return LayoutLimits.from_parameters({key: value.string_value for key, value in parameters.items()})


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def make_pickle(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").rename(folder / "transformer" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
        (edit("model_index.json", _class_name="StableDiffusionPipeline"), "architecture 'StableDiffusionPipeline' with"),
        (edit("model_index.json", transformer=["os", "system"]), r"with transformer \['os', 'system'\] is not supported"),
        (edit("model_index.json", canvas_widths={"mobile": [360]}), "model_index.json: canvas_widths: .* is not allowed"),
        (make_pickle, "is a pickle"),
        (edit("scheduler/scheduler_config.json", use_dynamic_shifting=True), "use_dynamic_shifting: True is not supported"),
        (edit("scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"), "is not"),
        (edit("transformer/config.json", width=96), "transformer cannot be used"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(ExportError, match=said):
        export_layout(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_engines_of_branches_need_are_missed_in_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / "transformer" / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="transformer cannot be used: KeyError: 'layers'"):
        export_layout(folder, tmp_path / "out", cache=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"engine": "tensorrt"},
            "--engine: tensorrt is not allowed for a layout transformer; it must be one of onnxruntime, openvino, auto",
        ),
        ({"max_batch_size": 0}, "--max-batch-size: 0 is not allowed; it must be 1 to 64"),
        ({"name": "a/b"}, "--name: 'a/b' is not allowed"),
    ],
)
def test_options_that_are_not_allowed_are_refused(checkpoint: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said.split("'")[0]):
        export_layout(checkpoint, tmp_path / "out", **options)


def test_progress_counts_its_steps(checkpoint: Path, tmp_path: Path) -> None:
    class Counted(Silent):
        planned = 0

        def total(self, steps: int) -> None:
            self.planned = steps

    from nereid_export.layout import LayoutExportOptions
    from nereid_export.layout import export_layout as export

    progress = Counted()
    export(LayoutExportOptions(checkpoint=checkpoint, out=tmp_path / "out"), progress)
    assert progress.planned == len(progress.said)


@pytest.mark.parametrize("engine", [BranchEngine.MLP_REUSED, BranchEngine.REUSED])
def test_engines_that_reuse_are_checked_with_what_an_earlier_step_has_made(
    checkpoints: dict[str, Path], engine: BranchEngine
) -> None:
    component = branch_components(checkpoints["layout"])[engine]
    inputs = random_inputs(component, 2, {"tokens": 8, "places": 9}, 1)
    with torch.no_grad():
        reused = component.load()(*inputs.values())
        reused = reused[0] if isinstance(reused, tuple) else reused
        told = {name: value for name, value in inputs.items() if name not in tuple(Branch)}
        whole = layout_component(checkpoints["layout"]).load()
        wanted = whole(**{"valid": torch.ones(2, 8), **told})
    assert 1e-6 < (reused - wanted).norm() / wanted.norm() < 0.2
