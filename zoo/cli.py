"""`nereid zoo`: the command line of this room."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nereid.client import Client
from nereid.zoo.shapes.score import CHECKPOINT, Draw, Score, held_out_captions, score, served_drawer, torch_drawer

app = typer.Typer(
    help="Train and score this project's own small checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


class Checkpoint(StrEnum):
    SHAPES = "shapes"


@app.command("train")
def train_command(
    checkpoint: Annotated[Checkpoint, typer.Argument(help="Which one.")],
    out: Annotated[Path, typer.Option(help="The diffusers folder to write.")] = CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where finished stages are kept, to resume from.")] = Path("build/zoo/shapes"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="All stages together; 123 is what the shipped one took on two cores.")] = 123,
) -> None:
    """Train from nothing: the data is made on the way. Each finished stage is kept in WORK."""
    from nereid.zoo.shapes.train import TrainingPlan, train

    share = minutes / 123
    plan = TrainingPlan(work=work, device=device, text_minutes=6 * share, vae_minutes=21 * share, unet_minutes=96 * share)
    train(plan, out)
    console.print(f"{checkpoint}: written to {out}")


@app.command("score")
def score_command(
    checkpoint: Annotated[Checkpoint, typer.Argument(help="Which one.")],
    count: Annotated[int, typer.Option(help="Held-out captions to draw.")] = 200,
    steps: Annotated[int, typer.Option(help="DPM++ 2M steps.")] = 20,
    guidance: Annotated[list[float], typer.Option(help="Guidance scales, each scored.")] = [3.0, 5.0, 7.5],  # noqa: B006
    path: Annotated[Path, typer.Option(help="The diffusers folder.")] = CHECKPOINT,
    repository: Annotated[
        Path | None, typer.Option(help="An exported repository to score as well; a server is started for it.")
    ] = None,
    show_wrong: Annotated[bool, typer.Option(help="List the drawings that were wrong, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Share of held-out captions drawn right, by PyTorch and, with --repository, by the served engines."""
    rows = []
    with _maybe_serving(repository) as client:
        for scale in guidance:
            drawers = {"PyTorch": torch_drawer(path, steps=steps, guidance=scale)}
            if client is not None:
                drawers["served"] = served_drawer(client, steps=steps, guidance=scale)
            for name, draw in drawers.items():
                made = _score_with_bar(f"{name}, guidance {scale:g}", draw, count)
                rows.append({"engine": name, "guidance": scale, "drawn": made.drawn, "percent": made.percent})
                if show_wrong:
                    for text, found in made.wrong:
                        console.print(f"  {text}: {'; '.join(found)}", highlight=False)
    if as_json:
        print(json.dumps({"checkpoint": str(checkpoint), "steps": steps, "scores": rows}))
        return
    table = Table(title=f"{checkpoint}: held-out captions drawn right, {steps} steps of DPM++ 2M")
    for column in ("engine", "guidance", "drawn", "right"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for row in rows:
        table.add_row(str(row["engine"]), f"{row['guidance']:g}", str(row["drawn"]), f"{row['percent']:.1f}%")
    Console().print(table)


def _score_with_bar(name: str, draw: Draw, count: int) -> Score:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=count)
        return score(draw, held_out_captions(count), lambda done: bar.update(task, completed=done))


@contextmanager
def _maybe_serving(repository: Path | None) -> Iterator[Client | None]:
    if repository is None:
        yield None
        return
    from nereid.serving.options import ServeOptions
    from nereid.serving.supervisor import Supervisor

    with tempfile.TemporaryDirectory() as folder:
        options = ServeOptions.on_free_ports(repository, Path(folder) / "triton.log")
        with Supervisor(options), Client(f"127.0.0.1:{options.grpc_port}") as client:
            yield client
