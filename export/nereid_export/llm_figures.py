"""How far an exported language model is from PyTorch: logits, next tokens, perplexity on a sample; builds and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nereid.engines.adapters import ADAPTERS
from nereid_export.checkpoint import understood
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm_adapters import Adapter, Branches
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.silence import quiet

FP32_BOUND = 1e-4
FP16_BOUND = 1e-2


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def feeds(checkpoint: LlmCheckpoint, ids: Sequence[int], model: Any, keep: bool = False, adapter: int = 0) -> dict[str, NDArray]:
    """One whole sequence with an empty cache."""
    made: dict[str, NDArray] = {
        "input_ids": np.array([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
    }
    if keep:
        made["logits_to_keep"] = np.arange(len(ids))
    types = {1: np.float32, 10: np.float16}
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            heads = value.type.tensor_type.shape.dim[1].dim_value
            made[value.name] = np.zeros((1, heads, 0, checkpoint.head_size), types[value.type.tensor_type.elem_type])
        elif value.name == ADAPTERS:
            made[value.name] = np.array([adapter], np.int64)
    return made


def load_torch(checkpoint: LlmCheckpoint) -> Any:
    """The transformers model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    with understood(checkpoint.folder), quiet():
        return AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32, use_safetensors=True).eval()


def torch_logits(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """What transformers makes of the sample in float32: tokens x vocabulary."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(ids)])).logits[0].numpy())


def torch_states(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """The last hidden states that transformers makes of the sample in float32: tokens x width."""
    import torch

    with torch.no_grad():
        return np.asarray(model.model(torch.tensor([list(ids)])).last_hidden_state[0].numpy())


@contextmanager
def adapted(model: Any, branches: Branches, adapter: int) -> Iterator[None]:
    """The transformers model with one of the adapters, counted from 1, beside its layers."""
    import torch

    def hook(down: Any, up: Any) -> Any:
        return lambda module, given, made: made + given[0] @ down.T @ up.T

    layers = {path: branch.layers[adapter - 1] for path, branch in branches.items()}
    hooks = [
        model.get_submodule(path).register_forward_hook(hook(torch.from_numpy(layer.down), torch.from_numpy(layer.up)))
        for path, layer in layers.items()
        if layer is not None
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def compare_adapters(
    checkpoint: LlmCheckpoint,
    adapters: Sequence[Adapter],
    branches: Branches,
    logits: Callable[[int], Pair],
    sample: list[int],
    bound: float,
) -> list[dict[str, Any]]:
    """`compare` with each adapter, of which `logits` makes the unquantised graph's and the engine's; raises ExportError."""
    made: list[dict[str, Any]] = []
    model = load_torch(checkpoint) if adapters else None
    for number, adapter in enumerate(adapters, 1):
        with adapted(model, branches, number):
            reference = torch_logits(model, sample)
        try:
            checks = compare(reference, *logits(number), sample, bound)
        except ExportError as error:
            raise ExportError(f"--adapter {adapter.name}: {error}") from None
        ranks = [len(layer.down) for branch in branches.values() if (layer := branch.layers[number - 1]) is not None]
        facts = {"name": adapter.name, "sha256": adapter.digest().split()[0], "layers": len(ranks), "rank": max(ranks)}
        made.append({**facts, **checks})
    return made


def compare(
    reference: NDArray[np.float32], unquantised: NDArray[np.float32], made: NDArray[np.float32], sample: list[int], bound: float
) -> dict[str, Any]:
    """The unquantised graph's logits must be PyTorch's within `bound`; the distance of those the engine has `made` is told."""
    error = _relative(unquantised, reference)
    if not error <= bound:
        raise ExportError(
            f"relative error {error:.2g} of the logits against PyTorch is above the bound of {bound:g}; nothing was published"
        )
    return {
        "unquantised_error": error,
        "error_bound": bound,
        **told(reference, made, sample),
        "perplexity_fp32": _perplexity(reference, sample),
        "sample_tokens": len(sample),
    }


def compare_states(
    reference: NDArray[np.float32], unquantised: NDArray[np.float32], made: NDArray[np.float32], bound: float
) -> dict[str, float]:
    """The unquantised graph's last hidden states must be PyTorch's within `bound`, as its logits must; raises ExportError."""
    error = _relative(unquantised, reference)
    if not error <= bound:
        raise ExportError(
            f"--embeddings: relative error {error:.2g} of the last hidden states against PyTorch is above the bound of "
            f"{bound:g}; nothing was published"
        )
    mean = reference.mean(0, dtype=np.float64)
    return {"states_error": _relative(made, reference), "embedding_error": _relative(made.mean(0, dtype=np.float64), mean)}


def told(reference: NDArray[np.float32], made: NDArray[np.float32], sample: list[int]) -> dict[str, float]:
    """How far an engine's logits are from PyTorch's."""
    return {
        "logits_error": _relative(made, reference),
        "next_token_agreement": float((made.argmax(1) == reference.argmax(1)).mean()),
        "perplexity": _perplexity(made, sample),
    }


def engine_logits(
    checkpoint: LlmCheckpoint,
    folder: Path,
    device: Device,
    ids: Sequence[int],
    *,
    keep: bool,
    adapter: int = 0,
    output: str = "logits",
) -> NDArray[np.float32]:
    """What an ONNX engine makes of the sample, or another of its outputs."""
    import onnxruntime as ort

    file = folder / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    available = ort.get_available_providers()
    providers = ["CUDAExecutionProvider"] if device is Device.CUDA and "CUDAExecutionProvider" in available else []
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(file), settings, providers=[*providers, "CPUExecutionProvider"])
    made = session.run([output], feeds(checkpoint, ids, model, keep, adapter))[0][0]
    return np.asarray(made, np.float32)


def _relative(made: NDArray, reference: NDArray) -> float:
    return float(np.linalg.norm(made.astype(np.float64) - reference) / np.linalg.norm(reference))


def _perplexity(logits: NDArray[np.float32], ids: Sequence[int]) -> float:
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(1, keepdims=True)
    losses = np.log(np.exp(wide - peak).sum(1)) + peak[:, 0] - wide[np.arange(len(ids) - 1), list(ids[1:])]
    return float(np.exp(losses.mean()))
