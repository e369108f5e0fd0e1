"""What an AOTInductor package says of itself, read and held against this machine before its native code is loaded."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

METADATA_KEY = "nereid"
"""The entry of a package's metadata that holds `PackageFacts`; PyTorch's own entries name the device and the kind of machine."""
_METADATA = "wrapper_metadata.json"


@dataclass(frozen=True, slots=True)
class PackageTensor:
    """An input or output: `dims` are sizes, and names of those that vary; the batch comes first."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFacts:
    """What a package was compiled with, what it takes and gives, and the sizes that it was compiled for."""

    torch: str
    device: str
    machine: str
    instructions: tuple[str, ...]
    """Instruction sets that its code uses, in the words of the Linux kernel without punctuation."""
    inputs: tuple[PackageTensor, ...]
    outputs: tuple[PackageTensor, ...]
    smallest: Mapping[str, int]
    largest: Mapping[str, int]
    """Of the named dimensions that have a bound."""

    def metadata(self) -> dict[str, str]:
        """What to write into a package; PyTorch adds device and machine."""
        return {METADATA_KEY: json.dumps({key: value for key, value in asdict(self).items() if key not in ("device", "machine")})}

    @classmethod
    def read(cls, file: Path) -> PackageFacts:
        """Raise ValueError where the file is no package that `nereid export` has written."""
        try:
            with zipfile.ZipFile(file) as package:
                name = next(name for name in package.namelist() if name.endswith(_METADATA))
                said = json.loads(package.read(name))
            raw = json.loads(said[METADATA_KEY])
            for key in ("inputs", "outputs"):
                raw[key] = tuple(PackageTensor(one["name"], one["dtype"], tuple(one["dims"])) for one in raw[key])
            raw["instructions"] = tuple(raw["instructions"])
            return cls(device=said["AOTI_DEVICE_KEY"], machine=said["AOTI_MACHINE"], **raw)
        except (OSError, zipfile.BadZipFile, StopIteration, KeyError, TypeError, ValueError):
            raise ValueError(
                f"{file.name}: not a package that `nereid export diffusion --engine torch` has written; export it again"
            ) from None

    def require_processor(self, file: Path) -> None:
        """Raise ValueError where the package's code is not for this machine's processor."""
        if self.device != "cpu":
            raise ValueError(f"{file.name}: compiled for the device {self.device}; it must be cpu")
        if self.machine != platform.machine():
            raise ValueError(
                f"{file.name}: compiled for {self.machine}, and this machine is {platform.machine()}; export it here"
            )
        if missing := [name for name in self.instructions if name not in processor_instructions()]:
            raise ValueError(
                f"{file.name}: compiled for a processor with {', '.join(missing)}, which this one lacks; export it on one like it"
            )

    def require_torch(self, file: Path, version: str) -> None:
        """Raise ValueError where `version` is not the PyTorch that compiled the package: its code calls that one's."""
        if public_version(version) != self.torch:
            raise ValueError(f"{file.name}: compiled with PyTorch {self.torch}, and {version} is installed; export it again")

    def check(self, tensors: Sequence[np.ndarray], shown: Sequence[str]) -> None:
        """Raise ValueError where inputs do not fit: native code would read past their ends. `shown` are the names it tells."""
        sizes: dict[str, tuple[int, str]] = {}
        for spec, tensor, name in zip(self.inputs, tensors, shown, strict=True):
            if tensor.dtype.name != spec.dtype:
                raise ValueError(f"{name}: {tensor.dtype.name} is not allowed; it must be {spec.dtype}")
            if tensor.ndim != len(spec.dims):
                raise ValueError(f"{name}: {tensor.ndim} dimensions are not allowed; it must be {len(spec.dims)}")
            for dim, size in zip(spec.dims, tensor.shape, strict=True):
                if isinstance(dim, int):
                    if size != dim:
                        raise ValueError(f"{name}: shape {tensor.shape} is not allowed; it must be {_shown(spec.dims)}")
                    continue
                known, first = sizes.setdefault(dim, (size, name))
                if size != known:
                    raise ValueError(f"{name}: {dim} {size} is not allowed; it must be {known}, as in {first}")
                self._check_range(name, dim, size)

    def _check_range(self, name: str, dim: str, size: int) -> None:
        least, most = self.smallest.get(dim, 1), self.largest.get(dim)
        if size < least or (most is not None and size > most):
            allowed = f"{least} or more" if most is None else f"{least} to {most}"
            raise ValueError(f"{name}: {dim} {size} is not allowed; it must be {allowed}")


def public_version(version: str) -> str:
    """Without what names a build: `2.13.0+cpu` and `2.13.0` have the same interface."""
    return version.partition("+")[0]


def processor_instructions() -> frozenset[str]:
    """Of this machine's first processor; empty where its kernel says nothing."""
    try:
        return instructions_in(Path("/proc/cpuinfo").read_text())
    except OSError:
        return frozenset()


def instructions_in(text: str) -> frozenset[str]:
    """What Linux's `/proc/cpuinfo` says of the first processor, without punctuation: compilers write `avx512vnni`."""
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(word.replace("_", "") for word in line.partition(":")[2].split())


def _shown(dims: tuple[int | str, ...]) -> str:
    return " x ".join(str(dim) for dim in dims)
