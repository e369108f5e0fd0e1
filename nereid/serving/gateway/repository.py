"""Which models a repository offers through the gateway, and how a chat becomes a prompt; reads files, knows no HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.diffusion.settings import Limits
from nereid.llm.engine import longest_sequence
from nereid.llm.settings import LlmLimits
from nereid.serving.errors import ServingError
from nereid.serving.gateway.call_forms import ToolFormat
from nereid.serving.gateway.chat_templates import DEFAULT, TOOL_USE, Chat, ChatTemplates
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.model_tokenizer import ModelTokenizer
from nereid.serving.gateway.thoughts import Thinking, spoken_of, thinking_of
from nereid.serving.gateway.tool_formats import HARMONY, TOOL_FORMATS, format_of, shows_channels
from nereid.serving.models import ServedModels

log = logging.getLogger("nereid.gateway")

_LLM_FILE, _PIPELINE_FILE, _TEMPLATE_FILE = "llm.json", "pipeline.json", "chat_template.jinja"
_TOKENIZER_FILE = "tokenizer.json"
_MORE_TEMPLATES = "additional_chat_templates"
"""transformers' name of the folder of templates beside the default one."""
_LAYOUT_FILE, _PAGE_FILE = "layout.json", "page.json"
_STREAM, _ENSEMBLE = "text_to_image_stream", "text_to_image"


@dataclass(frozen=True, slots=True)
class Offered:
    """One model of the API; `prefix` is what the SDK calls `name`.

    `fault`: why its chat templates cannot be used. `whole_templates`: whether they write all special tokens themselves, so that
    the tokenizer adds none; exports of before left out what it adds. `tool_format`: how its templates have it call tools, None:
    in no known form. `thinking`: the marks of its thoughts, None: they are not told apart; `spoken`: those of what follows them.
    `tokens`: the tokenizer's added tokens by text; `hidden` are those that an answer's text leaves out unless asked to keep them.
    """

    id: str
    """What callers name: a model, one of its adapters, or an alias of either."""
    kind: str
    prefix: str
    created: int
    templates: ChatTemplates | None = None
    fault: str = ""
    whole_templates: bool = True
    tool_format: ToolFormat | None = None
    thinking: Thinking | None = None
    spoken: tuple[str, str] | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    own_tokenizer: ModelTokenizer | None = None
    image: ImageModel = field(default_factory=ImageModel)
    embedding_width: int = 0
    """Numbers of an embedding; 0: it gives none."""
    adapter: str = ""
    """The adapter that this is, or is an alias of."""
    parent: str = ""
    """Whose adapter this is."""
    root: str = ""
    """What an alias stands for."""

    @property
    def said(self) -> str:
        """What this is, in words."""
        return f"an alias of {self.root}" if self.root else f"an adapter of {self.parent}" if self.parent else "a model"

    @property
    def is_model(self) -> bool:
        """Whether this is neither an adapter nor an alias."""
        return not (self.adapter or self.root)

    def adapted(self, sampling: dict[str, Any]) -> dict[str, Any]:
        """Sampling parameters of `llm` with this adapter among them; raises ApiError where they name another one."""
        if not self.adapter:
            return sampling
        if sampling.get("lora_name") not in (None, self.adapter):
            sentence = f"{sampling['lora_name']!r} is not allowed with model {self.id!r}; it must be absent, or {self.adapter}"
            raise ApiError(400, f"lora_name: {sentence}", param="lora_name")
        return {**sampling, "lora_name": self.adapter}

    @property
    def counts_thoughts(self) -> bool:
        """Whether its answers tell how many of their tokens are thoughts."""
        return self.thinking is not None and self.thinking.tokens is not None

    @property
    def tokenizer(self) -> ModelTokenizer:
        """Raises ApiError for what is no language model, or one whose files say nothing of its context."""
        if self.own_tokenizer is None:
            raise ApiError(400, f"model: {self.id!r} has no tokenizer", param="model")
        return self.own_tokenizer

    @property
    def max_model_len(self) -> int | None:
        """Tokens that a prompt and its answer may have together."""
        return None if self.own_tokenizer is None else self.own_tokenizer.longest

    @property
    def holder(self) -> str:
        """The Triton model where requests wait and run."""
        name = "denoise" if self.kind == "image" else self.kind
        return f"{self.prefix}_{name}" if self.prefix else name

    def chat_templates(self) -> ChatTemplates:
        """Raises ApiError where there are none that can be used."""
        if self.fault:
            reason = f"the chat template of {self.id!r} cannot be used ({self.fault}); use /v1/completions"
            raise ApiError(400, f"model: {reason}", param="model")
        if self.templates is None:
            raise ApiError(400, f"model: {self.id!r} has no chat template; use /v1/completions", param="model")
        return self.templates

    def prompt(self, chat: Chat) -> str:
        """The conversation through the checkpoint's own chat template; raises ApiError."""
        templates = self.chat_templates()
        try:
            templates.chosen(chat)
        except KeyError:
            known = " or ".join(templates.templates)
            sent = "it is missing" if chat.template is None else f"{chat.template[:80]!r} is not allowed"
            sentence = f"chat_template: {sent}; it must be the name of one of the model's, {known}"
            raise ApiError(400, sentence, param="chat_template") from None
        try:
            return templates.rendered(chat)
        except TemplateError as error:
            reason = str(error)
        except Exception as error:  # a template is a program: over what it is given it may fail in any way
            log.info("the chat template of %r has failed", self.id, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        raise ApiError(400, f"messages: the model's chat template refuses them: {reason}", param="messages")


def offered_models(
    repository: Path,
    rules: Rules | None = None,
    served: Collection[str] | None = None,
    before: Mapping[str, Offered] | None = None,
) -> dict[str, Offered]:
    """By id: language models and makers of layouts and pages are called as their Triton model, image pipelines as their ensemble,
    adapters by their names.

    `served`: the Triton models that are, where others are left out. `before`: what was offered before, where this is no first
    start: models may have gone since, and with them what was named after them, and of two of one name the one that had it keeps
    it. Raises ServingError that names the file which cannot be read; at a first start, names that mean nobody, or two.
    """
    found: dict[str, Offered] = {}
    rules = rules or Rules()
    configs = ServedModels.read(repository, served).configs
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        if served is not None and folder.name not in served:
            continue  # it may not be whole yet
        files = {file.name: file for file in (folder / "1").glob("*")} if (folder / "1").is_dir() else {}
        if _LLM_FILE in files:
            facts = _facts(files[_LLM_FILE])
            made = _language_model(folder, facts, files, rules, configs.get(folder.name, ModelConfig()))
        elif _PIPELINE_FILE in files and folder.name.endswith(_STREAM):
            prefix = _prefix(folder.name, _STREAM)
            name = f"{prefix}_{_ENSEMBLE}" if prefix else _ENSEMBLE
            denoise = configs.get(f"{prefix}_denoise" if prefix else "denoise", ModelConfig())
            limits = Limits.from_parameters({key: value.string_value for key, value in denoise.parameters.items()})
            drawn = ImageModel.of(_facts(files[_PIPELINE_FILE]), limits)
            made = Offered(name, "image", prefix, int(folder.stat().st_mtime), image=drawn)
        elif _LAYOUT_FILE in files:
            made = Offered(folder.name, "layout", _prefix(folder.name, "layout"), int(folder.stat().st_mtime))
        elif _PAGE_FILE in files:
            made = Offered(folder.name, "page", _prefix(folder.name, "page"), int(folder.stat().st_mtime))
        else:
            continue
        if served is None or {made.holder, made.id} <= {*served}:
            found[made.id] = made
    if before is None:
        _check_names(rules, found)
    adapters = [made for model in found.values() for made in _adapters(model, repository)]
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


def _holders_first(claims: Iterable[Offered], before: Mapping[str, Offered] | None) -> list[Offered]:
    """Those that had their names before in front of the others, which keep their order."""
    return sorted(claims, key=lambda made: not before or made.id not in before or before[made.id].said != made.said)


def _check_names(rules: Rules, found: Mapping[str, Offered]) -> None:
    for name in rules.tool_formats:
        if name not in ("", *found):
            known = ", ".join(item.id for item in found.values() if item.kind == "llm") or "none"
            raise ServingError(f"--openai-tools: {name!r} is not a language model of this repository; there are {known}")


def _adapters(model: Offered, repository: Path) -> list[Offered]:
    """Those of a language model, with its own templates and tokenizer."""
    if model.kind != "llm":
        return []
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
        raise ServingError(f"{file} cannot be read ({error}); export the model again") from None
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
