"""An AOTInductor package behind a config.pbtxt: its native code loaded once, one run a request."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.engines.served_model import Arguments, Port, Tensors, check_signature
from nereid.engines.torch_options import TorchOptions
from nereid.engines.torch_package import PackageFacts, PackageTensor
from nereid.flow.errors import EngineError, InvalidRequestError, first_line

PLATFORM = "torch_aoti"
"""What Triton's `pytorch` backend calls these packages."""
_PLATFORMS = (PLATFORM, "pytorch_libtorch")
"""The second is what the Triton from pip (24.10), which refuses the first, writes where a config names none."""
INPUT, OUTPUT = "INPUT__{}", "OUTPUT__{}"
"""What that backend calls tensors, by their place among a package's own."""
_DATA_TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32"}


@dataclass(frozen=True, slots=True)
class Program:
    """A package's native code in this process."""

    facts: PackageFacts
    loader: Any
    """PyTorch's `AOTIModelPackageLoader`."""

    @classmethod
    def load(cls, file: Path) -> Program:
        """Raise ValueError where the package is not for this machine or this PyTorch, before any of its code runs."""
        facts = PackageFacts.read(file)
        facts.require_processor(file)
        try:
            import torch
        except ImportError:
            raise ValueError(
                f"{file.name}: needs PyTorch {facts.torch}, which is not here; install it with `pip install torch=={facts.torch}`"
            ) from None
        facts.require_torch(file, torch.__version__)
        # PyTorch unpacks into a folder that only its own end removes; code that is loaded outlives its file.
        with tempfile.TemporaryDirectory(prefix="nereid-torch-") as folder:
            with zipfile.ZipFile(file) as package:
                package.extractall(folder)
            root = next(path for path in Path(folder).iterdir() if path.is_dir())
            try:
                loader = torch._C._aoti.AOTIModelPackageLoader(str(root), "model", False, 1, -1)
            except RuntimeError as error:
                raise ValueError(f"{file.name}: PyTorch {torch.__version__} cannot load it: {first_line(error)}") from None
        return cls(facts, loader)

    def run(self, tensors: Sequence[NDArray], shown: Sequence[str], *, inference_mode: bool = True) -> list[NDArray]:
        """The outputs, in the package's order; raises ValueError where inputs do not fit."""
        import torch

        self.facts.check(tensors, shown)
        with torch.inference_mode(inference_mode):
            made = self.loader.boxed_run([torch.from_numpy(np.ascontiguousarray(tensor)) for tensor in tensors])
            return [value.contiguous().numpy() for value in made]

    def run_named(self, inputs: Tensors) -> dict[str, NDArray]:
        """By the component's own names."""
        names = [spec.name for spec in self.facts.inputs]
        made = self.run([inputs[name] for name in names], names)
        return dict(zip([spec.name for spec in self.facts.outputs], made, strict=True))


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A program and what the config asks of it; used by one thread at a time."""

    name: str
    program: Program
    outputs: tuple[str, ...]
    """Those that the config names."""
    options: TorchOptions

    @classmethod
    def load(cls, arguments: Arguments) -> TorchModel:
        """Load the package; raises ValueError naming what in the config and the package do not fit."""
        config = arguments.config
        options = TorchOptions.from_parameters(arguments.parameters)
        if config.get("platform") not in _PLATFORMS:
            raise ValueError(f"platform: {config.get('platform', '')!r} is not allowed; it must be {PLATFORM!r}")
        if arguments.instance_kind == "GPU":
            raise ValueError("instance_group: KIND_GPU is not allowed; it must be KIND_CPU")
        if batch := int(config.get("max_batch_size", 0)):
            raise ValueError(f"max_batch_size: {batch} is not allowed; it must be 0, with the batch as the first dimension")
        program = Program.load(arguments.version_folder / (config.get("default_model_filename") or "model.pt2"))
        inputs, outputs = _ports(program.facts.inputs, INPUT), _ports(program.facts.outputs, OUTPUT)
        check_signature(arguments.name, config, inputs, outputs, may_be_optional=False)
        _set_threads(options)
        return cls(arguments.name, program, tuple(item["name"] for item in config["output"]), options)

    def run(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray] | Exception]:
        """One result or one error a request."""
        return [self._run_one(tensors) for tensors in requests]

    def _run_one(self, tensors: Tensors) -> dict[str, NDArray] | Exception:
        facts = self.program.facts
        names = [INPUT.format(index) for index in range(len(facts.inputs))]
        shown = [f"{name} ({spec.name})" for name, spec in zip(names, facts.inputs, strict=True)]
        try:
            made = self.program.run([tensors[name] for name in names], shown, inference_mode=self.options.inference_mode)
        except ValueError as error:
            return InvalidRequestError(f"{self.name}: {error}")
        except RuntimeError as error:
            return EngineError(f"{self.name}: {first_line(error)}")
        found = {OUTPUT.format(index): value for index, value in enumerate(made)}
        return {name: found[name] for name in self.outputs}


def runner(file: str) -> Callable[[Mapping[str, NDArray]], object]:
    """What the process that measures memory runs."""
    return Program.load(Path(file)).run_named


def _ports(tensors: Sequence[PackageTensor], name: str) -> list[Port]:
    return [
        Port(name.format(index), spec.dtype, _DATA_TYPES.get(spec.dtype, ""), len(spec.dims))
        for index, spec in enumerate(tensors)
    ]


def _set_threads(options: TorchOptions) -> None:
    import torch

    if options.intra_op_threads:
        torch.set_num_threads(options.intra_op_threads)
    if options.inter_op_threads:
        torch.set_num_interop_threads(options.inter_op_threads)
