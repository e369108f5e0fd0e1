"""What the answers of a batch have used, together, in the form that OpenAI's batches tell it; knows no file and no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class BatchUsage:
    """Tokens of bodies of all endpoints that tell some, and the models that they name."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    models: set[str] = field(default_factory=set)
    _told: bool = False

    def add(self, body: Any) -> None:
        """Of one answer: chats and completions have other names than responses, embeddings have no output, pictures none."""
        if not isinstance(body, Mapping):
            return
        if isinstance(body.get("model"), str):
            self.models.add(body["model"])
        usage = body.get("usage")
        if not isinstance(usage, Mapping):
            return
        self._told = True
        for ours, theirs in (("input", "prompt"), ("output", "completion")):
            name = ours if f"{ours}_tokens" in usage else theirs
            setattr(self, ours, getattr(self, ours) + (usage.get(f"{name}_tokens") or 0))
            details = usage.get(f"{name}_tokens_details") or {}
            self.cached += details.get("cached_tokens") or 0
            self.reasoning += details.get("reasoning_tokens") or 0

    @property
    def model(self) -> str | None:
        """None where they are several, or none is named."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    def told(self) -> dict[str, Any] | None:
        """OpenAI's object; None where no answer tells its tokens."""
        if not self._told:
            return None
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }
