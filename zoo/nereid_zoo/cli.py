"""`nereid zoo`: the command line of the zoo."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nereid_client import Client
from nereid_zoo.sections import score as sections
from nereid_zoo.shapes.score import (
    CHECKPOINT,
    DrawingSettings,
    held_out_captions,
    score,
    scorer_for,
    served_drawer,
    torch_drawer,
)
from nereid_zoo.stages import StageError

app = typer.Typer(
    help="Train and score this project's own small checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


_score = typer.Typer(help="Score a checkpoint on what it was never trained on.", no_args_is_help=True)
_train = typer.Typer(help="Train a checkpoint from nothing; its data is made on the way.", no_args_is_help=True)
app.add_typer(_score, name="score")
app.add_typer(_train, name="train")


@_train.command("shapes")
def train_shapes(
    out: Annotated[Path, typer.Option(help="The diffusers folder to write.")] = CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where finished stages are kept, to resume from.")] = Path("build/zoo/shapes"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="All stages together; the shipped one took 123 on two cores.")] = 123,
) -> None:
    """Train the painter of shapes from nothing. Each finished stage is kept in WORK."""
    from nereid_zoo.shapes.train import TrainingPlan, train

    share = minutes / 123
    plan = TrainingPlan(work=work, device=device, text_minutes=6 * share, vae_minutes=21 * share, unet_minutes=96 * share)
    _trained(lambda: train(plan, out))
    console.print(f"shapes: written to {out}")


MOST_STEPS = 8
"""Of a student."""
MOST_RANK = 128
"""Of LoRA weights: no weight of the UNet has a higher one."""


@_train.command("shapes-student")
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

    if scorer_for(teacher) is None:
        raise typer.BadParameter(
            f"{teacher} is not allowed; it must be a painter of shapes, as `zoo train shapes` writes it", param_hint="--teacher"
        )
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
    console.print(f"shapes-student: written to {out}")


@_train.command("shapes-tiny-vae")
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

    if scorer_for(teacher) is None:
        raise typer.BadParameter(
            f"{teacher} is not allowed; it must be a painter of shapes, as `zoo train shapes` writes it", param_hint="--teacher"
        )
    if student is not None and scorer_for(student) is None:
        raise typer.BadParameter(f"{student} is not allowed; it must be a student of shapes", param_hint="--student")
    if tiny_vae is not None:
        try:
            read_tiny_vae(tiny_vae)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--tiny-vae") from None
    plan = TinyVaePlan(work=work, teacher=teacher, device=device, minutes=minutes, student=student, tiny_vae=tiny_vae)
    _trained(lambda: distil_vae(plan, out))
    console.print(f"shapes-tiny-vae: written to {out}")


@_train.command("sections")
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
    from nereid_zoo.sections.train import TrainingPlan, train

    _trained(lambda: train(TrainingPlan(work=work, device=device, minutes=minutes), out))
    console.print(f"sections: written to {out}")


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
    if find_spec("peft") is None:
        raise typer.BadParameter(
            f"{rank} is not allowed without peft; install it with `pip install -e './zoo[lora]'`", param_hint="--lora-rank"
        )


def _trained(work: Callable[[], None]) -> None:
    try:
        work()
    except StageError as error:
        raise typer.BadParameter(str(error), param_hint="--work") from None


@_score.command("sections")
def score_sections(
    count: Annotated[int, typer.Option(help="Held-out briefs to answer.")] = 200,
    path: Annotated[Path, typer.Option(help="The transformers folder.")] = sections.CHECKPOINT,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository to score as well; a server is started for it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Prefix of the model in REPOSITORY.")] = "",
    show_wrong: Annotated[bool, typer.Option(help="List the sections that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out briefs answered right, greedily, by PyTorch and, with --repository, by the served engine."""
    rows = []
    with _maybe_serving(repository, name) as client:
        writers = {"PyTorch": sections.torch_writer(path)}
        if client is not None:
            writers["served"] = sections.served_writer(client)
        for engine, write in writers.items():
            with _bar(engine, count) as done:
                made = sections.score(write, sections.held_out_briefs(count), done)
            rows.append({"engine": engine, "written": made.written, "percent": made.percent})
            if show_wrong:
                for text, found in made.wrong:
                    console.print(f"  {text}: {'; '.join(found)}", highlight=False)
    if as_json:
        print(json.dumps({"checkpoint": "sections", "scores": rows}))
        return
    table = Table(title="sections: held-out briefs answered right, greedily")
    for column in ("engine", "written", "right"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        table.add_row(str(row["engine"]), str(row["written"]), f"{row['percent']:.1f}%")
    Console().print(table)


@_score.command("shapes")
def score_shapes(
    count: Annotated[int, typer.Option(help="Held-out captions to draw.")] = 200,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint's own scheduler; 20, and 4 of a student.")] = None,
    guidance: Annotated[
        list[float] | None, typer.Option(help="Guidance scales, each scored; 3, 5 and 7.5, and 1 of a student.")
    ] = None,
    path: Annotated[Path, typer.Option(help="The diffusers folder.")] = CHECKPOINT,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository to score as well; a server is started for it.")
    ] = None,
    show_wrong: Annotated[bool, typer.Option(help="List the drawings that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out captions drawn right, by PyTorch and, with --repository, by the served engines."""
    if scorer_for(path) is None:
        raise typer.BadParameter(
            f"{path} is not allowed; it must be a painter of shapes, as `zoo train shapes` writes it", param_hint="--path"
        )
    usual = DrawingSettings.of(path)
    steps = steps or usual.steps
    rows = []
    with _maybe_serving(repository) as client:
        for scale in guidance or usual.guidance:
            drawers = {"PyTorch": torch_drawer(path, steps=steps, guidance=scale)}
            if client is not None:
                drawers["served"] = served_drawer(client, steps=steps, guidance=scale)
            for name, draw in drawers.items():
                with _bar(f"{name}, guidance {scale:g}", count) as done:
                    made = score(draw, held_out_captions(count), done)
                rows.append({"engine": name, "guidance": scale, "drawn": made.drawn, "percent": made.percent})
                if show_wrong:
                    for text, found in made.wrong:
                        console.print(f"  {text}: {'; '.join(found)}", highlight=False)
    if as_json:
        print(json.dumps({"checkpoint": "shapes", "scheduler": usual.scheduler, "steps": steps, "scores": rows}))
        return
    table = Table(title=f"shapes: held-out captions drawn right, {steps} steps of {usual.scheduler}")
    for column in ("engine", "guidance", "drawn", "right"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        table.add_row(str(row["engine"]), f"{row['guidance']:g}", str(row["drawn"]), f"{row['percent']:.1f}%")
    Console().print(table)


@contextmanager
def _bar(name: str, count: int) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=count)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _maybe_serving(repository: Path | None, name: str = "") -> Iterator[Client | None]:
    if repository is None:
        yield None
        return
    from nereid.serving.options import ServeOptions
    from nereid.serving.supervisor import Supervisor

    with tempfile.TemporaryDirectory() as folder:
        options = ServeOptions.on_free_ports(repository, Path(folder) / "triton.log")
        with Supervisor(options), Client(f"127.0.0.1:{options.grpc_port}", name=name) as client:
            yield client
