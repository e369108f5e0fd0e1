"""One model as the gateway offers it, and how a chat becomes a prompt; knows no HTTP and no files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from nereid.serving.gateway.call_forms import ToolFormat
from nereid.serving.gateway.chat_templates import Chat, ChatTemplates
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.model_tokenizer import ModelTokenizer
from nereid.serving.gateway.thoughts import Thinking

log = logging.getLogger("nereid.gateway")


@dataclass(frozen=True, slots=True)
class Offered:
    """One model of the API; `prefix` is what the SDK calls `name`.

    `fault`: why its chat templates cannot be used. `whole_templates`: whether they write all special tokens themselves, so that
    the tokenizer adds none; exports of before left out what it adds. `tool_format`: how its templates have it call tools, None:
    in no known form. `thinking`: the marks of its thoughts, None: they are not told apart; `spoken`: those of what follows them,
    `silent`: such as stand around an answer's text wherever it has some.
    `special_tokens`: those that have one of transformers' names, `eos_token` and others, by that name; `tokens`: the tokenizer's
    added tokens by text; `hidden` are those that an answer's text leaves out unless asked to keep them.
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
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
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
