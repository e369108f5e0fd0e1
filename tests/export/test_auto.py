"""`--engine auto` and `remeasure`: what is built, measured, published and exchanged; real engines of a tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nereid.engines.digests import Verifier

from conftest import Silent, export

pytest.importorskip("torch")
pytest.importorskip("openvino")
from small_module import Small, component

from nereid_export import contest
from nereid_export.auto import Auto
from nereid_export.built import Built
from nereid_export.candidates import AutoOptions, candidates_of, parse_candidates, parse_step_rows, thread_counts
from nereid_export.choice import Row
from nereid_export.configs import read_config
from nereid_export.contest import Contest, Entrant
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target
from nereid_export.engines.check import Run
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision, Precisions, parse_precisions
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.options import ExportOptions
from nereid_export.remeasure import remeasure

from checkpoints import make_sd

pytestmark = pytest.mark.torch

SMALL = component(Small())
TARGET = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=4, default_side=16, max_side=16, scale=2)
MEMORY: dict[str, Any] = {"base_bytes": 10 * 2**20, "bytes_per_row": 1024.0, "measured": []}
PREFERRED = {"unet": "openvino", "vae_decoder": "onnxruntime", "vae_encoder": "openvino"}


def speeds(preferred: dict[str, str]) -> Callable[[Contest, Row, Run], None]:
    """Known times in the place of measured ones, which no test can know: the preferred engine is fastest with one thread."""

    def time(made: Contest, row: Row, run: Run) -> None:
        fast = row.engine == preferred.get(made.component.name, "onnxruntime") and row.threads == 1
        row.milliseconds = {rows: rows * (1.0 if fast else 2.0) for rows in {1, 2, *made.expected}}

    return time


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, exported: to be read only. Its memory is made up: measuring takes a process for each engine."""
    root = tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nereid_export.built.measure_memory", lambda *_: MEMORY)
        patch.setattr(contest, "available_processors", lambda: 2)
        patch.setattr(Contest, "_time", speeds(PREFERRED))
        export(make_sd(root), root / "out", engine=Engine.AUTO, name="p", max_batch_size=4)
    return root / "out"


@pytest.fixture
def repository(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may choose again in, on a machine of two processors."""
    monkeypatch.setattr(contest, "available_processors", lambda: 2)
    monkeypatch.setattr("nereid_export.remeasure.measure_memory", lambda *_: MEMORY)
    return Path(shutil.copytree(exported, tmp_path / "out"))


def manifest_of(repository: Path) -> dict[str, Any]:
    return dict(json.loads((repository / "p_text_to_image" / "manifest.json").read_text()))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def verify(repository: Path) -> None:
    Verifier(repository).verify(sorted(folder.name for folder in repository.iterdir()))


def test_every_component_gets_its_own_engine_and_threads(exported: Path) -> None:
    engines = manifest_of(exported)["engines"]
    assert {name: (its["engine"], its["threads"]) for name, its in engines.items()} == {
        f"p_{name}": (PREFERRED.get(name, "onnxruntime"), 1) for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    }
    unet, decoder = (read_config(exported / name / "config.pbtxt") for name in ("p_unet", "p_vae_decoder"))
    assert (unet.backend, unet.parameters["INFERENCE_NUM_THREADS"].string_value) == ("openvino", "1")
    assert (decoder.backend, decoder.parameters["intra_op_thread_count"].string_value) == ("onnxruntime", "1")


@pytest.mark.parametrize(("guided", "asked", "rows"), [(True, (), (2, 4)), (False, (), (1, 2, 4)), (False, (3,), (3,))])
def test_rows_that_decide_are_those_of_one_two_and_four_images(
    guided: bool, asked: tuple[int, ...], rows: tuple[int, ...], tmp_path: Path
) -> None:
    options = ExportOptions(checkpoint=tmp_path, out=tmp_path, engine=Engine.AUTO, auto=AutoOptions(step_rows=asked))
    assert TARGET.max_batch_size == 4
    made = Auto.of(options, {"unet": SMALL}, {"unet": TARGET}, guided=guided)
    assert made.contests["unet"].expected == rows


def test_losers_lie_beside_the_served_engine_and_digests_cover_them(exported: Path) -> None:
    assert files(exported / "p_unet") == {
        "config.pbtxt",
        "1/model.xml",
        "1/model.bin",
        "alternatives/onnxruntime-fp32/model.onnx",
    }
    assert "p_unet/alternatives/onnxruntime-fp32/model.onnx" in manifest_of(exported)["files"]
    verify(exported)


def test_the_manifest_has_the_whole_table(exported: Path) -> None:
    rows = manifest_of(exported)["candidates"]["p_unet"]
    assert [(row["engine"], row["precision"], row["threads"], row["chosen"]) for row in rows] == [
        ("onnxruntime", "fp32", 0, False),
        ("onnxruntime", "fp32", 1, False),
        ("openvino", "fp32", 0, False),
        ("openvino", "fp32", 1, True),
    ]
    assert all(row["error"] < 1e-4 and row["bytes"] and row["memory_bytes"] for row in rows)
    assert rows[3]["milliseconds"] == {"1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}
    assert "batch_invariant_from_rows" in rows[3]


def test_another_machine_exchanges_engines_and_configs_and_can_go_back(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, was = manifest_of(repository), files(repository)
    monkeypatch.setattr(Contest, "_time", speeds({"text_encoder": "openvino"}))
    (manifest,) = remeasure(repository, Silent())
    assert manifest == manifest_of(repository)
    verify(repository)
    engines = {name: its["engine"] for name, its in manifest["engines"].items()}
    assert (
        json.loads((repository / "p_denoise" / "1" / "pipeline.json").read_text())["memory"]["unet"]["base_bytes"] == 10 * 2**20
    )
    assert (engines["p_unet"], engines["p_text_encoder"]) == ("onnxruntime", "openvino")
    assert files(repository / "p_unet") == {
        "config.pbtxt",
        "1/model.onnx",
        "alternatives/openvino-fp32/model.xml",
        "alternatives/openvino-fp32/model.bin",
    }
    unet = read_config(repository / "p_unet" / "config.pbtxt")
    assert (unet.name, unet.backend, unet.max_batch_size) == ("p_unet", "onnxruntime", 8)
    assert {path.name for path in repository.parent.iterdir()} == {"out", ".out.lock"}
    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    (back,) = remeasure(repository, Silent())
    assert files(repository) == was
    assert {name: its["engine"] for name, its in back["engines"].items()} == {
        name: its["engine"] for name, its in before["engines"].items()
    }
    served = [file for file in before["files"] if "/1/model." in file or file.endswith("config.pbtxt")]
    assert {file: back["files"][file] for file in served} == {file: before["files"][file] for file in served}


def test_an_engine_that_this_machine_cannot_run_loses_with_its_reason(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(self: object, target: Target) -> None:
        raise ExportError("it is not installed")

    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    monkeypatch.setattr(type(BUILDERS[Engine.OPENVINO]), "require_run", lacking)
    (manifest,) = remeasure(repository, Silent())
    assert {its["engine"] for its in manifest["engines"].values()} == {"onnxruntime"}
    dropped = {row["engine"]: row.get("dropped") for row in manifest["candidates"]["p_unet"]}
    assert dropped == {"onnxruntime": None, "openvino": "it is not installed"}
    verify(repository)


def test_an_engine_that_this_machine_can_run_but_not_build_is_measured(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(self: object, target: Target) -> None:
        raise ExportError("its compiler is not here")

    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    monkeypatch.setattr(type(BUILDERS[Engine.OPENVINO]), "require", lacking)
    (manifest,) = remeasure(repository, Silent())
    assert manifest["engines"]["p_unet"]["engine"] == "openvino"


def test_what_was_not_published_has_one_row_after_another_choice(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = repository / "p_text_to_image" / "manifest.json"
    manifest = manifest_of(repository)
    gone = [{"engine": "openvino", "precision": "int8", "threads": threads, "chosen": False} for threads in (0, 1)]
    manifest["candidates"]["p_unet"] += gone
    home.write_text(json.dumps(manifest))
    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    (again,) = remeasure(repository, Silent())
    assert [row["precision"] for row in again["candidates"]["p_unet"]] == ["fp32", "fp32", "fp32", "fp32", "int8"]


def test_nothing_is_run_whose_files_were_changed(repository: Path) -> None:
    file = repository / "p_unet" / "alternatives" / "onnxruntime-fp32" / "model.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ExportError, match=r"alternatives/onnxruntime-fp32/model\.onnx was changed after its export"):
        remeasure(repository, Silent())


def edit_manifest(repository: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = manifest_of(repository)
    edit(manifest)
    (repository / "p_text_to_image" / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda it: shutil.rmtree(it / "p_vae_encoder"), r"p_vae_encoder/\S+ is missing; export the model again"),
        (lambda it: shutil.rmtree(it / "p_denoise"), r"p_denoise/\S+ is missing; export the model again"),
        (lambda it: edit_manifest(it, lambda m: m.pop("models")), "manifest.json is damaged: it must name `models` and `files`"),
        (
            lambda it: edit_manifest(it, lambda m: m.pop("engines")),
            "manifest.json is damaged .*'engines'.; export",
        ),
        (lambda it: edit_manifest(it, lambda m: m.pop("candidates")), "manifest.json is damaged .*'candidates'"),
        (lambda it: edit_manifest(it, lambda m: m["engines"]["p_unet"].update(engine="x")), "manifest.json is damaged .*'x'"),
    ],
)
def test_what_was_removed_or_damaged_is_one_sentence_and_nothing_is_left(
    damage: Callable[[Path], object], sentence: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    damage(repository)
    before = files(repository)
    with pytest.raises(ExportError, match=sentence):
        remeasure(repository, Silent())
    assert files(repository) == before
    assert {path.name for path in repository.parent.iterdir()} == {"out", ".out.lock"}


def test_an_engine_may_fail_with_an_exception_of_its_librarys_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's are no RuntimeError."""

    class OwnError(Exception):
        pass

    def without_openvino(made: Contest, row: Row, run: Run) -> None:
        if row.engine == "openvino":
            raise OwnError("no kernel\nmore")
        speeds({})(made, row, run)

    monkeypatch.setattr(Contest, "_time", without_openvino)
    (manifest,) = remeasure(repository, Silent())
    assert {its["engine"] for its in manifest["engines"].values()} == {"onnxruntime"}
    dropped = {row["engine"]: row.get("dropped") for row in manifest["candidates"]["p_unet"]}
    assert dropped == {"onnxruntime": None, "openvino": "it cannot be run here: no kernel"}


def test_a_repository_is_found_by_a_link_and_from_within(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contest, "_time", speeds(PREFERRED))
    was, link = files(repository), repository.parent / "link"
    link.symlink_to("out")
    remeasure(link, Silent())
    monkeypatch.chdir(repository)
    remeasure(Path(), Silent())
    assert files(repository) == was
    assert link.is_symlink()
    assert {path.name for path in repository.parent.iterdir()} == {"out", "link", ".out.lock"}


def test_a_choice_that_fails_leaves_the_repository_as_it_was(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[int, float]:
        raise RuntimeError("no kernel")

    before = manifest_of(repository)
    monkeypatch.setattr(contest, "milliseconds_by_rows", broken)
    with pytest.raises(ExportError, match=r"no engine is left to choose from: .*it cannot be run here: no kernel"):
        remeasure(repository, Silent())
    assert manifest_of(repository) == before
    verify(repository)
    assert {path.name for path in repository.parent.iterdir()} == {"out", ".out.lock"}


def test_a_repository_without_a_choice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing here was exported with --engine auto"):
        remeasure(tmp_path, Silent())
    with pytest.raises(ExportError, match="is no folder; it must be an exported repository"):
        remeasure(tmp_path / "none", Silent())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": Engine.AUTO, "device": Device.CUDA}, "--device: cuda is not allowed with --engine auto, .* must be cpu"),
        ({"engine": Engine.AUTO, "plan": PlanOptions(threads=2)}, "--threads is not allowed with --engine auto"),
        ({"engine": Engine.AUTO, "plan": PlanOptions(refit=True)}, "--refit is not allowed with --engine auto"),
        (
            {"engine": Engine.AUTO, "auto": AutoOptions(step_rows=(2, 17))},
            "--step-rows: 17 is not allowed; .* 16 or less",
        ),
        ({"engine": Engine.AUTO, "auto": AutoOptions(max_engine_mib=-1)}, "--max-engine-mib: -1 is not allowed"),
        ({"auto": AutoOptions(step_rows=(2,))}, "--step-rows is not allowed with --engine onnxruntime; .* engine be auto"),
        ({"precision": Precisions(auto=True)}, "--precision: auto is not allowed with --engine onnxruntime"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], sentence: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(checkpoints["sd"], tmp_path / "out", **options)


def test_no_candidate_names_the_reason_of_each(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no candidate here: .*fp16.* --engine openvino"):
        export(
            checkpoints["sd"],
            tmp_path / "out",
            engine=Engine.AUTO,
            precision=Precisions(Precision.FP16),
            auto=AutoOptions(candidates=(Engine.OPENVINO,)),
        )


def test_candidates_are_engines_in_the_precision_asked_for_or_in_those_they_have() -> None:
    def found(precisions: Precisions) -> list[tuple[str, str]]:
        target = replace(TARGET, precision=precisions.of(SMALL.name))
        made = candidates_of(SMALL, target, (Engine.ONNXRUNTIME, Engine.OPENVINO), precisions)
        return [(candidate.engine, candidate.target.of(SMALL)) for candidate in made]

    both = [("onnxruntime", "fp32"), ("openvino", "fp32")]
    assert found(parse_precisions("int8,unet=fp32")) == both
    assert found(parse_precisions("auto,unet=fp32")) == both
    assert found(parse_precisions("auto")) == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ]


def test_refused_pictures_cost_the_coarsest_precision_its_place_and_then_the_next() -> None:
    times = {Precision.INT8: 1.0, Precision.BF16: 2.0, Precision.FP32: 3.0}
    rows = [Row(engine="openvino", precision=of, milliseconds={2: took}, compared=True) for of, took in times.items()]
    made = Contest(SMALL, (2,), {}, rows)
    auto = Auto(ExportOptions(checkpoint=Path("c"), out=Path("o"), engine=Engine.AUTO), {}, {"unet": made}, {})
    for expected in times:
        chosen = made.elect(print)
        assert chosen.precision == expected
        if expected is not Precision.FP32:
            served = replace(TARGET, precision=expected)
            auto.drop_coarsest([Built(SMALL, Engine.OPENVINO, served, Path())], "too far; nothing was published")
            assert chosen.dropped == "too far"
    assert [row.chosen for row in rows] == [False, False, True]


def test_an_engine_that_onnx_runtime_refuses_loses_with_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    entrant = Entrant(engine=Engine.ONNXRUNTIME, target=TARGET, folder=tmp_path, error=0.0, memory=None)
    made = Contest(SMALL, (1,), {"onnxruntime-fp32": entrant}, [])
    made.measure(2**30, print)
    assert made.rows
    assert all(row.dropped.startswith("it cannot be run here: [ONNXRuntimeError]") for row in made.rows)


def test_fewer_threads_are_tried_where_an_engine_can_be_told() -> None:
    assert thread_counts(Engine.ONNXRUNTIME, 8) == (0, 4)
    assert thread_counts(Engine.OPENVINO, 1) == (0,)
    assert thread_counts(Engine.TORCH, 8) == (0,)


def test_lists_are_read_or_refused_by_name() -> None:
    assert parse_candidates("openvino, torch") == (Engine.OPENVINO, Engine.TORCH)
    with pytest.raises(ExportError, match="--candidates: 'tensorrt' is not allowed; it must be of onnxruntime, openvino, torch"):
        parse_candidates("tensorrt")
    assert parse_step_rows("8,2") == (2, 8)
    with pytest.raises(ExportError, match="--step-rows: '0' is not allowed"):
        parse_step_rows("2,0")
    assert str(parse_precisions("auto,unet=int8")) == "auto,unet=int8"


def test_a_manifest_has_the_options_that_were_given_as_they_are_typed() -> None:
    auto = AutoOptions(candidates=(Engine.OPENVINO, Engine.TORCH), step_rows=(2, 4), max_engine_mib=100)
    assert auto.asked() == {"candidates": "openvino,torch", "step_rows": "2,4", "max_engine_mib": "100"}
    plan = PlanOptions(compute_capability=("8.9", "12.0"), bucket=((64, 96), (32, 32)), refit=True)
    assert plan.asked() == {"compute_capability": "8.9,12.0", "bucket": "64x96,32x32", "refit": "True"}
    assert AutoOptions().asked() == PlanOptions().asked() == {}
