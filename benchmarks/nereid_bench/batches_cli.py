"""`nereid bench batches`: the command line of what measures a batch beside interactive load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nereid.serving.errors import ServingError
from nereid_bench.arguments import numbers
from nereid_bench.batches import BatchesPlan, batches, verdict
from nereid_bench.tables import report_rows
from nereid_client.terminal import fail, say

_DEFAULTS = BatchesPlan(repository=Path("build/repository"))


def batches_command(
    repository: Annotated[Path, typer.Option(help="The exported repository, with `llm`.")] = _DEFAULTS.repository,
    rates: Annotated[
        str, typer.Option(help="Interactive requests a second, Poisson; each rate has turns of its own.")
    ] = "0.5,1,2",
    seconds: Annotated[float, typer.Option(min=1, help="Of one turn.")] = _DEFAULTS.seconds,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds, in which turns without and with a batch alternate; medians are told.")
    ] = _DEFAULTS.rounds,
    tokens: Annotated[str, typer.Option(help="Tokens of an answer, to draw from, of callers and of the batch.")] = ",".join(
        map(str, _DEFAULTS.answers)
    ),
    requests: Annotated[
        int, typer.Option(min=1, help="Requests of a batch; more than it gets answered in a turn.")
    ] = _DEFAULTS.requests,
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and prompts.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/batches.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """A batch of /v1/batches in the gaps of streamed completions that callers wait for, through the gateway of a real server.

    Seconds from arrival to the last and to the first token without and with a batch, and their ratios, of turns with the same
    arrivals and lengths; requests and tokens a second of the batch in the gaps and with nobody else. It takes rounds x (2 x
    rates + 1) turns.
    """
    chosen, lengths = numbers(rates, float), numbers(tokens, int)
    if wrong := [rate for rate in chosen if not 0 < rate <= 1000]:
        raise typer.BadParameter(f"{wrong[0]:g} is not allowed; it must be more than 0, at most 1000", param_hint="--rates")
    if wrong := [length for length in lengths if length < 1]:
        raise typer.BadParameter(f"{wrong[0]} is not allowed; it must be at least 1", param_hint="--tokens")
    plan = BatchesPlan(
        repository=repository, rates=chosen, seconds=seconds, rounds=rounds, requests=requests, answers=lengths, seed=seed
    )
    try:
        rows = batches(plan, say)
    except (ServingError, OSError, ValueError) as error:
        fail(error)
    say(verdict(rows))
    report_rows("a batch beside callers who wait: seconds, and the batch's requests and tokens a second", rows, out, as_json)
