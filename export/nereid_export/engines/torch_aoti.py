"""PyTorch: a component compiled ahead of time (AOTInductor, `model.pt2`), served by Triton's `pytorch` backend or the stand-in.

The backend does not batch these packages and knows tensors by their place (`INPUT__0`), so that the engines have no
`max_batch_size`, and those that call them are told the names (`nereid_export.tensor_names`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from nereid.engines.torch_model import INPUT, OUTPUT, PLATFORM, Program
from nereid.engines.torch_package import PackageFacts, PackageTensor, public_version
from nereid_export.components import Component, TensorSpec, sizes_at
from nereid_export.engines.base import Samples, Target, shape_range
from nereid_export.engines.check import Reference, Run, compare, random_references, refuse_above_bound
from nereid_export.engines.precision import Precision
from nereid_export.engines.traced import dynamic_shapes, example_inputs, one_scale
from nereid_export.engines.triton_config import batch_by_shape, name_by_place
from nereid_export.errors import ExportError, first_line
from nereid_export.frame import Device
from nereid_export.silence import quiet

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
MOST_ROWS = 63
"""From 64 rows on diffusers' upsampling goes another way, and one graph has one way."""
_UNBOUNDED = 2**31
"""A dimension that may be as large as this has no bound: exporters write the largest integer."""


class TorchAoti:
    backend = "pytorch"
    filename = "model.pt2"
    packages = ()  # `torch` is every engine's
    quantisers = ()
    precisions = (Precision.FP32, Precision.FP16, Precision.BF16)
    options = ("max_autotune", "bucket")

    def require(self, target: Target) -> None:
        from torch._inductor import cpp_builder, exc

        if target.device is not Device.CPU:
            raise ExportError(f"--device: {target.device} is not allowed with --engine torch; it must be cpu")
        if target.max_batch_size > MOST_ROWS:
            raise ExportError(
                f"--max-batch-size: {target.max_batch_size} rows a call are not allowed with --engine torch; it must be "
                f"{MOST_ROWS // 2} or less, for the UNet takes two rows an image and its graph {MOST_ROWS} at most"
            )
        if target.precision not in computed_precisions():
            kind = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}[target.precision]
            raise ExportError(
                f"--precision: {target.precision} needs a processor with {kind} instructions, which this one lacks; use fp32"
            )
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise ExportError(
                "--engine torch needs a C++ compiler, which is not here; install one with `apt-get install g++`"
            ) from None

    def require_run(self, target: Target) -> None:
        """PyTorch is always here; a package says itself which processor and which PyTorch it is for, when it is loaded."""

    def unchecked(self, target: Target) -> str | None:
        return None

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples) -> None:
        precision, smallest = target.of(component), _smallest(component, target)
        edges = _edge_references(component, module, smallest)
        program = _export(component, module.to(_DTYPES[precision]))
        facts = _facts(component, program, smallest)
        _require_sizes(component, facts, target)
        _compile(program, folder / self.filename, facts, target.plan.max_autotune)
        # The exporter proves its guards for sizes of 2 and more; whether smaller ones are right is tried.
        refuse_above_bound(component, compare(edges, self.load(component, folder, target)), precision)

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        program = Program.load(folder / self.filename)

        def run(inputs: Any, outputs: Any) -> Any:
            made = program.run_named(inputs)
            return {name: made[name] for name in outputs}

        return run

    def probe(self, component: Component, target: Target) -> str | None:
        return "nereid.engines.torch_model:runner"

    def configure(self, config: Any, component: Component, target: Target) -> None:
        config.parameters.clear()  # the source's are ONNX Runtime's
        config.platform = PLATFORM
        batch_by_shape(config)
        name_by_place(config, INPUT, OUTPUT)


def computed_precisions() -> tuple[Precision, ...]:
    """Those for which this processor has instructions; the others would be emulated, right but slower than float32."""
    made = [Precision.FP32]
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        made.append(Precision.FP16)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        made.append(Precision.BF16)
    return tuple(made)


def _export(component: Component, module: nn.Module) -> ExportedProgram:
    """The graph for every size; raises ExportError where PyTorch can prove it for some only."""
    try:
        with torch.no_grad(), quiet(printing=True), one_scale():
            # Non-strict: the modules are traced as Python runs them, which is how the graph for ONNX is made, too.
            return torch.export.export(module, example_inputs(component), dynamic_shapes=dynamic_shapes(component), strict=False)
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{component.name}: torch.export cannot make one graph for every size: {first_line(error)}") from None


def _facts(component: Component, program: ExportedProgram, smallest: dict[str, int]) -> PackageFacts:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    flags = pick_vec_isa().build_arch_flags().split()
    return PackageFacts(
        torch=public_version(torch.__version__),
        device="cpu",
        machine="",  # PyTorch writes it
        instructions=tuple(flag[2:].replace("-", "") for flag in flags if flag.startswith("-m") and "=" not in flag),
        inputs=tuple(_tensor(spec) for spec in component.inputs),
        outputs=tuple(_tensor(spec) for spec in component.outputs),
        smallest=smallest,
        largest=_largest(component, program),
    )


def _tensor(spec: TensorSpec) -> PackageTensor:
    return PackageTensor(spec.name, str(spec.dtype).removeprefix("torch."), ("batch", *spec.dims))


def _dimensions(component: Component, program: ExportedProgram) -> Iterator[tuple[str, str, Any]]:
    """Input, name and symbol (or size) of every dimension that varies."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec, name in zip(component.inputs, program.graph_signature.user_inputs, strict=True):
        for dim, size in zip(("batch", *spec.dims), values[name].shape, strict=True):
            if isinstance(dim, str):
                yield spec.name, dim, size


def _largest(component: Component, program: ExportedProgram) -> dict[str, int]:
    """Bounds that the graph has; raises ExportError for a dimension that it has fixed, or takes at some sizes only."""
    bounds: dict[str, int] = {}
    for name, dim, size in _dimensions(component, program):
        expression = size.node.expr if isinstance(size, torch.SymInt) else None
        if expression is None:
            raise ExportError(f"{component.name}: the exported graph has fixed {dim} of {name} at {size}")
        if not expression.is_Symbol:
            raise ExportError(f"{component.name}: the exported graph takes {dim} of {name} only where it is {expression}")
        known = program.range_constraints.get(expression)
        if known is not None and known.upper.is_Integer and int(known.upper) < _UNBOUNDED:
            bounds[dim] = min(int(known.upper), bounds.get(dim, _UNBOUNDED))
    return bounds


def _smallest(component: Component, target: Target) -> dict[str, int]:
    """One row of the smallest picture there can be: one latent."""
    sizes = {**sizes_at(component, target.scale, target.scale), "tokens": 1}
    named = {dim for spec in component.inputs for dim in spec.dims if isinstance(dim, str)}
    return {"batch": 1, **{dim: size for dim, size in sizes.items() if dim in named}}


def _edge_references(component: Component, module: nn.Module, smallest: dict[str, int]) -> list[Reference]:
    """What PyTorch makes of the smallest sizes all together, and of each beside usual ones."""
    rows, all_small = smallest["batch"], {dim: size for dim, size in smallest.items() if dim != "batch"}
    each = ((rows + 1, {**component.example, dim: size}) for dim, size in all_small.items())
    try:
        return random_references(replace(component, checks=((rows, all_small), *each)), module)
    except RuntimeError as error:
        raise ExportError(f"{component.name}: PyTorch cannot run it at the smallest sizes: {first_line(error)}") from None


def _require_sizes(component: Component, facts: PackageFacts, target: Target) -> None:
    for dim, size in shape_range(component, target).maximum.items():
        if size > (most := facts.largest.get(dim, size)):
            option = "--max-batch-size" if dim == "batch" else "--max-side"
            raise ExportError(
                f"{component.name}: {option} needs a {dim} of {size}, and PyTorch's graph takes {most} at most; choose a smaller"
            )


def _compile(program: ExportedProgram, file: Path, facts: PackageFacts, max_autotune: bool) -> None:
    from torch._inductor.utils import fresh_cache

    options = {
        "aot_inductor.metadata": facts.metadata(),
        "freezing": True,
        "max_autotune": max_autotune,
        # Else the compiler may use all that this very processor has, of which nothing in the package tells.
        "cpp.march": "",
        # They double the file.
        "aot_inductor.enable_line_tables": False,
        # They pay where many files are compiled; a package is two.
        "aot_inductor.precompile_headers": False,
    }
    # The weights lie in that cache, too: it ends with the export.
    with torch.no_grad(), quiet(printing=True), fresh_cache(dir=str(file.parent)):
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
