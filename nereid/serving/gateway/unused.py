"""The table of fields of other APIs (OpenAI's, vLLM's, AUTOMATIC1111's) that nothing here reads, and which of their values change
nothing.

A caller may send such a value: the answer is the one it asks for. Any other value is refused by name, for the answer would be
another. Fields that are honoured are written elsewhere (nereid_protocol.sampling, nereid_protocol.fields, the schemas). Names are
those of OpenAI's API reference, of vLLM's protocol of its OpenAI-compatible server, of llama.cpp's server, and of the bodies of
AUTOMATIC1111's /sdapi/v1 with what front ends send beside.
"""

from __future__ import annotations

from typing import Any

from nereid.serving.gateway.unused_field import (
    CALL,
    CHAT,
    COMPLETIONS,
    EDITS,
    EMBEDDINGS,
    IMAGES,
    MESSAGE,
    PART,
    RESPONSES,
    TOOL,
    VARIATIONS,
    WHERE,
    WHO,
    UnusedField,
    rows,
)
from nereid.serving.gateway.unused_webui import WEBUI_FIELDS

_TEXTS, _PICTURES = (CHAT, COMPLETIONS), (IMAGES, EDITS, VARIATIONS)
_ELSEWHERE = "What another provider has told beside an answer of its own."
_CACHE = "About a provider's cache; the prefix cache here needs no hint."

UNUSED_FIELDS: tuple[UnusedField, ...] = (
    *rows(
        (*_TEXTS, *_PICTURES),
        ("user", None, WHO),
        ("metadata", None, WHO),
        ("safety_identifier", None, WHO),
        ("request_id", None, WHO),
        ("store", None, "Nothing is stored for the provider's pages."),
        ("service_tier", ("auto", "default"), WHERE),
    ),
    *rows(
        _TEXTS,
        ("prompt_cache_key", None, _CACHE),
        ("prompt_cache_retention", None, _CACHE),
        ("prompt_cache_options", None, _CACHE),
        ("cache_prompt", None, "llama.cpp's, about its cache; the prefix cache here changes no answer."),
        ("guided_decoding_backend", None, "There is one."),
        ("data_parallel_rank", (0,), WHERE),
        ("kv_transfer_params", ({},), WHERE),
        ("vllm_xargs", ({},), "Arguments of vLLM's plugins."),
        ("use_beam_search", (False,), "Beam search."),
        ("length_penalty", (1.0,), "Of beam search."),
        ("early_stopping", (False,), "Of beam search."),
        ("logits_processors", ([],), "Code of the caller's."),
        ("spaces_between_special_tokens", (True,), "Of the text of special tokens."),
        ("detokenize", (True,), "Whether tokens become text."),
        ("thinking_token_budget", (-1,), "Tokens of reasoning."),
        ("repetition_detection", (), "Ends answers that repeat themselves."),
        ("session_id", None, WHO),
        ("stream_interval", None, "Tokens of a chunk; a stream has them as they come."),
        ("watermarking", (False,), "Answers that can be known for a model's."),
        ("ec_transfer_params", ({},), WHERE),
        ("routed_experts_prompt_start", (0,), "Of which experts have computed a token."),
        ("return_token_offsets", (False,), "Of prompts that are only shown."),
        ("return_mm_kwargs", (True,), "Of prompts that are only shown."),
    ),
    *rows(
        (CHAT,),
        ("best_of", (1,), "Answers to choose from."),
        ("echo", (False,), "The last message before the answer."),
        ("modalities", (["text"],), "What the answer is made of."),
        ("audio", (), "How an answer sounds."),
        ("prediction", None, "A guess at the answer, to be sooner done; the answer is the same without it."),
        ("verbosity", ("medium",), "How long the answer is to be."),
        ("web_search_options", (), "Looks into the web."),
        ("moderation", (), "Another model's judgement of the answer."),
        ("return_prompt_text", (False,), "What the chat template has made of the chat."),
        ("mm_processor_kwargs", ({},), "Of pictures in messages."),
        ("media_io_kwargs", ({},), "Of pictures in messages."),
    ),
    *rows(
        (RESPONSES,),
        ("user", None, WHO),
        ("safety_identifier", None, WHO),
        ("prompt_cache_key", None, _CACHE),
        ("prompt_cache_retention", None, _CACHE),
        ("prompt_cache_options", None, _CACHE),
        ("service_tier", ("auto", "default"), WHERE),
        ("client_metadata", None, WHO),
        ("background", (False,), "Whether the caller asks for the answer later."),
        ("background_options", None, "Of background."),
        ("max_tool_calls", None, "Of tools that a provider runs itself; there are none here."),
        ("conversation", (), "A provider's store of conversations."),
        ("prompt", (), "A provider's store of prompts."),
        ("context_management", ([],), "Shortens the conversation."),
        ("moderation", (), "Another model's judgement of the answer."),
        ("image", (), "Of pictures in messages."),
        ("mm_processor_kwargs", ({},), "Of pictures in messages."),
        ("request_id", None, WHO),
        ("vllm_xargs", ({},), "Arguments of vLLM's plugins."),
        ("enable_response_messages", (False,), "What the chat template has made of the chat."),
        ("previous_input_messages", (), "An earlier conversation in vLLM's form."),
        ("previous_response", (), "An earlier answer as a whole; previous_response_id names one that is kept."),
    ),
    *rows(
        (COMPLETIONS,),
        ("prompt_embeds", (), "A prompt as vectors."),
    ),
    *rows(
        (EMBEDDINGS,),
        ("user", None, WHO),
        ("metadata", None, WHO),
        ("safety_identifier", None, WHO),
        ("request_id", None, WHO),
        ("service_tier", ("auto", "default"), WHERE),
        ("normalize", (False,), "Makes the vectors one long; they are the mean of the last hidden states as it is."),
        ("embed_dtype", ("float32",), "Of the numbers."),
        ("endianness", ("native", "little"), "Of the numbers in base64."),
        ("cache_salt", None, "Keeps callers' prefixes apart; nothing of an input is kept."),
    ),
    *rows(
        _PICTURES,
        ("background", ("auto", "opaque"), "Pictures are opaque."),
        ("moderation", ("auto", "low"), "Nothing is moderated."),
        ("style", ("vivid",), "A style of the provider's models; this one is what absent is."),
        ("frame_count", (1,), "Of moving pictures."),
        ("frame_duration_ms", (), "Of moving pictures."),
        ("complexity", (), "Of drawings."),
        ("svg", (), "Of drawings."),
    ),
    *rows((IMAGES,), ("input_fidelity", (), "Of pictures that are changed.")),
    *rows((EDITS, VARIATIONS), ("input_fidelity", ("low",), "strength says how much of the picture is replaced.")),
    *WEBUI_FIELDS,
    *rows((CHAT, MESSAGE, PART, TOOL), ("cache_control", None, _CACHE)),
    *rows(
        (MESSAGE, CALL),
        ("provider_specific_fields", None, _ELSEWHERE),
        ("extra_content", None, _ELSEWHERE),
    ),
    *rows(
        (MESSAGE,),
        ("id", None, "A message's name."),
        ("reasoning_details", None, "Thoughts in another provider's form; reasoning_content is read."),
        ("thinking_blocks", None, "Thoughts in another provider's form; reasoning_content is read."),
        ("images", ([],), "Pictures of another model's answer."),
        ("refusal", ("",), "An answer that another model refused."),
        ("annotations", ([],), "Sources of another model's answer."),
        ("audio", (), "A spoken answer."),
    ),
)

_BY_PLACE = {(place, row.name): row for row in UNUSED_FIELDS for place in row.within}


def taken_values(within: str) -> dict[str, dict[str, Any]]:
    """JSON schemas of the fields of this body that nothing reads and that may be sent all the same, by name."""
    taken = [row for (place, _), row in _BY_PLACE.items() if place == within and row.values != ()]
    return {row.name: _schema(row) for row in taken}


def _schema(row: UnusedField) -> dict[str, Any]:
    return {"description": row.help, **({} if row.values is None else {"enum": [*row.values, None]})}


def unused_field(within: str, name: str) -> UnusedField | None:
    """The table's row of a field in this body; None where it has none."""
    return _BY_PLACE.get((within, name))
