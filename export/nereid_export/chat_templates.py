"""A checkpoint's chat templates and the special tokens they name: found, tried, and written beside the model."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import TemplateError

from nereid.serving.gateway.chat_templates import DEFAULT, ChatTemplates, fault_of
from nereid_export.checkpoint import read_json, read_text
from nereid_export.errors import ExportError

TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
"""transformers' names of the default template's file, and of the folder of those by other names."""
_SETTINGS = "tokenizer_config.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def templates_of(folder: Path) -> dict[str, str]:
    """The checkpoint's chat templates by name, as transformers finds them: files come before settings.

    Raises ExportError that names the file where one cannot be rendered.
    """
    found, where = _found(folder)
    for name in found:
        if not _NAME.fullmatch(name):
            raise ExportError(f"{where}: the chat template's name {name!r} is not allowed; it must be of A-Z a-z 0-9 _ . -")
    try:
        fault = fault_of(ChatTemplates.of(found, special_tokens_of(folder)))
    except TemplateError as error:
        fault = str(error)
    if fault is not None:
        raise ExportError(f"{where}: the chat template cannot be rendered ({fault}); mend it, or remove it")
    return found


def _found(folder: Path) -> tuple[dict[str, str], Path]:
    """The templates, and the file they are from."""
    file, more = folder / TEMPLATE_FILE, sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    if file.is_file() or more:
        found = {DEFAULT: read_text(file)} if file.is_file() else {}
        return {**found, **{other.stem: read_text(other) for other in more}}, file if file.is_file() else more[0]
    settings = folder / _SETTINGS
    written = read_json(settings).get("chat_template") if settings.is_file() else None
    if isinstance(written, str):
        return {DEFAULT: written}, settings
    if not isinstance(written, list):
        return {}, settings
    pairs = [(item.get("name"), item.get("template")) for item in written if isinstance(item, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}, settings


def special_tokens_of(folder: Path) -> dict[str, str]:
    """What templates call `bos_token`, `eos_token` and the like, as far as the checkpoint has them."""
    made: dict[str, str] = {}
    for name in ("special_tokens_map.json", _SETTINGS):
        known = read_json(folder / name) if (folder / name).is_file() else {}
        for token in _SPECIAL:
            value = known.get(token)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                made[token] = text
    return made


def write_chat_templates(checkpoint: Path, folder: Path) -> None:
    """Beside the model, where the gateway looks for them."""
    for name, text in templates_of(checkpoint).items():
        file = folder / TEMPLATE_FILE if name == DEFAULT else folder / MORE_TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
