"""Parameters of a config.pbtxt: those that nobody reads are refused when the model loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from nereid.diffusion.settings import Limits
from nereid.engines.onnx_options import session_options
from nereid.flow.parameters import TENSOR_NAMES, read_tensor_names, refuse_unknown, require_at_most, require_one_of
from nereid.llm.settings import LlmLimits

SOURCE = Path(__file__).parents[2] / "model_repository"


@pytest.mark.parametrize(
    ("read", "name", "nearest"),
    [
        (Limits.from_parameters, "max_inflght", "max_inflight"),
        (Limits.from_parameters, "unte_model", "unet_model"),
        (LlmLimits.from_parameters, "kv_token", "kv_tokens"),
        (lambda parameters: session_options({}, parameters), "intra_op_threads_count", "intra_op_thread_count"),
        (lambda parameters: session_options({}, parameters), "session.intra_op.allow_spining", "session.intra_op.allow_spinning"),
        (lambda parameters: refuse_unknown(parameters, ("max_calls",)), "max_call", "max_calls"),
    ],
)
def test_a_misspelled_parameter_is_refused_with_the_nearest_known(
    read: Callable[[Mapping[str, str]], object], name: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=f"^parameter {name}: not known; did you mean {nearest}\\?$"):
        read({name: "1"})


def test_a_parameter_like_no_other_is_refused_with_all_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"it must be one of .*max_calls"):
        refuse_unknown({"x": "1"}, ("max_calls",))


def test_parameters_that_others_read_are_accepted_by_every_model() -> None:
    for read in (Limits.from_parameters, LlmLimits.from_parameters):
        read({"restart_on_death": "true", "EXECUTION_ENV_PATH": "/opt/env"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("session.intra_op.allow_spinning", "no"),
        ("enable_mem_arena", "2"),
        ("execution_mode", "parallel"),
        ("intra_op_thread_count", "-1"),
    ],
)
def test_a_value_that_the_engine_would_take_for_another_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^parameter {key}: '{value}' is not allowed"):
        session_options({}, {key: value})


def test_every_models_own_config_is_accepted() -> None:
    readers = {"denoise": Limits.from_parameters, "llm": LlmLimits.from_parameters}
    tried = 0
    for file in SOURCE.glob("*/config.pbtxt"):
        config = text_format.Parse(file.read_text(), pb.ModelConfig())
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        if config.backend == "onnxruntime":
            session_options({}, parameters)
        elif config.name in readers:
            assert read_tensor_names({TENSOR_NAMES: parameters.pop(TENSOR_NAMES, "{}")}) == {}  # the bridge takes it out
            readers[config.name](parameters)
        else:
            continue
        tried += 1
    assert tried >= 6


def test_a_choice_and_a_bound_are_refused_by_name() -> None:
    limits = LlmLimits(engine="tensorrt", max_rows=9, max_queue=8)
    require_one_of(limits, "speculation", ("none", "ngram"))
    require_at_most(limits, "max_queue", "max_rows")
    for allowed, said in ((("a",), "a"), (("a", "b"), "a or b"), (("a", "b", "c"), "a, b or c")):
        with pytest.raises(ValueError, match=f"^parameter engine: 'tensorrt' is not allowed; it must be {said}$"):
            require_one_of(limits, "engine", allowed)
    with pytest.raises(ValueError, match=r"^parameter max_rows: 9 is not allowed; it must be at most max_queue \(8\)$"):
        require_at_most(limits, "max_rows", "max_queue")
