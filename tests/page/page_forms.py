"""Pages that tests make by hand, and stages whose answers are known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from nereid.flow.call_threads import CallThreads
from nereid.layout.canvas import Canvas
from nereid.layout.element_list import read_elements
from nereid.layout.flow import flow_layout
from nereid.page.content import Content, read_content
from nereid.page.document import PlacedSection
from nereid.page.pictures import PictureLanguage, png
from nereid.page.pieces import Pieces
from nereid.page.plan import style_for
from nereid.page.requests import PageRequest
from nereid.page.room import make_room
from nereid.page.run import PageAnswer, PageRun
from nereid.page.settings import ChatFrame, PageFacts, PageLimits, PageModel
from nereid.page.stages import Laid, Stage, Terms
from nereid.page.theme import THEMES, Theme

DESKTOP = Canvas.of(1280)
THEME: Theme = THEMES[0]
GALLERY = (
    '<section class="gallery">\n  <h2>A look inside</h2>\n  <figure>\n    <img src="image-1.jpg" alt="rye bread">\n'
    "    <figcaption>Rye bread</figcaption>\n  </figure>\n  <figure>\n"
    '    <img src="image-2.jpg" alt="fruit tarts">\n    <figcaption>Fruit tarts</figcaption>\n  </figure>\n</section>'
)
FEATURES = (
    '<section class="features">\n  <h2>Why guests choose us</h2>\n  <p>Your fresh bakery, open from six in the morning</p>\n'
    '  <div class="feature">\n    <h3>Sourdough</h3>\n    <p>Baked before you wake, sold until noon, gone by two.</p>\n  </div>\n'
    '  <div class="feature">\n    <h3>Croissants</h3>\n    <ul>\n      <li>Butter</li>\n      <li>Almonds and honey</li>\n'
    '    </ul>\n  </div>\n  <a class="button" href="#">Order now</a>\n</section>'
)
CONTACT = (
    '<section class="contact">\n  <h2>Write to us</h2>\n  <form>\n    <label>Email <input name="email"></label>\n'
    '    <button class="button">Send</button>\n  </form>\n  <nav>\n    <a class="link" href="#">Prices</a>\n  </nav>\n</section>'
)
PLAN = "hero: hero section for a bakery\ngallery: gallery section for a bakery, two pictures\nfooter: footer for a bakery\n"
FACTS = PageFacts(
    chat=ChatFrame(before="<|u|>", after="<|a|>", marks=("<|u|>", "<|a|>")),
    planner_chat=ChatFrame(before="<|u|>", after="<|a|>", marks=("<|u|>", "<|a|>")),
    language=PictureLanguage(),
    picture_ratio=1.0,
)


def content(html: str, number: int = 1, canvas: Canvas = DESKTOP, style: str = "cards") -> Content:
    own = Canvas.of(canvas.width, str(canvas.density), canvas.columns, style)
    return read_content(html, number, own, THEME, 1.0)


def placed(html: str, number: int = 1, kind: str = "features", canvas: Canvas = DESKTOP, **more: Any) -> PlacedSection:
    """A section laid out by rules, as a page has it."""
    made = content(html, number, canvas, str(style_for(kind)))
    boxes, _ = make_room(made.section, made.parts, flow_layout(made.section))
    return PlacedSection(content=made, boxes=tuple(boxes), kind=kind, brief=f"{kind} for a bakery", **more)


def picture(color: int = 200) -> bytes:
    return png(np.full((16, 16, 3), color, np.uint8))


@dataclass
class ScriptedStages:
    """Answers that are known; an exception is raised, a function called with what was asked for. `calls` has all of them."""

    planned: Any = PLAN
    written: Any = None
    laid: Any = None
    drawn: Any = None
    plans: bool = True
    lays_out: bool = True
    calls: list[tuple[Stage, Any, Terms]] = field(default_factory=list)
    cancelled: list[tuple[Stage, str]] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=threading.Condition)

    def _answer(self, stage: Stage, asked: Any, terms: Terms, script: Any, usual: Callable[[], Any]) -> Any:
        with self.lock:
            self.calls.append((stage, asked, terms))
        made = script(asked) if callable(script) else script
        if isinstance(made, Exception):
            raise made
        return usual() if made is None else made

    def plan(self, brief: str, terms: Terms) -> str:
        return str(self._answer(Stage.PLAN, brief, terms, self.planned, str))

    def write(self, brief: str, terms: Terms) -> str:
        html = GALLERY if "gallery" in brief else CONTACT if "footer" in brief else FEATURES
        return str(self._answer(Stage.SECTIONS, brief, terms, self.written, lambda: html))

    def lay_out(self, elements: Sequence[Mapping[str, Any]], canvas: Canvas, terms: Terms) -> Laid:
        def by_rules() -> Laid:
            return Laid(tuple(flow_layout(read_elements(list(elements), canvas))), "transformer")

        made = self._answer(Stage.LAYOUTS, elements, terms, self.laid, by_rules)
        assert isinstance(made, Laid)
        return made

    def draw(self, prompt: str, terms: Terms) -> np.ndarray:
        made = self._answer(Stage.PICTURES, prompt, terms, self.drawn, lambda: np.full((8, 8, 3), terms.seed % 256, np.uint8))
        return np.asarray(made)

    def cancel(self, stage: Stage, run_id: str) -> None:
        with self.lock:
            self.cancelled.append((stage, run_id))
            self.lock.notify_all()

    def stay_out(self, calls: int) -> None:
        """Return once so many calls were cancelled."""
        with self.lock:
            self.lock.wait_for(lambda: len(self.cancelled) >= calls, 20)

    def asked(self, stage: Stage) -> list[Any]:
        with self.lock:
            return [asked for own, asked, _ in self.calls if own is stage]


@dataclass
class Noted:
    """What a page has told its observer."""

    ended: list[Stage] = field(default_factory=list)
    worse: list[Stage] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def call_ended(self, stage: Stage, seconds: float) -> None:
        self.ended.append(stage)

    def degraded(self, stage: Stage) -> None:
        self.worse.append(stage)

    def first_section(self, seconds: float) -> None:
        self.first.append(seconds)


def standing_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since a page was asked for, which pass when a test says so."""
    seconds = [0.0]
    monkeypatch.setattr(Pieces, "now", lambda _: seconds[0])
    return seconds


def request(**changes: Any) -> PageRequest:
    usual: dict[str, Any] = {
        "brief": "landing page for a bakery",
        "canvas": DESKTOP,
        "sections": 8,
        "pictures": 24,
        "seed": 7,
        "stream_interval": None,
        "timeout_seconds": 20.0,
        "deadline_seconds": None,
        "priority": 5,
        "run_id": "r",
    }
    return PageRequest(**{**usual, **changes})


def model(**limits: Any) -> PageModel:
    return PageModel(name="page", facts=FACTS, limits=PageLimits(planner_model="planner", **limits))


@dataclass
class Made:
    """A page and all that was seen of its making."""

    answer: PageAnswer
    shown: list[PageAnswer]
    stages: ScriptedStages
    noted: Noted

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.answer.facts

    @property
    def said(self) -> list[str]:
        return [one["said"] for one in self.facts["degraded"]]


def make(
    stages: ScriptedStages | None = None,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    limits: Mapping[str, Any] | None = None,
    noted: Noted | None = None,
    **changes: Any,
) -> Made:
    """A page by these stages."""
    stages, noted, shown = stages or ScriptedStages(), noted or Noted(), []  # type: ignore[var-annotated]
    threads = CallThreads("page-call")
    run = PageRun(request=request(**changes), model=model(**(limits or {})), stages=stages, threads=threads, observer=noted)
    try:
        answer = run.run(shown.append, is_cancelled)
    finally:
        threads.join(20)
    return Made(answer, shown, stages, noted)


@dataclass(slots=True)
class Together:
    """How many are inside at the same time, at `most`."""

    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1
