"""From a chat's body to its template's conversation and to sampling parameters of `llm`; knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nereid.llm.json_schemas import unbindable
from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.call_forms import CallReading
from nereid.serving.gateway.call_messages import with_ids
from nereid.serving.gateway.channel_streams import MESSAGE, START
from nereid.serving.gateway.chat_templates import Chat
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.grammar_parts import LONGEST_GRAMMAR, NotBindableError, TooLongError
from nereid.serving.gateway.logprobs import NO_LOGPROBS
from nereid.serving.gateway.messages import Message
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.older_calls import OLDER_NAMES, in_todays_form, with_tool_calls
from nereid.serving.gateway.response_formats import name_of_schema, names_of_answer, schema_of_answer
from nereid.serving.gateway.schemas import ChatBody, EmbeddingBody
from nereid.serving.gateway.thoughts import Thinking
from nereid.serving.gateway.tool_grammars import AnswerForm
from nereid.serving.gateway.tools import ToolsAsked, check_bindable, check_messages, tools_asked


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsked:
    """A chat as `llm` is asked, and how its answer is taken apart; `names` are the caller's of `llm`'s inputs, for errors.

    `as_function_call`: its call is told in the form of OpenAI's older API.
    """

    prompt: str
    sampling: dict[str, Any]
    names: Mapping[str, str]
    thinking: Thinking | None
    calls: CallReading | None
    tells_reasoning: bool
    spoken: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    as_function_call: bool = False

    def new_stream(self) -> AnswerStream:
        return AnswerStream(self.thinking, self.calls, self.spoken, self.silent)

    def tokens(self, model: Offered) -> list[int]:
        """The prompt's, as `llm` reads it; takes time. Raises ContextLengthError."""
        special = bool(self.sampling.get("add_special_tokens", True))
        return model.tokenizer.encode(self.prompt, add_special_tokens=special)


async def read_chat(body: ChatBody, model: Offered) -> ChatAsked:
    """`chat_asked`, beside the loop where schemas have to be checked, which takes time."""
    if body.tools or body.functions or body.response_format:
        return await asyncio.to_thread(chat_asked, body, model)
    return chat_asked(body, model)


def chat_asked(body: ChatBody, model: Offered) -> ChatAsked:
    """Raises ApiError for what cannot be asked of this model."""
    todays = in_todays_form(body)
    if not body.functions:
        return _asked(todays, model)
    try:
        asked = _asked(todays, model)
    except ApiError as error:
        raise OLDER_NAMES.refusal(error) from None
    return replace(asked, names=OLDER_NAMES.of_inputs(asked.names), as_function_call=True)


def _asked(body: ChatBody, model: Offered) -> ChatAsked:
    check_messages(body.messages)
    tools = tools_asked(body.tools, body.tool_choice, body.parallel_tool_calls)
    calls = _reading(tools, body, model)
    prompt = model.prompt(_chat_of(body, model, tools))
    thinking = _thinking(body, model, prompt)
    sampling, names = _sampling(body, model), _names(body)
    schema = schema_of_answer(body)
    if tools is not None and (tools.must or tools.strict or schema is not None):
        names["structured_outputs.grammar"] = names["structured_outputs"] = "tools"
        check_bindable(body.tools or (), tools)
        form = AnswerForm(thinking=thinking, calls=calls, called=tools.must, schema=schema, tokens=model.tokens)
        sampling["structured_outputs"] = {"grammar": _grammar(form, body)}
    elif schema is not None and thinking is not None:
        names["structured_outputs.grammar"] = name_of_schema(body)
        form = AnswerForm(thinking=thinking, schema=schema, tokens=model.tokens)
        sampling["structured_outputs"] = {"grammar": _grammar(form, body)}
    elif schema is not None:
        sampling["structured_outputs"] = {"json": schema}
    silent = model.silent if body.structured_outputs is None else ()
    marks = (*(calls.form.marks if calls else ()), *((thinking.begin, thinking.end) if thinking else ()), *silent)
    if any(token in mark for mark in marks for token in model.hidden):
        sampling.setdefault("skip_special_tokens", False)  # they are special tokens, without which nothing can be told apart
    return ChatAsked(
        prompt=prompt,
        sampling=sampling,
        names=names,
        thinking=thinking,
        calls=calls,
        tells_reasoning=body.include_reasoning,
        spoken=None if body.structured_outputs is not None else model.spoken,
        silent=silent,
    )


def _reading(tools: ToolsAsked | None, body: ChatBody, model: Offered) -> CallReading | None:
    """How calls will be found; raises ApiError where the model's template has no calls."""
    if tools is None:
        return None
    if not model.chat_templates().reads("tools"):
        raise ApiError(400, f"tools: the chat template of {model.id!r} has no place for them", param="tools")
    if model.tool_format is None:
        reason = "shows no form of calls that is known here; serve it with --openai-tools"
        raise ApiError(400, f"tools: the chat template of {model.id!r} {reason}", param="tools")
    if body.structured_outputs is not None:
        raise ApiError(400, "structured_outputs: not allowed with tools; send one of them", param="structured_outputs")
    return CallReading(form=model.tool_format, schemas=tools.schemas, several=tools.several, custom=tools.custom)


def _thinking(body: ChatBody, model: Offered, prompt: str) -> Thinking | None:
    """The marks of thoughts, if the answer may have some after this prompt. An answer bound by the caller has none."""
    marks = model.thinking
    if marks is None or body.structured_outputs is not None:
        return None
    if marks.channels:
        before = prompt[prompt.rfind(START) :] if START in prompt else ""
        return replace(marks, before=before, opened=MESSAGE in before)
    if body.continue_final_message:
        last = body.messages[-1].text or ""
        begun, ended = last.rfind(marks.begin), last.rfind(marks.end)
        return replace(marks, opened=True) if begun > ended else marks if not last.strip() else None
    tail = prompt.rstrip()
    for other in marks.others:
        if tail.endswith(other.begin):
            return replace(other, opened=True)
    return None if tail.endswith(marks.ends) else replace(marks, opened=tail.endswith(marks.begin))


def _grammar(form: AnswerForm, body: ChatBody) -> str:
    if fault := unbindable(form.schema):
        raise ApiError(400, f"{name_of_schema(body)}: {fault} cannot be bound", param=name_of_schema(body))
    try:
        made = form.grammar()
        if len(made) > LONGEST_GRAMMAR:
            raise TooLongError
    except TooLongError:
        field = "tools" if form.calls else name_of_schema(body)
        sentence = f"the grammar of its schemas is too long; it must have at most {LONGEST_GRAMMAR} characters"
        raise ApiError(400, f"{field}: {sentence}", param=field) from None
    except NotBindableError as error:
        place = next(i for i, tool in enumerate(body.tools or ()) if tool.function.name == error.name)
        field = f"tools.{place}.function.parameters"
        raise ApiError(400, f"{field}: {error}", param=field) from None
    return made


def _chat_of(body: ChatBody, model: Offered, tools: ToolsAsked | None) -> Chat:
    """What the model's chat template is given; raises ApiError for what it has no use for."""
    variables = dict(body.chat_template_kwargs)
    if body.reasoning_effort is not None:
        for name, value in _effort(body.reasoning_effort, model).items():
            variables.setdefault(name, value)
    chat = _conversation(body, body.messages, model)
    return replace(chat, tools=tools.tools if tools is not None else None, documents=body.documents or None, variables=variables)


def _effort(effort: str, model: Offered) -> dict[str, Any]:
    """What a template is told of it; `medium` is as absent, `none` is for one that does not think. Raises ApiError."""
    templates = model.chat_templates()
    if templates.reads("reasoning_effort"):
        return {"reasoning_effort": effort}
    if effort == "none" and templates.reads("enable_thinking"):
        return {"enable_thinking": False}
    if effort == "medium" or (effort == "none" and not any("think" in text for text in templates.sources.values())):
        return {}
    sentence = f"{effort[:80]!r} is not supported by the chat template of {model.id!r}; it must be medium, or absent"
    raise ApiError(400, f"reasoning_effort: {sentence}", param="reasoning_effort", code="unsupported_parameter")


def embedded_prompt(body: EmbeddingBody, messages: Sequence[Message], model: Offered) -> str:
    """A chat that is read, and not answered; raises ApiError for one that cannot be."""
    messages = with_tool_calls(messages)
    check_messages(messages)
    return model.prompt(_conversation(body, messages, model))


def _conversation(body: ChatBody | EmbeddingBody, messages: Sequence[Message], model: Offered) -> Chat:
    """Of a chat what all bodies of chats say; raises ApiError."""
    if body.continue_final_message and "add_generation_prompt" in body.model_fields_set and body.add_generation_prompt:
        sentence = "true is not allowed with add_generation_prompt true; one of them must be false"
        raise ApiError(400, f"continue_final_message: {sentence}", param="continue_final_message")
    rendered = [message.for_template for message in messages]
    form = model.tool_format
    return Chat(
        messages=rendered if form is None or form.ids is None else with_ids(rendered, form.ids),
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
        template=body.chat_template,
        write_calls=None if form is None else form.written,
    )


def _names(body: ChatBody) -> dict[str, str]:
    """The caller's names of `llm`'s inputs."""
    names = {"text_input": "messages", "logprobs": "top_logprobs", **body.names}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if body.response_format is not None:
        names |= names_of_answer(body)
    return names


def _sampling(body: ChatBody, model: Offered) -> dict[str, Any]:
    """A chat body as sampling parameters of `llm`; without a limit an answer may fill the context."""
    sampling = body.sampling()
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    if body.logprob_token_ids and not body.logprobs:
        raise ApiError(400, NO_LOGPROBS, param="logprob_token_ids")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(400, "prompt_logprobs: a chat's cannot be streamed; stream must be false", param="prompt_logprobs")
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs or 0
    if model.whole_templates:
        sampling.setdefault("add_special_tokens", False)
    return model.adapted({**sampling, "max_tokens": limit})
