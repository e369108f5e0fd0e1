"""Where a language model's KV cache lies: NumPy arrays, or PyTorch tensors on a graphics card; the same few operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class HostMemory:
    """NumPy arrays."""

    device = "cpu"
    index = 0

    def zeros(self, size: int, dtype: type) -> NDArray:
        return np.zeros(size, dtype)

    def copy(self, part: NDArray) -> NDArray:
        return part.copy()

    def read(self, parts: Sequence[NDArray]) -> NDArray:
        """The parts one after the other, a copy."""
        return np.stack(parts)

    def write(self, part: NDArray, values: NDArray) -> None:
        part[...] = values

    def address(self, part: NDArray) -> int:
        """Of the first element; the part is contiguous."""
        return int(part.ctypes.data)


class DeviceMemory:
    """PyTorch tensors on `device` number `index`; what is read comes to the host, what is written comes from there."""

    def __init__(self, device: str, index: int = 0) -> None:
        try:
            import torch
        except ImportError:
            raise ValueError("instance_group: KIND_GPU needs PyTorch, which holds the KV cache on the card") from None
        self._torch = torch
        self._place = torch.device(device, index)
        self.device, self.index = device, index

    def zeros(self, size: int, dtype: type) -> Any:
        return self._torch.from_numpy(np.zeros(0, dtype)).new_zeros(size, device=self._place)

    def copy(self, part: Any) -> Any:
        return part.clone()

    def read(self, parts: Sequence[Any]) -> NDArray:
        return np.asarray(self._torch.stack(list(parts)).cpu().numpy())

    def write(self, part: Any, values: NDArray) -> None:
        part.copy_(self._torch.from_numpy(np.ascontiguousarray(values)))

    def address(self, part: Any) -> int:
        return int(part.data_ptr())
