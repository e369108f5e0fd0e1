"""Which models a repository offers through the gateway; reads files, knows no HTTP."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.diffusion.settings import Limits
from nereid.llm.engine import longest_sequence
from nereid.llm.settings import LlmLimits
from nereid.serving.errors import ServingError
from nereid.serving.gateway.call_forms import ToolFormat
from nereid.serving.gateway.chat_templates import DEFAULT, TOOL_USE, ChatTemplates
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.model_tokenizer import ModelTokenizer
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.thoughts import spoken_of, thinking_of
from nereid.serving.gateway.tool_formats import HARMONY, TOOL_FORMATS, format_of, shows_channels
from nereid.serving.models import ServedModels

log = logging.getLogger("nereid.gateway")

_LLM_FILE, _PIPELINE_FILE, _TEMPLATE_FILE = "llm.json", "pipeline.json", "chat_template.jinja"
_TOKENIZER_FILE = "tokenizer.json"
_MORE_TEMPLATES = "additional_chat_templates"
"""transformers' name of the folder of templates beside the default one."""
_LAYOUT_FILE, _PAGE_FILE = "layout.json", "page.json"
_STREAM, _ENSEMBLE = "text_to_image_stream", "text_to_image"


def offered_models(
    repository: Path,
    rules: Rules | None = None,
    served: Collection[str] | None = None,
    before: Mapping[str, Offered] | None = None,
    faults: dict[str, str] | None = None,
) -> dict[str, Offered]:
    """By id: language models and makers of layouts and pages are called as their Triton model, image pipelines as their ensemble,
    adapters by their names.

    `served`: the Triton models that are, where others are left out. `before`: what was offered before, where this is no first
    start: models may have gone since, and with them what was named after them, and of two of one name the one that had it keeps
    it. `faults` is given what is wrong with a model that cannot be read: what was offered of it before stays, and that of others
    is what there is now. Without it ServingError is raised that names the file; at a first start, for names that mean nobody, or
    two, too.
    """
    found: dict[str, Offered] = {}
    rules = rules or Rules()
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        if served is not None and folder.name not in served:
            continue  # it may not be whole yet
        try:
            made = _offered(folder, rules, repository)
        except (ServingError, ValueError, OSError) as error:
            if faults is None:
                raise
            faults[folder.name] = str(error)
            made = next((model for model in (before or {}).values() if model.is_model and _folder_of(model) == folder.name), None)
        if made is not None and (served is None or {made.holder, made.id} <= {*served}):
            found[made.id] = made
    if before is None:
        _check_names(rules, found)
    adapters = [made for model in found.values() for made in _adapters(model, repository, before or {}, faults or {})]
    known: dict[str, Offered] = {}
    for made in _holders_first([*found.values(), *adapters], before):
        known.setdefault(made.id, made)
    claims = [*found.values(), *_aliases(rules, known, must_exist=before is None), *adapters]
    named: dict[str, Offered] = {}
    for made in _holders_first(claims, before):
        if (other := named.setdefault(made.id, made)) is not made:
            sentence = f"{made.id!r} is {made.said}, and {other.said}; each must have a name of its own"
            if before is None:
                raise ServingError(sentence)
            log.warning("%s: %s is not offered", sentence, made.said)
    return {made.id: made for made in claims if named[made.id] is made}


def files_seen(repository: Path) -> int:
    """A number that is another one where models' files have changed, come or gone."""
    found = set()
    for path in (path for pattern in ("*", "*/*", "*/1/*") for path in repository.glob(pattern)):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((str(path), status.st_ctime_ns, status.st_size))
    return hash(frozenset(found))


def _offered(folder: Path, rules: Rules, repository: Path) -> Offered | None:
    """What a model's folder offers by itself; None: nothing. Raises ServingError, ValueError, OSError."""
    files = {file.name: file for file in (folder / "1").glob("*")} if (folder / "1").is_dir() else {}
    created = int(folder.stat().st_mtime)
    if _LLM_FILE in files:
        return _language_model(folder, _facts(files[_LLM_FILE]), files, rules, _config(repository, folder.name))
    if _PIPELINE_FILE in files and folder.name.endswith(_STREAM):
        prefix = _prefix(folder.name, _STREAM)
        lead = f"{prefix}_" if prefix else ""
        denoise = _config(repository, f"{lead}denoise")
        limits = Limits.from_parameters({key: value.string_value for key, value in denoise.parameters.items()})
        drawn = ImageModel.of(_facts(files[_PIPELINE_FILE]), limits)
        return Offered(f"{lead}{_ENSEMBLE}", "image", prefix, created, image=drawn)
    if _LAYOUT_FILE in files:
        return Offered(folder.name, "layout", _prefix(folder.name, "layout"), created)
    if _PAGE_FILE in files:
        return Offered(folder.name, "page", _prefix(folder.name, "page"), created)
    return None


def _config(repository: Path, name: str) -> Any:
    return ServedModels.read(repository, [name]).configs.get(name, ModelConfig())


def _folder_of(model: Offered) -> str:
    """Where a model was read; no adapter's and no alias'."""
    return model.id.removesuffix(_ENSEMBLE) + _STREAM if model.kind == "image" else model.id


def _holders_first(claims: Iterable[Offered], before: Mapping[str, Offered] | None) -> list[Offered]:
    """Those that had their names before in front of the others, which keep their order."""
    return sorted(claims, key=lambda made: not before or made.id not in before or before[made.id].said != made.said)


def _check_names(rules: Rules, found: Mapping[str, Offered]) -> None:
    for name in rules.tool_formats:
        if name not in ("", *found):
            known = ", ".join(item.id for item in found.values() if item.kind == "llm") or "none"
            raise ServingError(f"--openai-tools: {name!r} is not a language model of this repository; there are {known}")


def _adapters(model: Offered, repository: Path, before: Mapping[str, Offered], faults: Mapping[str, str]) -> list[Offered]:
    """Those of a language model, with its own templates and tokenizer; of one that cannot be read those that it had."""
    if model.kind != "llm":
        return []
    if model.id in faults:
        return [made for made in before.values() if made.parent == model.id and not made.root]
    names = _facts(repository / model.id / "1" / _LLM_FILE).get("adapters", [])
    return [replace(model, id=str(name), adapter=str(name), parent=model.id) for name in names]


def _aliases(rules: Rules, known: Mapping[str, Offered], *, must_exist: bool) -> list[Offered]:
    made = []
    for alias, name in rules.aliases.items():
        if name in known:
            made.append(replace(known[name], id=alias, root=name))
        elif must_exist:
            listed = ", ".join(known) or "none"
            raise ServingError(f"--alias: {name!r}, which {alias!r} is to stand for, is not served here; there are {listed}")
    return made


def _facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(
            f"{file} cannot be read ({getattr(error, 'strerror', None) or error}); export the model again"
        ) from None
    if not isinstance(facts, dict):
        raise ServingError(f"{file} is no JSON object; export the model again")
    return facts


def _language_model(folder: Path, facts: dict[str, Any], files: dict[str, Path], rules: Rules, config: ModelConfig) -> Offered:
    """A template that cannot be used takes chats from this model alone."""
    sources: dict[str, str] = {}
    templates, fault = None, ""
    tokens = facts.get("special_tokens", {name: facts.get(name, "") for name in ("bos_token", "eos_token")})
    more = sorted(files[_MORE_TEMPLATES].glob("*.jinja")) if _MORE_TEMPLATES in files else []
    try:
        if _TEMPLATE_FILE in files:
            sources[DEFAULT] = files[_TEMPLATE_FILE].read_text(encoding="utf-8")
        sources |= {file.stem: file.read_text(encoding="utf-8") for file in more}
        if sources:
            templates = ChatTemplates.of(sources, tokens)
    except (OSError, ValueError, TemplateError) as error:
        fault = str(error).partition("\n")[0]
        log.warning("the chat template of %s cannot be used (%s); its chats are refused", folder.name, fault)
    added = _added_tokens(files[_TOKENIZER_FILE]) if _TOKENIZER_FILE in files and sources else []
    tool_format = _tool_format(folder.name, sources, rules)
    in_channels = tool_format is HARMONY or any(shows_channels(text) for text in sources.values())
    tokens_by_text = {token["content"]: token["id"] for token in added}
    return Offered(
        id=folder.name,
        kind="llm",
        prefix=_prefix(folder.name, "llm"),
        created=int(folder.stat().st_mtime),
        templates=templates,
        fault=fault,
        whole_templates="special_tokens" in facts,
        embedding_width=width if isinstance(width := facts.get("embedding_width"), int) else 0,
        own_tokenizer=_tokenizer(folder / "1", facts, config),
        tool_format=tool_format,
        thinking=thinking_of(sources.values(), tokens_by_text, in_channels) if rules.reasoning else None,
        spoken=spoken_of(sources.values()) if rules.reasoning else None,
        special_tokens={name: text for name, text in tokens.items() if text},
        silent=tool_format.silent if tool_format is not None and rules.reasoning else (),
        tokens=tokens_by_text,
        hidden=frozenset(token["content"] for token in added if token.get("special")),
    )


def _tokenizer(folder: Path, facts: dict[str, Any], config: ModelConfig) -> ModelTokenizer | None:
    context = facts.get("context_length")
    if not isinstance(context, int):
        return None
    limits = LlmLimits.from_parameters({name: value.string_value for name, value in config.parameters.items()})
    return ModelTokenizer(folder, longest_sequence(context, limits.kv_tokens))


def _tool_format(model: str, sources: Mapping[str, str], rules: Rules) -> ToolFormat | None:
    """The operator's word for this model, or for all, else what its templates show: that for tools before the default one."""
    said = rules.tool_formats.get(model, rules.tool_formats.get("", "auto"))
    if said != "auto":
        return TOOL_FORMATS.get(said)
    order = [TOOL_USE, DEFAULT, *sources]
    return next((found for name in order if name in sources and (found := format_of(sources[name]))), None)


def _added_tokens(file: Path) -> list[dict[str, Any]]:
    """Those that stand beside the vocabulary, as marks of templates do."""
    found = _facts(file).get("added_tokens", [])
    return [token for token in found if isinstance(token, dict) and {"id", "content"} <= token.keys()]


def _prefix(name: str, suffix: str) -> str:
    return name.removesuffix(suffix).removesuffix("_")
