"""Makes one page: stages as a graph, each piece begun as soon as what it needs is there; knows the models only as calls.

    plan -> for each section: writing -> its layout, and its pictures beside it -> the page

A piece that fails is replaced by one that rules make, and the answer says so. At the goal (`deadline_seconds`) so is everything
that is not done; at the timeout the page is given up. One thread decides, the calls wait in others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from nereid.flow.call_threads import CallThreads
from nereid.flow.errors import CancelledError, DeadlineError, EngineError, InvalidRequestError, RequestError
from nereid.flow.noise import derived_seed
from nereid.layout.flow import flow_layout
from nereid.page.content import Content, read_content
from nereid.page.draft import BY_RULES, Draft, DraftSection, Slot, done_of, section_by_rules
from nereid.page.pictures import png
from nereid.page.pieces import Done, Piece, Pieces
from nereid.page.plan import Plan, plan_by_rules, read_plan, style_for
from nereid.page.requests import PageRequest
from nereid.page.room import make_room
from nereid.page.settings import PageModel
from nereid.page.stages import Laid, Stage, Stages
from nereid.page.theme import theme_of

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
"""Between two looks whether the caller has left."""
_RESERVE_SECONDS, _RESERVE_SHARE = 0.2, 0.1
"""Of the goal, what putting the page together takes: so much, or this share where that is less."""
_LAYOUT_SEEDS, _PICTURE_SEEDS = 1_000, 10_000
"""Where the seeds of layouts and pictures begin among those derived from the page's."""


class Observer(Protocol):
    """Told what the metrics need."""

    def call_ended(self, stage: Stage, seconds: float) -> None: ...

    def degraded(self, stage: Stage) -> None: ...

    def first_section(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswer:
    """The page so far, or (`done`) the page; `facts` are what is said of it."""

    html: str
    facts: Mapping[str, Any]
    done: bool


@dataclass(slots=True, eq=False, kw_only=True)
class PageRun:
    """One page being made by the thread that calls `run`."""

    request: PageRequest
    model: PageModel
    stages: Stages
    threads: CallThreads
    observer: Observer
    _draft: Draft = field(init=False)
    _pieces: Pieces = field(init=False)
    _spans: dict[Stage, tuple[float, float]] = field(default_factory=dict)
    _counted: int = 0
    _pictures: int = 0
    _shown: float | None = None
    _seen: bool = False
    """Whether a stream has had the first section."""

    def __post_init__(self) -> None:
        request, limits = self.request, self.model.limits
        goal = request.deadline_seconds
        self._draft = Draft(request.canvas, theme_of(request.seed))
        self._pieces = Pieces(
            stages=self.stages,
            threads=self.threads,
            at_once=limits.calls_per_page,
            priority=request.priority,
            patience=limits.stage_patience_seconds,
            longest=limits.stage_seconds,
            due=float("inf") if goal is None else goal - min(_RESERVE_SECONDS, _RESERVE_SHARE * goal),
            end=request.timeout_seconds,
        )

    def run(self, send: Callable[[PageAnswer], None], is_cancelled: Callable[[], bool]) -> PageAnswer:
        """Make the page; `send` has it on its way, where that was asked for. Raises CancelledError, DeadlineError, and what
        `is_cancelled` does."""
        pieces = self._pieces
        try:
            self._begin()
            while pieces.left:
                pieces.send()
                self.require_wanted(is_cancelled)
                now = pieces.now()
                if now >= pieces.due:
                    self._do_without()
                elif (done := pieces.wait(min(_LOOK_SECONDS, pieces.due - now))) is not None:
                    self._take(done)
                    self._tell(done.piece, send)
            html = self._draft.html()
            return PageAnswer(html=html, facts=self._draft.answered(self.request.seed, self._seconds()), done=True)
        finally:
            pieces.stop()

    def require_wanted(self, is_cancelled: Callable[[], bool]) -> None:
        """Raise what `run` does where nobody waits for the page any more."""
        if is_cancelled():
            raise CancelledError("the request was cancelled")
        if self._pieces.now() >= self._pieces.end:
            raise DeadlineError(f"the page was not done within timeout_seconds ({self._pieces.end:g})")

    def _seconds(self) -> dict[str, float]:
        """What each stage took, from its first call's begin to its last one's end, and when the first section could be seen."""
        spans = {str(stage): round(end - begin, 3) for stage, (begin, end) in self._spans.items()}
        now = self._pieces.now()
        return {**spans, "first_section": round(now if self._shown is None else self._shown, 3), "page": round(now, 3)}

    def _do_without(self) -> None:
        """The goal is reached: what is not there is made by rules."""
        for done in self._pieces.arrived():
            self._take(done)
        late = DeadlineError(f"it was not done within deadline_seconds ({self.request.deadline_seconds:g})")
        while dropped := self._pieces.drop():  # what replaces a piece may ask for others
            for piece in dropped:
                self._replace(piece, late)

    # --- what was done ---

    def _take(self, done: Done) -> None:
        stage, (begin, end) = done.piece.stage, done.seconds
        first, last = self._spans.get(stage, done.seconds)
        self._spans[stage] = (min(first, begin), max(last, end))
        self.observer.call_ended(stage, end - begin)
        if isinstance(done.error, CancelledError):
            done = replace(done, error=EngineError(f"it was cancelled by another: {done.error}"))
        try:
            if done.error is not None:
                raise done.error
            self._use(done.piece, done.result)
        except RequestError as error:
            self._replace(done.piece, error)
        except Exception as error:
            log.exception("%s of section %d has failed", stage, done.piece.section)
            self._replace(done.piece, EngineError(f"internal error ({type(error).__name__}); see the server's log"))

    def _begin(self) -> None:
        brief = self.request.brief
        if not self.stages.lays_out:
            self._degrade(Stage.LAYOUTS, None, "the boxes are placed by rules, because no layout model is served (layout_model)")
        if self.stages.plans:
            self._pieces.add(Piece(Stage.PLAN), partial(self.stages.plan, brief), self.request.seed)
        else:
            self._degrade(Stage.PLAN, None, "the plan is made by rules, because no planner is served (planner_model)")
            self._planned(plan_by_rules(brief, self.request.sections), BY_RULES)

    def _use(self, piece: Piece, result: Any) -> None:
        section = self._draft.sections[piece.section - 1] if piece.section else None
        match piece.stage:
            case Stage.PLAN:
                self._planned(read_plan(result, self.request.brief, self.request.sections), self.model.limits.planner_model)
            case Stage.SECTIONS:
                assert section is not None
                self._written(section, self._content(section, result), self.model.limits.llm_model)
            case Stage.LAYOUTS:
                assert section is not None
                self._laid(section, result)
            case Stage.PICTURES:
                assert section is not None
                section.slots[piece.slot].png = png(result)

    def _replace(self, piece: Piece, error: RequestError) -> None:
        """What rules make in the place of a piece that was not made."""
        if piece.stage is Stage.PLAN:
            self._degrade(Stage.PLAN, None, f"the plan is made by rules, because the planner has failed: {error}")
            self._planned(plan_by_rules(self.request.brief, self.request.sections), BY_RULES)
            return
        section, plan = self._draft.sections[piece.section - 1], self._draft.plan
        assert plan is not None
        match piece.stage:
            case Stage.SECTIONS:
                self._degrade(
                    piece.stage, piece.section, f"the section has a heading only, because its writer has failed: {error}"
                )
                self._written(section, self._content(section, section_by_rules(section.planned, plan.topic)), BY_RULES)
            case Stage.LAYOUTS:
                said = f"the boxes are placed by rules, because the layout has failed: {error}"
                assert section.content is not None
                self._laid(section, Laid(tuple(flow_layout(section.content.section)), BY_RULES, (said,)))
            case Stage.PICTURES:
                part = section.slots[piece.slot].part.id
                self._degrade(piece.stage, piece.section, f"{part} is a placeholder, because its picture has failed: {error}")

    def _planned(self, plan: Plan, by: str) -> None:
        draft, width = self._draft, self.request.canvas
        draft.plan, draft.planned_by = plan, by
        for number, planned in enumerate(plan.sections, 1):
            canvas = replace(width, style=style_for(planned.kind))
            section = DraftSection(number, planned, canvas)
            draft.sections.append(section)
            seed = derived_seed(self.request.seed, number)
            self._pieces.add(Piece(Stage.SECTIONS, number), partial(self.stages.write, planned.brief), seed)

    def _content(self, section: DraftSection, html: str) -> Content:
        ratio, canvas = self.model.facts.picture_ratio, section.canvas
        try:
            return read_content(html, section.number, canvas, self._draft.theme, ratio)
        except InvalidRequestError as error:
            raise EngineError(f"what was written cannot be read: {error}") from None

    def _written(self, section: DraftSection, content: Content, by: str) -> None:
        section.content, section.written_by = content, by
        section.slots = [Slot(part) for part in content.pictures]
        if content.left_out:
            self._degrade(Stage.SECTIONS, section.number, f"{content.left_out} of its elements are left out; a layout takes 32")
        if self.stages.lays_out:
            seed = derived_seed(self.request.seed, _LAYOUT_SEEDS + section.number)
            piece = Piece(Stage.LAYOUTS, section.number)
            self._pieces.add(piece, partial(self.stages.lay_out, content.elements, section.canvas), seed)
        else:
            self._laid(section, Laid(tuple(flow_layout(content.section)), BY_RULES))
        self._ask_for_pictures()

    def _ask_for_pictures(self) -> None:
        """In the page's order, as far as it is known which there are: so the same page has the same pictures."""
        plan = self._draft.plan
        assert plan is not None
        for section in self._draft.sections:
            if section.content is None:
                return
            for place, slot in enumerate(section.slots):
                if slot.prompt or self._pictures >= self.request.pictures:
                    continue
                slot.prompt = self.model.facts.language.prompt(slot.part.alt, plan.topic, self._pictures)
                seed = derived_seed(self.request.seed, _PICTURE_SEEDS + self._pictures)
                self._pictures += 1
                self._pieces.add(Piece(Stage.PICTURES, section.number, place), partial(self.stages.draw, slot.prompt), seed)

    def _laid(self, section: DraftSection, laid: Laid) -> None:
        assert section.content is not None
        for said in laid.degraded:
            self._degrade(Stage.LAYOUTS, section.number, said)
        boxes, section.grown = make_room(section.content.section, section.content.parts, laid.boxes)
        section.boxes, section.drawn_by = tuple(boxes), laid.drawn_by
        if self._shown is None and section.number == 1:
            self._shown = self._pieces.now()
            self.observer.first_section(self._shown)

    def _degrade(self, stage: Stage, section: int | None, said: str) -> None:
        self._draft.degrade(stage, section, said)
        self.observer.degraded(stage)

    def _tell(self, piece: Piece, send: Callable[[PageAnswer], None]) -> None:
        """The page so far, after every `stream_interval` pieces, and where its first section can be seen."""
        interval = self.request.stream_interval
        if interval is None or not self._pieces.left:
            return
        self._counted += 1
        news = self._shown is not None and not self._seen
        if self._counted % interval and not news:
            return
        self._seen = self._shown is not None
        done = {"stage": str(piece.stage), "section": piece.section or None}
        facts = {
            "step": self._counted,
            "done": done,
            "progress": done_of(self._draft.sections),
            "visible": [section.name for section in self._draft.placed],
            "seconds": round(self._pieces.now(), 3),
        }
        send(PageAnswer(html=self._draft.html(), facts=facts, done=False))
