"""The stand-in for Triton's PyTorch backend: what packages and configs it takes, refuses by name, and makes of requests."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from nereid.engines import torch_package
from nereid.engines.torch_model import TorchModel, runner
from nereid.engines.torch_options import TorchOptions
from nereid.engines.torch_package import METADATA_KEY, PackageFacts, instructions_in, processor_instructions
from nereid.flow.errors import InvalidRequestError

from packages import WIDTH, Sums

# The package is compiled once.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

INPUTS = [
    {"name": "INPUT__0", "dims": [-1, -1, WIDTH], "data_type": "TYPE_FP32"},
    {"name": "INPUT__1", "dims": [-1, -1], "data_type": "TYPE_FP32"},
]
OUTPUTS = [
    {"name": "OUTPUT__0", "dims": [-1, -1, WIDTH], "data_type": "TYPE_FP32"},
    {"name": "OUTPUT__1", "dims": [-1, -1], "data_type": "TYPE_FP32"},
]


@dataclass(frozen=True)
class Started:
    """Start arguments of a model in `version_folder`."""

    version_folder: Path
    parameters: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    name: str = "sums"
    instance_kind: str = "CPU"
    device_id: int = 0

    @property
    def config(self) -> dict[str, Any]:
        return {"platform": "torch_aoti", "max_batch_size": 0, "input": INPUTS, "output": OUTPUTS, **self.changes}


@pytest.fixture(scope="module")
def model(package: Path) -> TorchModel:
    return TorchModel.load(Started(package))


def asked(rows: int, height: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x, offset = random.standard_normal((rows, height, WIDTH)), random.standard_normal((rows, height))
    return {"INPUT__1": offset.astype(np.float32), "INPUT__0": x.astype(np.float32)}


def expected(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        made, total = Sums()(torch.from_numpy(inputs["INPUT__0"]), torch.from_numpy(inputs["INPUT__1"]))
    return made.numpy(), total.numpy()


def rewritten(file: Path, to: Path, own: dict[str, Any] | None = None, **pytorchs: str) -> Path:
    """A copy of a package in `to`, whose metadata says something else."""
    with zipfile.ZipFile(file) as given, zipfile.ZipFile(to / file.name, "w") as made:
        for item in given.infolist():
            content = given.read(item)
            if item.filename.endswith("wrapper_metadata.json"):
                said = {**json.loads(content), **pytorchs}
                said[METADATA_KEY] = json.dumps({**json.loads(said[METADATA_KEY]), **(own or {})})
                content = json.dumps(said).encode()
            made.writestr(item, content)
    return to


def test_requests_of_any_rows_and_sizes_are_run_each_by_itself(model: TorchModel) -> None:
    requests = [asked(1, 1, 1), asked(5, 9, 2), asked(3, 2, 3)]
    for inputs, result in zip(requests, model.run(requests), strict=True):
        assert isinstance(result, dict)
        for name, wanted in zip(("OUTPUT__0", "OUTPUT__1"), expected(inputs), strict=True):
            np.testing.assert_allclose(result[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 63])
@pytest.mark.parametrize("height", [1, 2, 3, 8, 13, 32, 65])
def test_compiled_code_is_right_at_every_size_that_a_request_may_have(rows: int, height: int, model: TorchModel) -> None:
    inputs = asked(rows, height, seed=rows)
    (result,) = model.run([inputs])
    assert isinstance(result, dict)
    for name, wanted in zip(("OUTPUT__0", "OUTPUT__1"), expected(inputs), strict=True):
        error = np.linalg.norm(result[name] - wanted) / np.linalg.norm(wanted)
        assert error < 1e-5


def test_the_same_request_gives_the_same_bits(model: TorchModel) -> None:
    first, second = model.run([asked(3), asked(3)])
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_outputs_that_the_config_does_not_name_are_not_given(package: Path) -> None:
    made = TorchModel.load(Started(package, changes={"output": OUTPUTS[1:]})).run([asked(2)])[0]
    assert isinstance(made, dict)
    assert set(made) == {"OUTPUT__1"}
    np.testing.assert_allclose(made["OUTPUT__1"], expected(asked(2))[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"INPUT__1": np.zeros((3, 3), np.float32)}, r"INPUT__1 \(offset\): batch 3 .* it must be 2, as in INPUT__0 \(x\)"),
        ({"INPUT__1": np.zeros((2, 4), np.float32)}, r"INPUT__1 \(offset\): height 4 .* it must be 3, as in INPUT__0 \(x\)"),
        ({"INPUT__1": np.zeros((2, 3), np.float64)}, r"INPUT__1 \(offset\): float64 is not allowed; it must be float32"),
        ({"INPUT__1": np.zeros(2, np.float32)}, r"INPUT__1 \(offset\): 1 dimensions are not allowed; it must be 2"),
        ({"INPUT__0": np.zeros((2, 3, 7), np.float32)}, r"INPUT__0 \(x\): shape \(2, 3, 7\) .* must be batch x height x 8"),
        ({"INPUT__0": np.zeros((0, 3, 8), np.float32)}, r"INPUT__0 \(x\): batch 0 is not allowed; it must be 1 or more"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_alone_before_native_code_reads_them(
    changes: dict[str, np.ndarray], sentence: str, model: TorchModel
) -> None:
    wrong, right = model.run([{**asked(2), **changes}, asked(2)])
    assert isinstance(wrong, InvalidRequestError)
    with pytest.raises(InvalidRequestError, match=sentence):
        raise wrong
    assert isinstance(right, dict)


def test_more_than_a_package_was_compiled_for_is_refused(package: Path, tmp_path: Path) -> None:
    few = TorchModel.load(Started(rewritten(package / "model.pt2", tmp_path, {"largest": {"batch": 2}})))
    refused, taken = few.run([asked(3), asked(2)])
    assert isinstance(refused, InvalidRequestError)
    assert "batch 3 is not allowed; it must be 1 to 2" in str(refused)
    assert isinstance(taken, dict)


def test_the_unpacked_code_does_not_stay_on_the_disk(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed cannot remove it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(Path("/tmp").glob("??????"))
    model = TorchModel.load(Started(package))
    assert not list(tmp_path.iterdir())
    assert not any((new / "data").exists() for new in set(Path("/tmp").glob("??????")) - before)
    assert isinstance(model.run([asked(2)])[0], dict)


def test_memory_is_measured_by_the_components_own_names(package: Path) -> None:
    inputs = asked(2)
    made = runner(str(package / "model.pt2"))({"offset": inputs["INPUT__1"], "x": inputs["INPUT__0"]})
    assert isinstance(made, dict)
    np.testing.assert_allclose(made["total"], expected(inputs)[1], rtol=1e-4, atol=1e-4)


# --- configs ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"platform": "onnxruntime_onnx"}, "platform: 'onnxruntime_onnx' is not allowed; it must be 'torch_aoti'"),
        ({"max_batch_size": 4}, "max_batch_size: 4 is not allowed; it must be 0"),
        ({"input": [{**INPUTS[0], "name": "x"}, INPUTS[1]]}, r"inputs \['INPUT__1', 'x'\] are not the graph's"),
        ({"input": INPUTS[:1]}, "inputs"),
        ({"input": [INPUTS[0], {**INPUTS[1], "data_type": "TYPE_INT32"}]}, "input INPUT__1 is float32 in the graph, TYPE_INT32"),
        ({"input": [INPUTS[0], {**INPUTS[1], "dims": [-1]}]}, "INPUT__1 has rank 2 in the graph, 1 in config"),
        ({"input": [INPUTS[0], {**INPUTS[1], "optional": True}]}, "input INPUT__1 cannot be optional"),
        ({"output": [{**OUTPUTS[0], "name": "OUTPUT__2"}]}, "outputs"),
    ],
)
def test_a_config_that_is_not_the_packages_is_refused(changes: dict[str, Any], sentence: str, package: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorchModel.load(Started(package, changes=changes))


def test_a_config_for_a_triton_that_does_not_know_the_platform_is_taken(package: Path) -> None:
    assert isinstance(TorchModel.load(Started(package, changes={"platform": "pytorch_libtorch"})).run([asked(2)])[0], dict)


def test_no_graphics_card(package: Path) -> None:
    with pytest.raises(ValueError, match="KIND_GPU is not allowed; it must be KIND_CPU"):
        TorchModel.load(Started(package, instance_kind="GPU"))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"INTRA_OP_THREADS": "2"}, "INTRA_OP_THREADS: not known; did you mean INTRA_OP_THREAD_COUNT"),
        ({"INTRA_OP_THREAD_COUNT": "0"}, "INTRA_OP_THREAD_COUNT: '0' is not allowed; it must be a whole number above 0"),
        ({"INTER_OP_THREAD_COUNT": "-1"}, "INTER_OP_THREAD_COUNT: '-1'"),
        ({"INFERENCE_MODE": "yes"}, "INFERENCE_MODE: 'yes' is not allowed; it must be true or false"),
        ({"ENABLE_WEIGHT_SHARING": "true"}, "ENABLE_WEIGHT_SHARING: not known"),
        ({"DISABLE_CUDNN": "true"}, "DISABLE_CUDNN: not known"),
    ],
)
def test_parameters_that_mean_nothing_are_refused_by_name(parameters: dict[str, str], sentence: str, package: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorchModel.load(Started(package, parameters))


def test_threads_are_what_the_config_says(package: Path) -> None:
    assert TorchOptions.from_parameters({}) == TorchOptions(0, 0, True)
    known = {"INTER_OP_THREAD_COUNT": "3", "INFERENCE_MODE": "FALSE"}
    assert TorchOptions.from_parameters(known) == TorchOptions(0, 3, False)
    before = torch.get_num_threads()
    try:
        TorchModel.load(Started(package, {"INTRA_OP_THREAD_COUNT": str(before + 1)}))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# --- packages of elsewhere ---


@pytest.mark.parametrize(
    ("own", "pytorchs", "sentence"),
    [
        (
            {"torch": "2.9.1", "instructions": ["avx2"]},
            {},
            r"model.pt2: compiled with PyTorch 2\.9\.1, and 2\.13\.\S+ is installed; export it again",
        ),
        ({"instructions": ["avx2", "avx9"]}, {}, "model.pt2: compiled for a processor with avx9, which this one lacks"),
        ({"instructions": ["avx2"]}, {"AOTI_MACHINE": "riscv64"}, "model.pt2: compiled for riscv64, and this machine is"),
        ({"instructions": ["avx2"]}, {"AOTI_DEVICE_KEY": "cuda"}, "model.pt2: compiled for the device cuda; it must be cpu"),
    ],
)
def test_a_package_of_another_torch_processor_or_device_is_refused_before_its_code_runs(
    own: dict[str, Any], pytorchs: dict[str, str], sentence: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(package / "model.pt2", tmp_path, own, **pytorchs)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", lambda *_: pytest.fail("its code was loaded"))
    monkeypatch.setattr(torch_package, "processor_instructions", lambda: frozenset({"avx2", "fma", "f16c"}))
    with pytest.raises(ValueError, match=sentence):
        TorchModel.load(Started(tmp_path))


def test_a_build_of_the_same_torch_is_the_same_torch(package: Path) -> None:
    facts = PackageFacts.read(package / "model.pt2")
    for version in (facts.torch, f"{facts.torch}+cu128"):
        facts.require_torch(package / "model.pt2", version)


def test_what_a_package_uses_of_the_processor_is_told_in_the_kernels_words(package: Path) -> None:
    used = PackageFacts.read(package / "model.pt2").instructions
    assert set(used) <= processor_instructions()
    if "avx2" in processor_instructions():
        assert {"avx2", "fma"} <= set(used) or "avx512f" in used


def test_the_kernels_words_for_instructions_are_the_compilers_without_punctuation() -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx512_vnni amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu sse\n"
    assert instructions_in(text) == {"fpu", "avx512vnni", "amxtile"}
    assert instructions_in("processor : 0\nFeatures : asimd sve\n") == {"asimd", "sve"}
    assert instructions_in("") == frozenset()


def test_without_torch_one_sentence_says_which_to_install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    version = PackageFacts.read(package / "model.pt2").torch
    with pytest.raises(ValueError, match=f"model.pt2: needs PyTorch {version}, .* `pip install torch=={version}`"):
        TorchModel.load(Started(package))


@pytest.mark.parametrize("damage", ["absent", "no zip", "no metadata", "not exported"])
def test_a_file_that_is_no_package_is_one_sentence(damage: str, package: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    if damage == "no zip":
        file.write_bytes(b"PK")
    if damage in ("no metadata", "not exported"):
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("model/version", "1")
            if damage == "not exported":
                made.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", '{"AOTI_DEVICE_KEY": "cpu"}')
    with pytest.raises(ValueError, match=r"model.pt2: not a package that `nereid export diffusion --engine torch` has written"):
        TorchModel.load(Started(tmp_path))


def test_code_that_does_not_load_is_one_sentence(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package / "model.pt2") as given, zipfile.ZipFile(tmp_path / "model.pt2", "w") as made:
        for item in given.infolist():
            made.writestr(item, b"no code" if item.filename.endswith(".so") else given.read(item))
    with pytest.raises(ValueError, match=r"model.pt2: PyTorch .* cannot load it: .+") as caught:
        TorchModel.load(Started(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_by_another_name_is_the_configs(package: Path, tmp_path: Path) -> None:
    shutil.copy(package / "model.pt2", tmp_path / "sums.pt2")
    model = TorchModel.load(Started(tmp_path, changes={"default_model_filename": "sums.pt2"}))
    assert isinstance(model.run([asked(2)])[0], dict)
