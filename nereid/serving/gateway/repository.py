"""Which models a repository offers through the gateway, and how a chat becomes a prompt; reads files, knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nereid.serving.gateway.errors import ApiError

_LLM_FILE, _PIPELINE_FILE = "llm.json", "pipeline.json"
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

    def prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation through the checkpoint's own chat template, ready for the assistant's turn."""
        if self.template is None:
            raise ApiError(400, f"model: {self.id!r} has no chat template; use /v1/completions", param="model")
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **self.tokens)
        except TemplateError as error:
            raise ApiError(400, f"messages: the model's chat template refuses them: {error}", param="messages") from None


def offered_models(repository: Path) -> dict[str, Offered]:
    """By id: language models are called as their Triton model, image pipelines as their ensemble."""
    found = {}
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        files = {file.name: file for file in (folder / "1").glob("*")} if (folder / "1").is_dir() else {}
        if _LLM_FILE in files:
            facts = json.loads(files[_LLM_FILE].read_text(encoding="utf-8"))
            made = Offered(
                folder.name,
                "llm",
                _prefix(folder.name, "llm"),
                int(folder.stat().st_mtime),
                _template(files.get("chat_template.jinja")),
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


def _prefix(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).removesuffix("_")


def _template(file: Path | None) -> Template | None:
    """Checkpoints bring their templates along: they run in a sandbox."""
    if file is None:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(file.read_text(encoding="utf-8"))
