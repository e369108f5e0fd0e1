"""Arrays that stay on a GPU between two calls: cupy's, which numpy's functions take; imported only where some stay."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def require_device_arrays() -> None:
    """Raise ValueError where arrays cannot stay on a GPU, so that a model tells it when it loads."""
    try:
        _cupy().cuda.Device(0).compute_capability  # noqa: B018
    except ImportError as error:
        raise ValueError(f"parameter features_device: gpu needs the package cupy (the extra gpu of nereid): {error}") from None
    except Exception as error:
        raise ValueError(f"parameter features_device: gpu needs a CUDA device: {error}") from None


def on_device(tensor: Any) -> Any:
    """A tensor of Triton's in GPU memory as a cupy array over the same memory."""
    return _cupy().from_dlpack(tensor)


def on_host(tensor: Any) -> np.ndarray:
    """A tensor of Triton's, wherever it lies, as numpy's."""
    return tensor.as_numpy() if tensor.is_cpu() else _cupy().asnumpy(on_device(tensor))


def _cupy() -> Any:
    return importlib.import_module("cupy")
