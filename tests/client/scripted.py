"""A server whose answers are written down, in a time of its own: what takes a client half a minute takes a test no time."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nereid_client.errors import NereidError, NotReadyError
from nereid_client.replay import Run
from nereid_client.server import ReplayPolicy, Server, Work
from nereid_client.session import Session
from nereid_client.steps import Reader, Wait
from nereid_client.transport import Answered, Call, Cancel, Ended, Event, Failed, Tell

Script = list[tuple[float, Event]]
"""What becomes of a call: after how many seconds, and what."""


def texts(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)


def image(seed: int = 5, **more: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a drawn image."""
    return {
        "generated_image": np.zeros((1, 4, 4, 3), np.uint8),
        "image_seed": np.array([[seed]]),
        "warnings": np.array([[b"one\ntwo"]], object),
        "timings": np.array([[0.5, 1.5]], np.float32),
        **more,
    }


def progress(step: int, of: int) -> dict[str, np.ndarray]:
    """The outputs of a stream on its way."""
    return {"step": np.array([step]), "num_inference_steps": np.array([of]), "preview": np.zeros((1, 1, 3), np.uint8)}


def delta(
    tokens: Iterable[int], text: str, finish: str = "", index: int = 0, logprobs: str | None = None, cached: int = 0, **more: Any
) -> dict[str, np.ndarray]:
    """The outputs of a piece of text."""
    made = {
        "index": np.array([index], np.int32),
        "text_output": texts(text),
        "output_ids": np.array(list(tokens), np.int32),
        "finish_reason": texts(finish),
        "num_input_tokens": np.array([3], np.uint32),
        "num_cached_tokens": np.array([cached], np.uint32),
        **more,
    }
    return made if logprobs is None else {**made, "logprobs": texts(logprobs)}


def answers(*outputs: dict[str, np.ndarray], after: float = 0.0) -> Script:
    """A call that goes well."""
    return [*[(after, Answered(item)) for item in outputs], (after, Ended())]


def fails(error: NereidError, *outputs: dict[str, np.ndarray], after: float = 0.0) -> Script:
    """A call that gives these answers and then fails."""
    return [*[(after, Answered(item)) for item in outputs], (after, Failed(error))]


HANGS: Script = []


def state(name: str, **more: np.ndarray) -> Script:
    """A run's holder answers."""
    return answers({"run_state": texts(name), **more})


class World:
    """A transport with a clock. Requests take their scripts in order; `watch` says what becomes of a question at a time."""

    def __init__(
        self,
        *scripts: Script,
        watch: Callable[[float], Script] = lambda now: state("running"),
        back_at: float = 0.0,
        ready: Callable[[float, str], bool] | None = None,
    ) -> None:
        self.scripts = list(scripts)
        self.watch = watch
        self.ready = ready or (lambda now, model: now >= back_at)
        self.now = 0.0
        self.calls: list[tuple[float, Call]] = []
        self.given_up: list[Call] = []
        self.cancelled: list[bytes] = []
        self.questions: list[float] = []
        self.probed: list[str | None] = []
        self.closed = False
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # A transport:

    def start(self, call: Call, tell: Tell) -> Cancel:
        given_up = threading.Event()

        def cancel() -> None:
            given_up.set()
            self.given_up.append(call)

        for after, event in self._script(call):
            self._later(after, lambda event=event: None if given_up.is_set() else tell(event))
        return cancel

    def _script(self, call: Call) -> Script:
        if "cancel" in call.tensors:
            self.cancelled.append(call.tensors["cancel"].reshape(-1)[0])
            return state("running")
        if "watch" in call.tensors:
            self.questions.append(self.now)
            return self.watch(self.now)
        self.calls.append((self.now, call))
        return self.scripts.pop(0)

    def probe(self, model: str | None, timeout: float, tell: Tell) -> None:
        self.probed.append(model)
        there = self.ready(self.now, model or "")
        self._later(0.0, lambda: tell(Ended() if there else Failed(NotReadyError(f"{model} is not ready"))))

    def close(self) -> None:
        self.closed = True

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), act))

    # A driver whose waiting takes no time:

    def drive(self, work: Work, reader: Reader[Any], policy: ReplayPolicy | None = None) -> Iterator[Any]:
        mailbox: list[Any] = []
        self.server = Server(transport=self, policy=policy or ReplayPolicy())
        steps = Run(work=work, server=self.server, reader=reader, post=mailbox.append, clock=lambda: self.now).steps()
        item = None
        try:
            while True:
                try:
                    step = steps.send(item)
                except StopIteration:
                    return
                item = None
                if isinstance(step, Wait):
                    self._pass(step.seconds, mailbox)
                    item = mailbox.pop(0) if mailbox else None
                else:
                    yield step.value
        finally:
            steps.close()

    def _pass(self, seconds: float | None, mailbox: list[Any]) -> None:
        until = None if seconds is None else self.now + seconds
        while not mailbox and self._agenda and (until is None or self._agenda[0][0] <= until):
            self.now, _, act = heapq.heappop(self._agenda)
            act()
        if not mailbox:
            assert until is not None, "the client waits for something that never comes"
            self.now = until


class Instant(World):
    """The same for a real client, in real time: what happens after no time happens at once, on the caller's thread."""

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        if seconds == 0.0:
            act()
        else:
            threading.Timer(seconds, act).start()


def draw(world: World, policy: ReplayPolicy | None = None, **options: Any) -> Any:
    """One image."""
    session = Session(transport=world)
    work, reader = session._image("a box", options, options.pop("timeout", None), options.pop("run_id", None))
    (made,) = world.drive(work, reader, policy)
    return made


def draw_stream(world: World, policy: ReplayPolicy | None = None, **options: Any) -> Iterator[Any]:
    work, reader = Session(transport=world)._image_stream("a box", options, None, None)
    return world.drive(work, reader, policy)


def write_stream(
    world: World, policy: ReplayPolicy | None = None, timeout: float | None = None, **sampling: Any
) -> Iterator[Any]:
    work, reader = Session(transport=world)._text_stream("Once", sampling, timeout, None)
    return world.drive(work, reader, policy)
