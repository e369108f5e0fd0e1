"""`nereid zoo train`: the command line of the trainings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nereid.diffusion.solvers import ScheduleError
from nereid_client.terminal import say
from nereid_zoo.layout import score as layout
from nereid_zoo.layout.weights import WeightsError
from nereid_zoo.page import score as pages
from nereid_zoo.sections import score as sections
from nereid_zoo.shapes.score import CHECKPOINT, scorer_for
from nereid_zoo.stages import StageError

train = typer.Typer(help="Train a checkpoint from nothing; its data is made on the way.", no_args_is_help=True)


@train.command("shapes")
def train_shapes(
    out: Annotated[Path, typer.Option(help="The diffusers folder to write.")] = CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where finished stages are kept, to resume from.")] = Path("build/zoo/shapes"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="All stages together; the shipped one took 123 on two cores.")] = 123,
) -> None:
    """Train the painter of shapes from nothing. Each finished stage is kept in WORK."""
    from nereid_zoo.shapes import train as shapes

    share = minutes / 123
    plan = shapes.TrainingPlan(work=work, device=device, text_minutes=6 * share, vae_minutes=21 * share, unet_minutes=96 * share)
    _trained(lambda: shapes.train(plan, out))
    say(f"shapes: written to {out}")


MOST_STEPS = 8
"""Of a student."""
MOST_RANK = 128
"""Of LoRA weights: no weight of the UNet has a higher one."""


@train.command("shapes-student")
def train_shapes_student(
    out: Annotated[Path, typer.Option(help="The diffusers folder to write.")],
    steps: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Numbers of steps that the distribution matching is for, 2 where absent.")
    ] = "",
    teacher: Annotated[Path, typer.Option(help="The diffusers folder that it learns from.")] = CHECKPOINT,
    student: Annotated[
        Path | None, typer.Option(help="A student to go on from, instead of a consistency distillation from the teacher.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where finished stages are kept, to resume from.")] = Path(
        "build/zoo/shapes-student"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="Of the consistency distillation.")] = 60,
    matching_minutes: Annotated[
        float, typer.Option(min=0, help="Of the distribution matching that follows; none where 0. Fewer steps gain more by it.")
    ] = 0,
    lora_rank: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_RANK,
            help="Train LoRA weights of this rank (LCM-LoRA) and write them to OUT as well; whole weights where 0.",
        ),
    ] = 0,
) -> None:
    """Distil the painter of shapes to few steps, without guidance. Each finished stage is kept in WORK."""
    from nereid_zoo.shapes.distil import DistillationPlan, distil

    _require_painter(teacher, "a painter of shapes, as `zoo train shapes` writes it", "--teacher")
    if student is not None and (not matching_minutes or scorer_for(student) is None):
        raise typer.BadParameter(
            f"{student} is not allowed; it must be a student of shapes, to be matched (--matching-minutes)",
            param_hint="--student",
        )
    if steps and not matching_minutes:
        raise typer.BadParameter(
            f"{steps} is not allowed without --matching-minutes: consistency alone is for any number", param_hint="--steps"
        )
    if lora_rank:
        _require_lora(lora_rank, matching_minutes)
    plan = DistillationPlan(
        work=work,
        teacher=teacher,
        student=student,
        device=device,
        steps=_steps(steps or "2"),
        consistency_minutes=minutes,
        matching_minutes=matching_minutes,
        lora_rank=lora_rank,
    )
    _trained(lambda: distil(plan, out))
    say(f"shapes-student: written to {out}")


@train.command("shapes-tiny-vae")
def train_shapes_tiny_vae(
    out: Annotated[Path, typer.Option(help="The folder of an AutoencoderTiny to write.")],
    teacher: Annotated[Path, typer.Option(help="The diffusers folder whose VAE it learns from.")] = CHECKPOINT,
    work: Annotated[
        Path,
        typer.Option(help="Where finished stages are kept, to resume from; a student's has the latents that are needed here."),
    ] = Path("build/zoo/shapes-student"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="Both stages together.")] = 30,
    student: Annotated[
        Path | None, typer.Option(help="A few-step student with the teacher's VAE; latents that it draws are learned from, too.")
    ] = None,
    tiny_vae: Annotated[Path | None, typer.Option(help="A tiny VAE of shapes to go on from.")] = None,
) -> None:
    """Distil the VAE of the painter of shapes to a tiny one, for `nereid export diffusion --tiny-vae`."""
    from nereid_zoo.shapes.tiny_vae import TinyVaePlan, distil_vae, read_tiny_vae

    _require_painter(teacher, "a painter of shapes, as `zoo train shapes` writes it", "--teacher")
    if student is not None:
        _require_painter(student, "a student of shapes", "--student")
    if tiny_vae is not None:
        try:
            read_tiny_vae(tiny_vae)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--tiny-vae") from None
    plan = TinyVaePlan(work=work, teacher=teacher, device=device, minutes=minutes, student=student, tiny_vae=tiny_vae)
    _trained(lambda: distil_vae(plan, out))
    say(f"shapes-tiny-vae: written to {out}")


@train.command("tools")
def train_tools(
    out: Annotated[Path, typer.Option(help="The folder of LoRA weights to write.")] = sections.CHECKPOINT.parent / "tools",
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 500,
    rate: Annotated[float, typer.Option(min=1e-6, help="The highest learning rate.")] = 4e-3,
    start: Annotated[Path | None, typer.Option(help="A folder of LoRA weights to go on from.")] = None,
) -> None:
    """Teach the writer of web-page sections to call a tool and to answer in JSON, as LoRA weights."""
    from nereid_zoo.tools import train as training

    _require_peft("LoRA weights cannot be trained without", "tools")
    _trained(lambda: training.train(training.ToolsPlan(steps=steps, peak=rate, start=start), out))
    say(f"tools: written to {out}")


@train.command("sections")
def train_sections(
    out: Annotated[Path, typer.Option(help="The transformers folder to write.")] = sections.CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where the tokenizer and finished phases are kept, to resume from.")] = Path(
        "build/zoo/sections"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="All phases together; the shipped one took 164.5 on two cores.")
    ] = 164.5,
) -> None:
    """Train the writer of web-page sections from nothing. Each finished phase is kept in WORK."""
    from nereid_zoo.sections import train as training

    _trained(lambda: training.train(training.TrainingPlan(work=work, device=device, minutes=minutes), out))
    say(f"sections: written to {out}")


@train.command("planner")
def train_planner(
    out: Annotated[Path, typer.Option(help="The transformers folder to write.")] = pages.CHECKPOINT,
    source: Annotated[Path, typer.Option(help="The writer of sections that learns to plan.")] = sections.CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where the finished training is kept.")] = Path("build/zoo/planner"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="Of wall clock.")] = 45,
) -> None:
    """Teach the writer of sections to plan pages, for `nereid export page --planner`."""
    from nereid_zoo.page import train as training

    if not (source / "config.json").is_file():
        raise typer.BadParameter(
            f"{source} is not allowed; it must be a transformers folder, as `zoo train sections` writes it", param_hint="--source"
        )
    _trained(lambda: training.train(training.PlannerPlan(source=source, work=work, device=device, minutes=minutes), out))
    say(f"planner: written to {out}")


@train.command("layout")
def train_layout(
    out: Annotated[Path, typer.Option(help="The diffusers folder to write.")] = layout.CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where finished phases are kept, to resume from.")] = Path("build/zoo/layout"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="All phases together.")] = 120,
) -> None:
    """Train the transformer that lays out sections from nothing. Each finished phase is kept in WORK."""
    from nereid_zoo.layout import train as training

    _trained(lambda: training.train(training.TrainingPlan(work=work, device=device, minutes=minutes), out))
    say(f"layout: written to {out}")


@train.command("layout-dynamic")
def train_layout_dynamic(
    out: Annotated[Path, typer.Option(help="The diffusers folder to write: a copy of SOURCE with what is trained beside it.")],
    source: Annotated[Path, typer.Option(help="The finished layout transformer that it learns from.")] = layout.CHECKPOINT,
    flops: Annotated[
        float, typer.Option(min=0.1, max=0.95, help="Share of the blocks' FLOPs that a run is to take, on average.")
    ] = 0.6,
    work: Annotated[Path, typer.Option(help="Where finished phases are kept, to resume from.")] = Path(
        "build/zoo/layout-dynamic"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="Both phases together.")] = 30,
    tokens: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=0.95,
            help="Share of the MLPs' FLOPs that a run is to take, on average, by passing over tokens; where absent, there are no "
            "routers of tokens.",
        ),
    ] = None,
    token_minutes: Annotated[
        float, typer.Option(min=0.01, help="Of a third phase, in which routers of tokens are trained, with --tokens.")
    ] = 15,
) -> None:
    """Teach the transformer that lays out sections which heads and MLP channels a noise level needs, for `nereid export layout
    --widths`, and which tokens need a block's MLP, for `--tokens`."""
    from nereid_zoo.layout import dynamic_train as training

    if not (source / "transformer" / "config.json").is_file():
        raise typer.BadParameter(
            f"{source} is not allowed; it must be a layout transformer, as `zoo train layout` writes it", param_hint="--source"
        )
    plan = training.DynamicPlan(
        source=source, work=work, flops=flops, device=device, minutes=minutes, tokens=tokens, token_minutes=token_minutes
    )
    try:
        _trained(lambda: training.train_dynamic(plan, out))
    except (WeightsError, ScheduleError) as error:
        raise typer.BadParameter(f"{source} is not allowed; {error}", param_hint="--source") from None
    say(f"layout-dynamic: written to {out}")


@train.command("layout-features")
def train_layout_features(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = layout.FEATURES,
    work: Annotated[Path, typer.Option(help="Where the finished training is kept.")] = Path("build/zoo/layout-features"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Of wall clock.")] = 5,
) -> None:
    """Train the network by whose features `zoo score layout` compares distributions of layouts (FID)."""
    from nereid_zoo.layout import features_model

    _trained(lambda: features_model.train_features(work, minutes, out))
    say(f"layout-features: written to {out}")


def _require_painter(folder: Path, what: str, option: str) -> None:
    if scorer_for(folder) is None:
        raise typer.BadParameter(f"{folder} is not allowed; it must be {what}", param_hint=option)


def _steps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 1 <= int(part) <= MOST_STEPS for part in parts):
        raise typer.BadParameter(
            f"{text} is not allowed; it must be numbers from 1 to {MOST_STEPS}, like 4,2", param_hint="--steps"
        )
    return tuple(int(part) for part in parts)


def _require_lora(rank: int, matching_minutes: float) -> None:
    if matching_minutes:
        raise typer.BadParameter(
            f"{rank} is not allowed with --matching-minutes: matching trains the whole UNet", param_hint="--lora-rank"
        )
    _require_peft(f"{rank} is not allowed without", "--lora-rank")


def _require_peft(sentence: str, option: str) -> None:
    if find_spec("peft") is None:
        raise typer.BadParameter(f"{sentence} peft; install it with `pip install -e './zoo[lora]'`", param_hint=option)


def _trained(work: Callable[[], object]) -> None:
    try:
        work()
    except StageError as error:
        raise typer.BadParameter(str(error), param_hint="--work") from None
