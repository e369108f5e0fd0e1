"""Which rungs and which peers of the ladder can be measured here; each other one is said by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nereid.engines.openvino_model import computes_bf16
from nereid_bench.compare import Say
from nereid_bench.ladder_repositories import fewest_steps, repository_of, require_student, tiny_vae_of
from nereid_bench.ladder_rungs import Kind, LadderModel, LadderPlan, PeerName, PeerWay, Rung, ServedWay, Step, steps_of
from nereid_bench.optimum_cli import LEFT_OUT, images_converted
from nereid_export.errors import ExportError

_NEEDED = {
    PeerName.DEEPCACHE: ("DeepCache", "pip install -e './benchmarks[deepcache]'"),
    PeerName.CACHE_DIT: ("cache_dit", "pip install cache-dit"),
}
"""Packages of peers, as Python imports them, and what installs them."""


def served_steps(model: LadderModel, checkpoint: Path, plan: LadderPlan, leave_out: Say) -> tuple[list[Step], dict[Kind, Path]]:
    """The rungs whose checkpoints and repositories are there, or can be made; each other one is said by name."""
    found: dict[Kind, Path] = {}
    failed: set[Kind] = set()
    steps = []
    for step in steps_of(model, checkpoint, plan, tiny_vae_of(model, plan.work), fewest_steps()):
        way = step.way
        try:
            if step.uses_student:
                require_student(step.rung, model)
            if isinstance(way, ServedWay) and way.kind not in found and way.kind not in failed:
                found[way.kind] = repository_of(way.kind, model, checkpoint, plan, leave_out)
        except ExportError as error:
            leave_out(f"{model.name}: {step.rung} is left out: {error}")
            if step.rung == Rung.PRECISION:  # those beyond it can do without
                others = tuple(rung for rung in plan.rungs if rung != step.rung)
                return served_steps(model, checkpoint, replace(plan, rungs=others), leave_out)
            if isinstance(way, ServedWay):
                failed.add(way.kind)
            continue
        if isinstance(way, ServedWay) and way.kind in failed:
            leave_out(f"{model.name}: {step.rung} is left out: it needs what could not be exported")
            continue
        steps.append(step)
    return steps, found


def with_peers(
    model: LadderModel, checkpoint: Path, steps: Sequence[Step], plan: LadderPlan, genai: Path, leave_out: Say
) -> list[Step]:
    """The rungs with those of their peers that were asked for and may run here; each other one is said by name, once."""
    asked = {peer for step in steps for peer in step.peers if peer.name in plan.peers}
    refused: set[PeerWay] = set()
    for name, (module, command) in _NEEDED.items():
        if (without := {peer for peer in asked if peer.name is name}) and importlib.util.find_spec(module) is None:
            leave_out(f"{model.name}: {name} is left out: it needs `{command}`")
            refused |= without
    lower = {peer for peer in asked if peer.precision == "bf16"}
    if lower and not computes_bf16():
        labels = " and ".join(sorted({peer.label for peer in lower}))
        leave_out(f"{model.name}: {labels} are left out: this processor has no bfloat16")
        refused |= lower
    converted = {peer for peer in asked - refused if peer.name is PeerName.OPENVINO_GENAI}
    if converted and (why := _not_converted(checkpoint, genai, plan)):
        leave_out(f"{model.name}: {why}")
        refused |= converted
    return [replace(step, peers=tuple(peer for peer in step.peers if peer in asked - refused)) for step in steps]


def _not_converted(checkpoint: Path, genai: Path, plan: LadderPlan) -> str:
    """Why OpenVINO GenAI has no models of this checkpoint; nothing where it has."""
    try:
        return "" if images_converted(checkpoint, genai, plan.optimum_cli) else LEFT_OUT
    except ExportError as error:
        return f"{PeerName.OPENVINO_GENAI} is left out: {error}"
