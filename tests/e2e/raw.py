"""Raw access to a server for tests that must go below the SDK: odd tensors, direct models, metrics."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import np_to_triton_dtype


def text(*values: str | bytes) -> np.ndarray:
    """A BYTES tensor of shape [rows, 1]."""
    return np.array([[value.encode() if isinstance(value, str) else value] for value in values], dtype=np.object_)


def column(dtype: type, *values: float) -> np.ndarray:
    """A tensor of shape [rows, 1]."""
    return np.array([[value] for value in values], dtype=dtype)


def make_input(name: str, value: np.ndarray) -> Any:
    tensor = grpcclient.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


def infer(url: str, model: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    with grpcclient.InferenceServerClient(url) as client:
        result = client.infer(
            model,
            [make_input(name, value) for name, value in inputs.items()],
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs],
            client_timeout=120,
        )
        return {name: result.as_numpy(name) for name in outputs}


def embeddings(url: str, prompt: str, prefix: str = "") -> dict[str, np.ndarray]:
    """`prompt_embeds` and `negative_prompt_embeds` as `denoise` takes them."""
    ids = infer(url, f"{prefix}tokenizer", {"prompt": text(prompt)}, ["input_ids", "negative_input_ids"])
    names = {"prompt_embeds": "input_ids", "negative_prompt_embeds": "negative_input_ids"}
    return {
        name: infer(url, f"{prefix}text_encoder", {"input_ids": ids[source]}, ["prompt_embeds"])["prompt_embeds"]
        for name, source in names.items()
    }


def metric(port: int, name: str, **labels: str) -> float:
    """The sum of a metric's series with these labels; 0 where there is none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    total = 0.0
    for line in lines:
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? ([0-9.e+-]+)", line)
        if found is None:
            continue
        known = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1) or ""))
        if all(known.get(key) == value for key, value in labels.items()):
            total += float(found.group(2))
    return total


def settled(read: Callable[[], Any]) -> Any:
    """What is read once all that was counted before is told."""
    deadline = time.monotonic() + 60
    found = read()
    while time.monotonic() < deadline:
        time.sleep(1.5)
        before, found = found, read()
        if found == before:
            return found
    raise AssertionError("it is counted on and on")
