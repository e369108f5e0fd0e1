"""Exports `page`: what the models of a repository need to be asked for a page's pieces, beside them in that repository."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from nereid.diffusion.settings import Pipeline
from nereid.llm.settings import LLM_FILE
from nereid.page.pictures import PictureLanguage
from nereid.page.settings import PAGE_FILE
from nereid.serving.gateway.chat_templates import DEFAULT, Chat, ChatTemplates
from nereid_export import configs
from nereid_export.chat_templates import TEMPLATE_FILE
from nereid_export.checkpoint import read_json, read_text
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Progress, check_name, file_digests, models_of, versions
from nereid_export.publish import adopt, destination, locked, publish, readable_failures, require_space, staging_folder

HOME = "page"
_MESSAGE = "WHAT-IS-ASKED-FOR"
_CALLED = {"llm_model": "llm", "layout_model": "layout", "text_to_image_model": "text_to_image", "denoise_model": "denoise"}
"""By parameter, what `page` calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageExportOptions:
    """One export of `page` into a repository that has `llm`, `layout` and `text_to_image`, all with the prefix `name`.

    Without `layout`, boxes are placed by rules.

    `planner` is the language model of the repository that plans, none where empty; `picture_prompts` a file with the language
    that pictures are asked for in.
    """

    out: Path
    planner: str = ""
    layout: bool = True
    picture_prompts: Path | None = None
    name: str = ""


def export_page(options: PageExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    check_name(options.name)
    options = replace(options, out=destination(options.out))
    progress.total(2)
    progress.step("reading the repository")
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        called = {parameter: configs.prefixed(model, options.name) for parameter, model in _CALLED.items()}
        called |= {"planner_model": options.planner} | ({} if options.layout else {"layout_model": ""})
        _require(options, [model for model in called.values() if model])
        facts = _facts(options, called)
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            require_space(options.out.parent, 2**20)
            staging.mkdir(exist_ok=True)
            progress.step("publishing the repository")
            manifest = _assemble(options, called, facts, staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


def _require(options: PageExportOptions, models: list[str]) -> None:
    for model in models:
        if not (options.out / model / "config.pbtxt").is_file():
            hint = ", or place boxes by rules (--no-layout)" if model == configs.prefixed("layout", options.name) else ""
            raise ExportError(f"{options.out} has no model {model}, which page calls; export it into this repository first{hint}")


def _facts(options: PageExportOptions, called: dict[str, str]) -> dict[str, Any]:
    out = options.out
    try:
        pipeline = Pipeline.read(out / called["denoise_model"] / "1")
    except ValueError as error:
        raise ExportError(str(error)) from None
    chat = _frame(out / called["llm_model"])
    return {
        "chat": chat,
        "planner_chat": _frame(out / options.planner) if options.planner else chat,
        "picture_prompts": _language(options.picture_prompts).as_json(),
        "picture_ratio": pipeline.default_width / pipeline.default_height,
    }


def _frame(model: Path) -> dict[str, Any]:
    """What the model's chat template puts around a message, and the marks that no message may have."""
    folder = model / "1"
    if not (folder / LLM_FILE).is_file():
        raise ExportError(f"{model} is no language model; --planner must be one that `nereid export llm` wrote")
    tokenizer = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
    marks = [token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")]
    if not (folder / TEMPLATE_FILE).is_file():
        return {"before": "", "after": "\n", "marks": marks, "whole": False}
    tokens = read_json(folder / LLM_FILE).get("special_tokens", {})
    try:
        templates = ChatTemplates.of({DEFAULT: read_text(folder / TEMPLATE_FILE)}, tokens)
        prompt = templates.rendered(Chat(messages=[{"role": "user", "content": _MESSAGE}]))
    except TemplateError as error:
        raise ExportError(f"{folder / TEMPLATE_FILE}: the chat template cannot be rendered ({error})") from None
    before, found, after = prompt.partition(_MESSAGE)
    if not found:
        raise ExportError(f"{folder / TEMPLATE_FILE}: the chat template leaves the user's message out")
    return {"before": before, "after": after, "marks": marks, "whole": True}


def _language(file: Path | None) -> PictureLanguage:
    if file is None:
        return PictureLanguage()
    try:
        return PictureLanguage.read(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ExportError(f"--picture-prompts: {file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ExportError(f"--picture-prompts: {file} is not allowed: {error}") from None


def _assemble(options: PageExportOptions, called: dict[str, str], facts: dict[str, Any], repository: Path) -> dict[str, Any]:
    """Lay the whole repository out, other models of `out` included; returns the manifest."""
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    config = configs.source_config(HOME)
    config.name = configs.prefixed(HOME, options.name)
    for key, value in called.items():
        config.parameters[key].string_value = value
    folder = configs.write_model(config, HOME, repository)
    text = json.dumps(facts, indent=1)
    (folder / "1" / PAGE_FILE).write_text(text, encoding="utf-8")
    arguments = {name: str(getattr(options, name) or "") for name in ("planner", "layout", "picture_prompts", "name")}
    manifest = {
        "version": MANIFEST_VERSION,
        "source": {"name": HOME, "sha256": hashlib.sha256(text.encode()).hexdigest(), "architecture": HOME},
        "arguments": arguments,
        "versions": versions(()),
        "engines": {},
        "models": [config.name],
        "files": file_digests(repository),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, {config.name} | models_of(options.out, config.name))
    return manifest
