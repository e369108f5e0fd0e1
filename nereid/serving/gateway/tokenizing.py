"""/tokenize, /detokenize and /tokenizer_info in vLLM's form: a model's own tokenizer, for texts and for chats."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field

from nereid.serving.gateway import chats
from nereid.serving.gateway.chat_templates import DEFAULT
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.messages import Message
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.schemas import MOST_MESSAGES, ChatBody, TokenIds
from nereid.serving.gateway.sent import Sent


class TokenizeBody(ChatBody):
    """A text, or a chat with all that its template reads; one of `prompt` and `messages`."""

    prompt: str | None = None
    messages: list[Message] = Field(default_factory=list, max_length=MOST_MESSAGES)
    return_token_strs: bool = False


class DetokenizeBody(Sent):
    model: str = ""
    tokens: TokenIds


def tokenize_names(body: TokenizeBody) -> dict[str, str]:
    """The caller's names of `llm`'s inputs, for errors."""
    return {"text_input": "messages" if body.prompt is None else "prompt"}


async def tokenize(body: TokenizeBody, model: Offered) -> dict[str, Any]:
    """The body's tokens; raises ApiError, NereidError."""
    if (body.prompt is None) == (not body.messages):
        raise ApiError(400, "prompt: exactly one of prompt and messages must be given", param="prompt")
    if body.truncate_prompt_tokens is not None:
        sentence = "truncate_prompt_tokens: this field is not supported: all tokens are told"
        raise ApiError(400, sentence, param="truncate_prompt_tokens", code="unsupported_parameter")
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        tokens = await asyncio.to_thread(model.tokenizer.encode, body.prompt, add_special_tokens=special)
    else:
        chat = await chats.read_chat(body, model)
        tokens = await asyncio.to_thread(chat.tokens, model)
    tokenizer = model.tokenizer
    words = await asyncio.to_thread(tokenizer.words, tokens) if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": tokenizer.longest, "tokens": tokens, "token_strs": words}


async def detokenize(body: DetokenizeBody, model: Offered) -> dict[str, Any]:
    """The tokens' text; raises ApiError, NereidError."""
    return {"prompt": await asyncio.to_thread(model.tokenizer.decode, body.tokens)}


def tokenizer_info(model: Offered) -> dict[str, Any]:
    """What transformers' tokenizer_config.json says of a checkpoint, as far as export kept it: null where there is none."""
    named = {name: model.special_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    template = None if model.templates is None else model.templates.sources.get(DEFAULT)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.tokenizer.longest,
        **named,
        **model.special_tokens,
        "chat_template": template,
    }
