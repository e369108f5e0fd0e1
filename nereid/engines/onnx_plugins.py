"""An execution provider that comes to ONNX Runtime as a plugin, in a package of its own: TensorRT for RTX."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from nereid.flow.errors import first_line

NV_TENSORRT_RTX = "nv_tensorrt_rtx"
"""Its name as an execution accelerator in a config."""

_ASKED = f"gpu_execution_accelerator: {NV_TENSORRT_RTX!r}"


def add_tensorrt_rtx(options: ort.SessionOptions, device_id: int) -> None:
    """Let the session run on that card alone; raises ValueError saying what is missing."""
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        raise ValueError(
            f"{_ASKED} needs ONNX Runtime's plugin; install it with `pip install onnxruntime-ep-nv-tensorrt-rtx-cu12`"
        ) from None
    name = plugin.get_ep_name()
    if not _cards(name):  # several models may share a process, and a library is registered once
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # the library's own error type, which it does not export
            raise ValueError(f"{_ASKED} cannot be loaded: {first_line(error)}") from None
    cards = _cards(name)
    if device_id >= len(cards):
        raise ValueError(f"{_ASKED} has no card {device_id} here; it finds {len(cards)}")
    options.add_provider_for_devices([cards[device_id]], {})


def _cards(provider: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == provider]
