"""What the benchmark of pages waits for and counts; its figures are never asserted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid_bench import pages as benchmark
from nereid_bench.cli import app
from nereid_bench.pages import PagesPlan, Taken, measured, table, verdict
from nereid_client import PageProgress, PageResult

PLAN = PagesPlan(repository=Path("nowhere"), count=2)


def result(*, sections: int = 4, pictures: int = 3, degraded: tuple[str, ...] = (), **seconds: float) -> PageResult:
    drawn = [{"drawn": place < pictures} for place in range(5)]
    made = [{"pictures": drawn if number == 0 else []} for number in range(sections)]
    return PageResult(
        html="<html>",
        title="Bakery",
        width=1280,
        height=900.0,
        passed=True,
        checks=(),
        degraded=degraded,
        seconds={"sections": 0.5, "layouts": 0.4, **seconds},
        seed=1,
        answer={"sections": made},
    )


class Client:
    """Pages that take known times; `asked` has each request."""

    def __init__(self, *answers: tuple[float, PageProgress | PageResult]) -> None:
        self.answers, self.asked = answers, list[dict[str, Any]]()

    def stream_page(self, brief: str, **options: Any) -> Iterator[PageProgress | PageResult]:
        self.asked.append({"brief": brief, **options})
        for seconds, answer in self.answers:
            time.sleep(seconds)
            yield answer


def progress(*visible: str) -> PageProgress:
    return PageProgress(step=1, html="", progress={}, done={}, visible=visible, seconds=0.0)


def test_a_callers_time_is_until_the_first_section_and_until_the_page() -> None:
    client = Client((0.0, progress()), (0.05, progress("s2")), (0.05, progress("s1", "s2")), (0.1, result()))
    taken = measured(client, PLAN, lambda said: None)
    assert [its["seed"] for its in client.asked] == [0, 1, 2]  # the first does not count
    assert client.asked[0] == {"brief": benchmark.BRIEF, "seed": 0, "sections": 4, "pictures": 3, "width": 1280}
    for one in taken:
        assert 0.1 <= one.first <= one.whole - 0.1
    only = measured(Client((0.01, result())), PLAN, lambda said: None)
    assert all(one.first == one.whole for one in only)
    with pytest.raises(ServingError, match="a stream has ended without a page"):
        measured(Client((0.0, progress("s1"))), PLAN, lambda said: None)


def test_only_pages_that_are_what_the_aim_is_about_count_for_it() -> None:
    whole = [
        Taken(first=0.5, whole=8.0, made=result(plan=0.2)),
        Taken(first=2.0, whole=12.0, made=result()),
        Taken(first=0.5, whole=1.0, made=result(pictures=2)),
        Taken(first=0.5, whole=1.0, made=result(sections=3)),
        Taken(first=0.5, whole=1.0, made=result(degraded=("a placeholder",))),
    ]
    rows = {row["what"]: row for row in table(PLAN, whole)}
    assert (rows["page"]["pages"], rows["page"]["worst_s"], rows["page"]["within"]) == (2, 12.0, 50)
    assert (rows["first section"]["pages"], rows["first section"]["p50_s"], rows["first section"]["within"]) == (5, 0.5, 80)
    assert (rows["plan"]["pages"], rows["plan"]["p50_s"], rows["plan"]["within"]) == (1, 0.2, None)
    assert rows["pictures"]["p95_s"] is None
    assert verdict(PLAN, whole) == (
        "of 5 pages 2 have 4 sections and 3 pictures, 5 pass all error checks, 1 have something that rules made"
    )
    assert "0 have 5 sections" in verdict(replace(PLAN, sections=5), whole)


def test_the_command_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(repository: Path, name: str) -> Iterator[tuple[Client, None]]:
        yield Client((0.0, result())), None

    monkeypatch.setattr(benchmark, "serving", serving)
    asked = ["page", "--repository", str(tmp_path / "repository"), "--count", "1", "--out", str(tmp_path / "page.json")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 1
    assert "has no page; write one with `nereid export page`" in refused.output.replace("\n", " ")
    (tmp_path / "repository" / "page").mkdir(parents=True)
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "page.json").read_text())
    assert [row["what"] for row in rows] == ["first section", "page", "plan", "sections", "layouts", "pictures"]
    assert json.loads(done.stdout.splitlines()[-1]) == rows
