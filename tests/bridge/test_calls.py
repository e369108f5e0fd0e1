"""Calls of sibling models without Triton: ids, names of tensors, errors, and what stays on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.settings import Limits
from nereid.flow.errors import EngineError, LostError
from nereid.flow.request_ids import current

from stub_utils import InferenceRequest, InferenceResponse, Request, Tensor, TritonError


def test_a_requests_id_is_tritons_and_goes_on_to_called_models(bridge: Any, calls: Any) -> None:
    with bridge.handling(Request("mine")):
        calls.Callers.of(1).call("other", {"x": np.zeros(1)}, ["y"])
    assert InferenceRequest.last["request_id"] == "mine"
    assert current() == ""


def test_an_engine_error_as_long_as_a_graph_is_cut_and_still_known_for_what_it_is(calls: Any) -> None:
    cut = calls._sibling_error("unet", TritonError("node " * 1000, TritonError.INTERNAL))
    assert isinstance(cut, EngineError)
    assert 290 < len(str(cut)) < 320
    dead = calls._sibling_error("unet", TritonError("node " * 1000 + "is not healthy", TritonError.INTERNAL))
    assert isinstance(dead, LostError)
    gone = calls._sibling_error("unet", TritonError("unexpected inference output '' for model 'unet'", TritonError.INVALID_ARG))
    assert isinstance(gone, LostError)


@pytest.mark.parametrize(
    "said",
    [
        "Model denoise - Error when running inference: Server not ready",
        "Server is stopping, scheduler for model has stopped accepting new inference requests",
    ],
)
def test_a_call_that_the_ending_server_refuses_is_lost_and_can_be_made_again(calls: Any, said: str) -> None:
    assert isinstance(calls._sibling_error("denoise", TritonError(said)), LostError)


def test_a_called_models_tensors_have_the_names_that_its_backend_gives_them(
    bridge: Any, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.dumps({"unet": {"sample": "INPUT__0", "y": "OUTPUT__0"}})
    config = {"parameters": {"tensor_names": {"string_value": told}, "own": {"string_value": "1"}}}
    arguments = {"model_name": "m", "model_config": json.dumps(config), "model_repository": str(tmp_path / "m")}
    model = bridge.ModelArguments.parse(
        {**arguments, "model_version": "1", "model_instance_kind": "CPU", "model_instance_device_id": "0"}, known=("own",)
    )
    assert dict(model.parameters) == {"own": "1"}
    monkeypatch.setattr(InferenceRequest, "answer", InferenceResponse([Tensor("OUTPUT__0", np.array([7]))]))
    made = calls.Callers.of(1, model.tensor_names).call("unet", {"sample": np.zeros(1), "x": np.zeros(1)}, ["y"])
    assert [tensor.name() for tensor in InferenceRequest.last["inputs"]] == ["INPUT__0", "x"]
    assert InferenceRequest.last["requested_output_names"] == ["OUTPUT__0"]
    assert made["y"].tolist() == [7]
    monkeypatch.setattr(InferenceRequest, "answer", InferenceResponse([Tensor("y", np.array([8]))]))
    assert calls.Callers.of(1, model.tensor_names).call("other", {"sample": np.zeros(1)}, ["y"])["y"].tolist() == [8]
    assert [tensor.name() for tensor in InferenceRequest.last["inputs"]] == ["sample"]


def test_of_a_decoupled_model_its_last_answer_counts_and_its_first_error(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last, end = (
        InferenceResponse(tensors) for tensors in ([Tensor("y", np.array([1]))], [Tensor("y", np.array([2]))], [])
    )
    monkeypatch.setattr(InferenceRequest, "answers", [first, last, end])
    assert calls.call_model("llm", {}, ["y"], decoupled=True)["y"].tolist() == [2]
    broken = SimpleNamespace(has_error=lambda: True, error=lambda: TritonError("it broke"))
    monkeypatch.setattr(InferenceRequest, "answers", [first, broken, end])
    with pytest.raises(EngineError, match="llm: it broke"):
        calls.call_model("llm", {}, ["y"], decoupled=True)
    monkeypatch.setattr(InferenceRequest, "answers", [end])
    with pytest.raises(LostError, match="ended without an answer"):
        calls.call_model("llm", {}, ["y"], decoupled=True)


class OnGpu(Tensor):
    """Gives its numbers to cupy alone."""

    def as_numpy(self) -> Any:
        raise AssertionError("Triton refuses to read a GPU's memory as numpy's")

    def is_cpu(self) -> bool:
        return False


class Cupy:
    """Notes what it is asked for; arrays of its own are tagged."""

    def from_dlpack(self, tensor: Tensor) -> tuple[str, Any]:
        return ("cupy", tensor.value)

    def asnumpy(self, array: tuple[str, Any]) -> Any:
        assert array[0] == "cupy"
        return array[1]


def test_outputs_that_stay_on_a_gpu_go_to_the_next_call_without_the_host(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.triton.device_arrays._cupy", Cupy)
    monkeypatch.setattr(calls, "require_device_arrays", lambda: None)
    answer = InferenceResponse([OnGpu("out_sample", np.array([1])), OnGpu("features", np.array([2]))])
    monkeypatch.setattr(InferenceRequest, "answer", answer)
    on_gpu = Limits(features_device="gpu").on_gpu
    callers = calls.Callers.of(1, None, on_gpu)
    made = callers.call("unet", {"sample": np.zeros(1)}, ["out_sample", "features"])
    assert InferenceRequest.last["preferred_memory"] == ("gpu", 0)
    assert made["out_sample"].tolist() == [1]
    assert made["features"] == ("cupy", np.array([2]))
    monkeypatch.setattr(InferenceRequest, "answer", InferenceResponse([Tensor("out_sample", np.array([3]))]))
    assert callers.call("unet_shallow", {"features": made["features"]}, ["out_sample"])["out_sample"].tolist() == [3]
    assert InferenceRequest.last["preferred_memory"] == ("cpu", 0)  # nothing of it stays
    (sent,) = InferenceRequest.last["inputs"]
    assert sent.value is made["features"]


def test_features_on_a_gpu_need_cupy_and_are_refused_by_name_when_the_model_loads(calls: Any) -> None:
    with pytest.raises(ValueError, match="parameter features_device: gpu needs the package cupy"):
        calls.Callers.of(1, None, Limits(features_device="gpu").on_gpu)
    with pytest.raises(ValueError, match="parameter features_device: 'tpu' is not allowed; it must be cpu or gpu"):
        _ = Limits(features_device="tpu").on_gpu
