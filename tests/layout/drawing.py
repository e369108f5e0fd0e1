"""A layout service over engines whose answers are known, and its requests and answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nereid.diffusion.solvers import SchedulerConfig, SchedulerName
from nereid.flow.errors import LostError, RequestError
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.layout.elements import Box
from nereid.layout.service import LayoutService
from nereid.layout.settings import LayoutFacts, LayoutLimits, LayoutModel
from nereid.layout.tokens import to_units

Arrays = Mapping[str, np.ndarray]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
FACTS = LayoutFacts(schedule=SchedulerConfig.from_diffusers(FLOW), scheduler=SchedulerName.EULER)
HTML = "<section><h2>Bread of the day</h2><p>Baked before you wake.</p><a class='button' href='#'>Order</a></section>"


class Straight:
    """An engine whose flow leads every row to `clean` boxes (CSS pixels of a canvas), whatever it started from.

    `calls` has the inputs of each; `hold` keeps calls waiting until it is set.
    """

    def __init__(self, clean: Callable[[int], Sequence[Box]] | None = None, width: int = 1280) -> None:
        self.down_since: float | None = None
        self.calls: list[Arrays] = []
        self.hold = threading.Event()
        self.hold.set()
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda made: made
        self._clean, self._width = clean, width

    def call(self, inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        future: Future[Arrays] = Future()
        if self.down_since is not None:
            future.set_exception(LostError("gone"))
            return future
        self.calls.append({name: value.copy() for name, value in inputs.items()})
        threading.Thread(target=self._answer, args=(future, inputs), daemon=True).start()
        return future

    def _answer(self, future: Future[Arrays], inputs: Arrays) -> None:
        self.hold.wait(30)
        sample, level = inputs["sample"], np.maximum(inputs["timestep"][:, :, None], 1e-6) / 1000
        clean = self._aim(sample.shape[1]) if self._clean else np.zeros(sample.shape[1:], np.float32)
        future.set_result({"out_sample": self.spoil((sample - clean) / level)})

    def _aim(self, tokens: int) -> np.ndarray:
        assert self._clean is not None
        boxes = np.array([*self._clean(tokens)], np.float64).reshape(-1, 4)
        units = to_units(boxes[None], np.array([[self._width / 320, *[0] * 17]], np.float32))[0]
        return np.pad(units, ((0, tokens - len(units)), (0, 0)))

    def stop(self) -> None: ...


class Answers:
    """One request's reply, decoupled."""

    def __init__(self) -> None:
        self.sent: list[Arrays] = []
        self.error: Exception | None = None
        self.cancelled = False
        self._closed = threading.Event()

    def send(self, outputs: Arrays) -> None:
        assert not self._closed.is_set()
        self.sent.append(outputs)

    def close(self, error: Exception | None = None) -> None:
        assert not self._closed.is_set(), "a request was answered twice"
        self.error = error
        self._closed.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> Answers:
        assert self._closed.wait(30)
        return self

    @property
    def layout(self) -> dict[str, Any]:
        """The last answer's."""
        self.wait()
        assert self.error is None, self.error
        found: dict[str, Any] = json.loads(self.sent[-1]["layout"].item())
        return found

    @property
    def refused(self) -> RequestError:
        self.wait()
        assert isinstance(self.error, RequestError)
        return self.error


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)


def asked(section: str | list[dict[str, Any]] = HTML, canvas: Any = 1280, **options: Any) -> dict[str, np.ndarray]:
    """The inputs of a request."""
    kinds = {"seed": np.int64, "deadline_seconds": np.float32, "timeout_seconds": np.float32}
    made = {"html": text(section)} if isinstance(section, str) else {"elements": text(json.dumps(section))}
    made["canvas"] = text(json.dumps(canvas))
    for name, value in {"seed": 7, **options}.items():
        made[name] = text(value) if isinstance(value, str) else np.array([value], kinds.get(name, np.int32))
    return made


def ask(service: LayoutService, *arguments: Any, **options: Any) -> Answers:
    answers = Answers()
    service.handle(asked(*arguments, **options), answers)
    return answers


def boxes_of(answer: dict[str, Any]) -> dict[str, Box]:
    return {item["id"]: Box(item["x"], item["y"], item["width"], item["height"]) for item in answer["elements"]}


@contextmanager
def serving(
    engine: Any,
    *,
    facts: LayoutFacts = FACTS,
    record: FlightRecord | None = None,
    told: list[tuple[str, float, dict[str, str]]] | None = None,
    **limits: Any,
) -> Iterator[LayoutService]:
    model = LayoutModel(name="layout", facts=facts, limits=LayoutLimits(**limits), file=Path("model.onnx"), fingerprint="one")

    def write(metric: Any, value: float, labels: Mapping[str, str]) -> None:
        if told is not None:
            told.append((metric.name, value, dict(labels)))

    service = LayoutService(model=model, engine=engine, recorder=Recorder(write), record=record)
    try:
        yield service
    finally:
        getattr(engine, "hold", threading.Event()).set()
        service.stop()
