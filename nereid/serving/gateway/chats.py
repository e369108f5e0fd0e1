"""From a chat's body to its template's conversation and to sampling parameters of `llm`; knows no HTTP."""

from __future__ import annotations

from typing import Any

from nereid.serving.gateway.chat_templates import Chat
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.repository import Offered
from nereid.serving.gateway.schemas import ChatBody


def chat_of(body: ChatBody, model: Offered) -> Chat:
    """What the model's chat template is given; raises ApiError for what it has no use for."""
    variables = dict(body.chat_template_kwargs)
    if body.continue_final_message and "add_generation_prompt" in body.model_fields_set and body.add_generation_prompt:
        sentence = "true is not allowed with add_generation_prompt true; one of them must be false"
        raise ApiError(400, f"continue_final_message: {sentence}", param="continue_final_message")
    if body.reasoning_effort is not None:
        if not model.chat_templates().reads("reasoning_effort"):
            sentence = f"this field is not supported by the chat template of {model.id!r}"
            raise ApiError(400, f"reasoning_effort: {sentence}", param="reasoning_effort", code="unsupported_parameter")
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return Chat(
        messages=[message.for_template for message in body.messages],
        documents=body.documents or None,
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=variables,
        template=body.chat_template,
    )


def chat_names(body: ChatBody) -> dict[str, str]:
    """The caller's names of `llm`'s inputs, for errors."""
    names = {"text_input": "messages", "logprobs": "top_logprobs", **body.names}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if body.response_format is not None:
        names |= {"structured_outputs": "response_format", "structured_outputs.json": "response_format.json_schema.schema"}
    return names


def chat_sampling(body: ChatBody, model: Offered) -> dict[str, Any]:
    """A chat body as sampling parameters of `llm`; without a limit an answer may fill the context."""
    sampling = body.sampling()
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "prompt_logprobs: a chat's cannot be streamed; stream must be false", param="prompt_logprobs")
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs or 0
    structure = _structure(body)
    if structure is not None:
        sampling["structured_outputs"] = structure
    if model.whole_templates:
        sampling.setdefault("add_special_tokens", False)
    return {**sampling, "max_tokens": limit}


def _structure(body: ChatBody) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if body.structured_outputs is not None:
        raise ApiError(400, "response_format: structured_outputs is given, too; send one of them", param="response_format")
    if wanted.type == "json_object":
        return {"json": {"type": "object"}}
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema: is missing", param="response_format.json_schema")
    return {"json": wanted.json_schema.schema_}
