"""Which models a repository offers through the gateway, and how a chat becomes a prompt; reads files, knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from nereid.serving.errors import ServingError
from nereid.serving.gateway.chat_templates import chat_template, rendered
from nereid.serving.gateway.errors import ApiError

_LLM_FILE, _PIPELINE_FILE, _TEMPLATE_FILE = "llm.json", "pipeline.json", "chat_template.jinja"
_STREAM, _ENSEMBLE = "text_to_image_stream", "text_to_image"


@dataclass(frozen=True, slots=True)
class Offered:
    """One model of the API; `prefix` is what the SDK calls `name`."""

    id: str
    kind: str
    prefix: str
    created: int
    template: Template | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def holder(self) -> str:
        """The Triton model where requests wait and run."""
        name = "denoise" if self.kind == "image" else "llm"
        return f"{self.prefix}_{name}" if self.prefix else name

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation through the checkpoint's own chat template, ready for the assistant's turn."""
        if self.template is None:
            raise ApiError(400, f"model: {self.id!r} has no chat template; use /v1/completions", param="model")
        try:
            return rendered(self.template, messages, self.tokens)
        except TemplateError as error:
            raise ApiError(400, f"messages: the model's chat template refuses them: {error}", param="messages") from None


def offered_models(repository: Path) -> dict[str, Offered]:
    """By id: language models are called as their Triton model, image pipelines as their ensemble.

    Raises ServingError that names the file which cannot be read.
    """
    found = {}
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        files = {file.name: file for file in (folder / "1").glob("*")} if (folder / "1").is_dir() else {}
        if _LLM_FILE in files:
            facts = _facts(files[_LLM_FILE])
            made = Offered(
                folder.name,
                "llm",
                _prefix(folder.name, "llm"),
                int(folder.stat().st_mtime),
                _template(files[_TEMPLATE_FILE]) if _TEMPLATE_FILE in files else None,
                {name: facts.get(name, "") for name in ("bos_token", "eos_token")},
            )
        elif _PIPELINE_FILE in files and folder.name.endswith(_STREAM):
            prefix = _prefix(folder.name, _STREAM)
            name = f"{prefix}_{_ENSEMBLE}" if prefix else _ENSEMBLE
            made = Offered(name, "image", prefix, int(folder.stat().st_mtime))
        else:
            continue
        found[made.id] = made
    return found


def _facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(f"{file} cannot be read ({error}); export the model again") from None
    if not isinstance(facts, dict):
        raise ServingError(f"{file} is no JSON object; export the model again")
    return facts


def _template(file: Path) -> Template:
    try:
        return chat_template(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TemplateError) as error:
        raise ServingError(f"{file} is no chat template ({str(error).partition(chr(10))[0]}); export the model again") from None


def _prefix(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).removesuffix("_")
