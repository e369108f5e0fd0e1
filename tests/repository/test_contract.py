"""Configs obey their contract, as sources and as exported: names, ensemble maps, engines, parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from nereid_protocol.field import Model
from nereid_protocol.fields import carried_by, passed_on

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "model_repository"


def configs(folder: Path) -> dict[str, pb.ModelConfig]:
    return {file.parent.name: text_format.Parse(file.read_text(), pb.ModelConfig()) for file in folder.glob("*/config.pbtxt")}


@pytest.fixture(params=["source", "exported"])
def models(request: pytest.FixtureRequest) -> tuple[Path, dict[str, pb.ModelConfig]]:
    if request.param == "source":
        from nereid_export.configs import source_config

        return SOURCE, {folder.name: source_config(folder.name) for folder in SOURCE.iterdir()}
    folder = request.getfixturevalue("repository")
    return folder, configs(folder)


def test_nothing_but_models_stands_in_the_repository(models: tuple[Path, dict[str, pb.ModelConfig]]) -> None:
    folder, known = models
    assert known
    assert {path.name for path in folder.iterdir()} == set(known)


def test_names_are_folders_and_versions_exist(models: tuple[Path, dict[str, pb.ModelConfig]]) -> None:
    folder, known = models
    for name, config in known.items():
        assert config.name == name
        assert (folder / name / "1").is_dir()
        if config.backend == "python":
            assert (folder / name / "1" / "model.py").is_file()


def test_ensemble_maps_join_equal_types_and_shapes(models: tuple[Path, dict[str, pb.ModelConfig]]) -> None:
    _, known = models
    for name, ensemble in known.items():
        if ensemble.platform != "ensemble":
            continue
        written = {tensor.name: tensor for tensor in ensemble.input}
        for step in ensemble.ensemble_scheduling.step:
            inner = known[step.model_name]
            inputs = {tensor.name: tensor for tensor in inner.input}
            outputs = {tensor.name: tensor for tensor in inner.output}
            assert set(step.input_map) <= set(inputs), (name, step.model_name)
            needed = {tensor.name for tensor in inner.input if not tensor.optional}
            assert needed <= set(step.input_map), (name, step.model_name)
            for key, value in step.output_map.items():
                assert value not in written, f"{name}: {value} is written twice"
                written[value] = outputs[key]
        for step in ensemble.ensemble_scheduling.step:
            inputs = {tensor.name: tensor for tensor in known[step.model_name].input}
            for key, value in step.input_map.items():
                here, there = written[value], inputs[key]
                assert here.data_type == there.data_type, (name, value)
                assert len(here.dims) == len(there.dims), (name, value)
                assert all(-1 in (a, b) or a == b for a, b in zip(here.dims, there.dims, strict=True)), (name, value)
        for tensor in ensemble.output:
            assert written[tensor.name].data_type == tensor.data_type


def test_engines_batch_and_graphs_hold_what_configs_say(repository: Path) -> None:
    onnx = pytest.importorskip("onnx")
    engines = {name: config for name, config in configs(repository).items() if config.backend == "onnxruntime"}
    assert len(engines) >= 20
    for name, config in engines.items():
        assert config.HasField("dynamic_batching")
        assert config.max_batch_size > 0
        assert not any(tensor.optional for tensor in config.input)
        graph = onnx.load(str(repository / name / "1" / "model.onnx"), load_external_data=False).graph
        assert {tensor.name for tensor in config.input} == {value.name for value in graph.input}
        assert {tensor.name for tensor in config.output} == {value.name for value in graph.output}


def test_every_parameter_is_read_by_somebody() -> None:
    code = "\n".join(file.read_text() for room in ("nereid", "model_repository") for file in (ROOT / room).rglob("*.py"))
    for name, config in configs(SOURCE).items():
        for key in config.parameters:
            known = f'"{key}"' in code or f" {key}:" in code or key.startswith("session.")  # session entries go to ONNX Runtime
            known = known or (key.endswith("_model") and f" {key.removesuffix('_model')}:" in code)
            assert known, f"{name}: nobody reads {key}"


def test_image_output_and_denoise_know_each_other_and_the_decoder(
    models: tuple[Path, dict[str, pb.ModelConfig]],
) -> None:
    _, known = models
    pipelines = [name.removesuffix("denoise") for name in known if name.endswith("denoise")]
    assert pipelines
    for prefix in pipelines:
        denoise, decoding = (known[f"{prefix}{model}"].parameters for model in ("denoise", "image_output"))
        assert denoise["image_output_model"].string_value == f"{prefix}image_output"
        assert decoding["vae_decoder_model"].string_value == f"{prefix}vae_decoder"
        assert decoding["denoise_model"].string_value == f"{prefix}denoise"


def test_defaults_of_the_code_are_those_of_the_configs() -> None:
    from nereid.diffusion.decoding import DecodingSettings
    from nereid.diffusion.settings import Limits
    from nereid_export.configs import source_config

    parameters = {key: value.string_value for key, value in source_config("image_output").parameters.items()}
    assert DecodingSettings.from_parameters(parameters) == DecodingSettings()
    denoise = source_config("denoise").parameters
    assert Limits.from_parameters({"tile_sample_min_size": denoise["tile_sample_min_size"].string_value}) == Limits()
    assert Limits.from_parameters({"tile_overlap_factor": denoise["tile_overlap_factor"].string_value}) == Limits()


def test_limits_of_pages_are_those_of_the_config() -> None:
    from nereid.page.settings import PageLimits
    from nereid_export.configs import source_config

    parameters = {key: value.string_value for key, value in source_config("page").parameters.items()}
    del parameters["restart_on_death"]
    assert PageLimits.from_parameters(parameters) == PageLimits()
    assert parameters.keys() == set(PageLimits.__dataclass_fields__)


def test_limits_of_layouts_are_those_of_the_config() -> None:
    from nereid.layout.settings import LayoutLimits
    from nereid_export.configs import source_config

    parameters = {key: value.string_value for key, value in source_config("layout").parameters.items()}
    del parameters["restart_on_death"]
    assert LayoutLimits.from_parameters(parameters) == LayoutLimits()
    assert parameters.keys() == set(LayoutLimits.__dataclass_fields__)


def test_whoever_reads_limits_from_a_whole_config_knows_all_of_its_parameters() -> None:
    """As the gateway does, beside the model itself."""
    from nereid.diffusion.settings import Limits
    from nereid_export.configs import source_config

    parameters = {key: value.string_value for key, value in source_config("denoise").parameters.items()}
    assert Limits.from_parameters(parameters).concurrent_calls == int(parameters["concurrent_calls"])


def test_model_files_only_adapt() -> None:
    for file in [*SOURCE.rglob("model.py"), *(ROOT / "nereid" / "triton" / "backends").rglob("model.py")]:
        lines = file.read_text().splitlines()
        assert len(lines) <= 60, file
        assert lines[0].startswith('"""'), file


def test_only_the_bridge_and_its_calls_import_tritons_python_module() -> None:
    rooms = ("nereid", "client", "export", "zoo", "benchmarks", "model_repository")
    users = [
        str(file.relative_to(ROOT))
        for room in rooms
        for file in (ROOT / room).rglob("*.py")
        if "import triton_python_backend_utils" in file.read_text()
    ]
    assert sorted(users) == ["nereid/triton/bridge.py", "nereid/triton/calls.py"]


def test_every_config_carries_the_fields_that_the_table_gives_it(models: tuple[Path, dict[str, pb.ModelConfig]]) -> None:
    _, known = models
    for model in Model:
        carried = {field.name: field for field in carried_by(model)}
        inputs = {tensor.name: tensor for tensor in known[model].input}
        assert carried.keys() <= inputs.keys()
        for name, field in carried.items():
            assert inputs[name].data_type == getattr(pb, f"TYPE_{field.dtype}")
            assert len(inputs[name].dims) == len(field.shape)
            assert inputs[name].optional == (name != "prompt")


def test_what_an_ensembles_steps_carry_reaches_them() -> None:
    from nereid_export.configs import source_config

    ensemble = source_config(Model.ENSEMBLE)
    for step in ensemble.ensemble_scheduling.step:
        if step.model_name in set(Model):
            for field in passed_on(Model.ENSEMBLE, Model(step.model_name)):
                assert step.input_map[field.name] == field.name
