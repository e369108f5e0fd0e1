"""Who is let into a worker after its death: those that were inside, in parts, which are divided until the guilty one is alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from nereid.flow.errors import PoisonousRequestError
from nereid.flow.metrics import Recorder
from nereid.flow.runs import Runs
from nereid.llm import crew as module
from nereid.llm.crew import Crew
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.sequences import Delta


class NoWorker:
    def __init__(self, options: Any, owner: Any) -> None: ...

    def send(self, message: Any) -> None: ...


@dataclass(eq=False)
class Inside:
    """As much of a task as the crew looks at."""

    number: int
    deaths: int = 0
    part: int = 0
    done: bool = False
    error: Exception | None = None
    request_id: str = "req"

    @property
    def suspect(self) -> bool:
        return self.deaths > 0

    def rewind(self) -> None: ...


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr(module, "Worker", NoWorker)
    monkeypatch.setattr(Crew, "_send", lambda self, task: self._inside.__setitem__(task.number, task))
    made = Crew(type("Options", (), {"name": "llm"})(), LlmObserver(Recorder(lambda *_: None), Peak(1.0, 1.0)), Runs())  # type: ignore[arg-type]
    made._up = made._news = True
    return made


def let_in(crew: Crew, tasks: list[Inside]) -> list[int]:
    """Numbers of those inside once the crew has looked at all."""
    crew._up = crew._news = True
    crew.advance([task for task in tasks if not task.done and task.error is None])  # type: ignore[misc]
    return sorted(crew._inside)


def answer(crew: Crew, tasks: list[Inside]) -> None:
    for number in list(crew._inside):
        crew._inside.pop(number)
        tasks[number].done = True


def run(crew: Crew, tasks: list[Inside], dies: Callable[[list[int]], bool]) -> list[list[int]]:
    """Who was inside together, time after time, until all are answered or refused."""
    together: list[list[int]] = []
    while any(not task.done and task.error is None for task in tasks):
        together.append(let_in(crew, tasks))
        assert together[-1], "nobody is let in"
        if dies(together[-1]):
            crew.died("died")
        else:
            answer(crew, tasks)
    return together


def test_after_a_death_that_is_nobodys_fault_all_run_in_four_parts(crew: Crew) -> None:
    tasks = [Inside(number) for number in range(10)]
    deaths = iter([True])
    together = run(crew, tasks, lambda _: next(deaths, False))
    assert together == [list(range(10)), [0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert all(task.done for task in tasks)


def test_a_request_that_ends_workers_is_alone_at_last_and_refused(crew: Crew) -> None:
    tasks = [Inside(number) for number in range(64)]
    together = run(crew, tasks, lambda inside: 41 in inside)
    assert isinstance(tasks[41].error, PoisonousRequestError)
    assert all(task.done for task in tasks if task.number != 41)
    assert [len(inside) for inside in together if 41 in inside] == [64, 16, 4, 1]


def test_newcomers_wait_until_the_suspects_are_answered(crew: Crew) -> None:
    tasks = [Inside(number) for number in range(4)]
    let_in(crew, tasks)
    crew.died("died")
    tasks.append(Inside(4))
    seen = run(crew, tasks, lambda _: False)
    assert seen == [[0], [1], [2], [3], [4]]


def test_a_suspect_of_before_this_process_runs_alone(crew: Crew) -> None:
    tasks = [Inside(0, deaths=1), Inside(1, deaths=1), Inside(2)]
    assert run(crew, tasks, lambda _: False) == [[0], [1], [2]]


def test_one_that_gave_its_place_up_comes_again_from_the_first_token_on_under_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What its first turn still sends is nobody's then."""
    sent: list[tuple[str, int]] = []

    class Worker(NoWorker):
        def send(self, message: Any) -> None:
            sent.append((message.kind, int(message.body["task"])))

    class Began(Inside):
        called_back = False
        request = type("Request", (), {"run_id": None})()
        rewound = 0

        def entered(self) -> None: ...

        def begin_again(self) -> None:
            self.called_back, self.number, self.rewound = False, self.number + 100, self.rewound + 1

    monkeypatch.setattr(module, "Worker", Worker)
    monkeypatch.setattr(module.Order, "of", lambda *_: type("Order", (), {"message": lambda self, number: Sent(number)})())
    made = Crew(type("Options", (), {"name": "llm"})(), LlmObserver(Recorder(lambda *_: None), Peak(1.0, 1.0)), Runs())  # type: ignore[arg-type]
    batch, caller = Began(1), Began(2)
    let_in(made, [batch])
    let_in(made, [caller])
    assert let_in(made, [batch, caller]) == [2, 101]
    assert sent == [("start", 1), ("drop", 1), ("start", 2), ("start", 101)]
    assert (batch.rewound, caller.rewound) == (1, 0)
    assert let_in(made, [batch, caller]) == [2, 101]


@dataclass
class Sent:
    task: int
    kind: str = "start"

    @property
    def body(self) -> dict[str, int]:
        return {"task": self.task}


def test_tokens_are_taken_before_their_request_may_begin_again(crew: Crew) -> None:
    """Else they would be compared with the first ones of its next turn."""
    called_back = threading.Event()

    class Receives(Inside):
        def receive(self, *delta: object) -> None:
            def call_back() -> None:
                let_in(crew, [])
                called_back.set()

            threading.Thread(target=call_back, daemon=True).start()
            assert not called_back.wait(0.2)

    let_in(crew, [Receives(1)])
    crew._take(1, 0, 0, Delta((5,)))
    assert called_back.wait(60)
    assert crew._inside == {}
