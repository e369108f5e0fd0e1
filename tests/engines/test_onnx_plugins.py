"""TensorRT for RTX as an execution accelerator: what is missing is said when the model loads."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime as ort
import pytest

from nereid.engines.onnx_plugins import add_tensorrt_rtx
from nereid.engines.onnx_session import OnnxModel

onnx = pytest.importorskip("onnx")

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


def accelerated_by(name: str) -> dict[str, Any]:
    tensor = {"data_type": "TYPE_FP32", "dims": [2]}
    return {
        "input": [{"name": "x", **tensor}],
        "output": [{"name": "y", **tensor}],
        "max_batch_size": 4,
        "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": name}]}},
    }


@dataclass(frozen=True)
class Started:
    """Start arguments of a model in `version_folder`."""

    version_folder: Path
    config: dict[str, Any]
    name: str = "unet"
    parameters: dict[str, str] = field(default_factory=dict)
    instance_kind: str = "GPU"
    device_id: int = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph of one EPContext node, as export writes it, but for its plan."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y")]
    node = onnx.helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="model.plan")
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), str(tmp_path / "model.onnx"))
    return tmp_path


def test_a_missing_plugin_is_named_with_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN, None)
    with pytest.raises(ValueError, match="'nv_tensorrt_rtx' needs ONNX Runtime's plugin; install it with `pip install onnxrun"):
        OnnxModel.load(Started(folder, accelerated_by("nv_tensorrt_rtx")))


def test_another_accelerator_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(ValueError, match="'openvino' is not allowed; it must be one of cuda, tensorrt, nv_tensorrt_rtx"):
        OnnxModel.load(Started(folder, accelerated_by("openvino")))


def plugin_of(provider: str, library: Path) -> ModuleType:
    module = ModuleType(PLUGIN)
    module.get_ep_name = lambda: provider  # type: ignore[attr-defined]
    module.get_library_path = lambda: str(library)  # type: ignore[attr-defined]
    return module


def test_a_library_that_does_not_load_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN, plugin_of("NvTensorRTRTXExecutionProvider", tmp_path / "absent.so"))
    with pytest.raises(ValueError, match=r"'nv_tensorrt_rtx' cannot be loaded: .*absent\.so") as caught:
        add_tensorrt_rtx(ort.SessionOptions(), 0)
    assert "\n" not in str(caught.value)


def test_the_card_of_the_instance_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a provider that is here: the processor's, which has one device."""
    monkeypatch.setitem(sys.modules, PLUGIN, plugin_of("CPUExecutionProvider", tmp_path / "not read.so"))
    options = ort.SessionOptions()
    add_tensorrt_rtx(options, 0)
    assert options.has_providers()
    with pytest.raises(ValueError, match="'nv_tensorrt_rtx' has no card 1 here; it finds 1"):
        add_tensorrt_rtx(ort.SessionOptions(), 1)
