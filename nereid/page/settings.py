"""What one exported page model is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.flow.exported import exported_facts
from nereid.flow.parameters import read_parameters, require_at_most
from nereid.page.pictures import PictureLanguage

PAGE_FILE = "page.json"
"""Where export leaves the model's facts, in its version folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFrame:
    """What stands before and after a message in a model's prompt, as its chat template has it, and its tokenizer's marks."""

    before: str
    after: str
    marks: tuple[str, ...] = ()
    whole: bool = True
    """Whether the template writes all special tokens, so that the tokenizer adds none."""

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> ChatFrame:
        return cls(before=raw["before"], after=raw["after"], marks=tuple(raw["marks"]), whole=bool(raw["whole"]))

    def prompt(self, message: str) -> str:
        """No message ends its turn or begins another: marks like <|im_end|> are blanks in it."""
        for mark in self.marks:
            message = message.replace(mark, " ")
        return f"{self.before}{message.strip()}{self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFacts:
    """How the writer of sections, and the planner where there is one, are asked; how pictures are; their width / height."""

    chat: ChatFrame
    planner_chat: ChatFrame
    language: PictureLanguage
    picture_ratio: float

    @classmethod
    def read(cls, folder: Path) -> PageFacts:
        """Parse what export wrote; raises ValueError naming the file and what is wrong with it."""
        with exported_facts(folder / PAGE_FILE) as raw:
            chat, planner = (ChatFrame.read(raw[name]) for name in ("chat", "planner_chat"))
            language = PictureLanguage.read(raw["picture_prompts"])
            return cls(chat=chat, planner_chat=planner, language=language, picture_ratio=float(raw["picture_ratio"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLimits:
    """What one `page` instance takes on. Every field is a parameter of its config.pbtxt, spelled the same.

    `planner_model` and `layout_model` may be empty: then plans are made, and boxes placed, by rules, and answers say so.
    """

    max_pages: int = 8
    calls_per_page: int = 8
    default_sections: int = 8
    max_sections: int = 12
    max_pictures: int = 24
    section_tokens: int = 480
    section_temperature: float = 0.7
    plan_tokens: int = 320
    picture_steps: int = 0
    default_timeout_seconds: float = 120.0
    stage_seconds: float = 60.0
    stage_patience_seconds: float = 10.0
    planner_model: str = ""
    llm_model: str = "llm"
    layout_model: str = "layout"
    text_to_image_model: str = "text_to_image"
    denoise_model: str = "denoise"

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> PageLimits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is out of range."""
        limits = read_parameters(cls, parameters, may_be_zero=("max_pictures", "section_temperature", "picture_steps"))
        require_at_most(limits, "default_sections", "max_sections")
        return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class PageModel:
    """One exported model, ready to be served."""

    name: str
    facts: PageFacts
    limits: PageLimits
    fingerprint: str = ""
