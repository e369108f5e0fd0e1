"""Answers of /v1/chat/completions in OpenAI's forms, whole and streamed: thoughts, text, calls of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.logprobs import by_ids, prompt_logprobs, token_bytes
from nereid.serving.gateway.said import Arguments, Call, Input, Reasoning, Said, Text
from nereid.serving.gateway.texts import Prompt, told_ids, usage_of
from nereid_client.texts import TextChoice, TextDelta, TextResult

STOP, TOOL_CALLS, FUNCTION_CALL = "stop", "tool_calls", "function_call"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One request's answers; `new_stream` takes apart one of them. `tells_reasoning`: whether thoughts are told.

    `counts_thoughts`: whether usage tells how many tokens they have. `tokens_by_ids`: whether log probabilities name tokens so.
    `prompt_ids` is told of the prompt beside the choices. `as_function_call`: a call is told as OpenAI's API did before tools.
    """

    id: str
    created: int
    model: str
    token_ids: bool = False
    tokens_by_ids: bool = False
    prompt_ids: Mapping[str, Any] = field(default_factory=dict)
    prompt_logprobs: int | None = None
    new_stream: Callable[[], AnswerStream] = AnswerStream
    tells_reasoning: bool = True
    counts_thoughts: bool = False
    as_function_call: bool = False
    _streams: dict[int, AnswerStream] = field(default_factory=dict)
    _wordless: set[int] = field(default_factory=set)
    """Of the streamed answers those whose content is null so far."""

    def whole(self, result: TextResult) -> dict[str, Any]:
        choices = [self._choice(choice) for choice in result.choices]
        counts = result.num_input_tokens, result.num_cached_tokens, result.num_output_tokens
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": usage_of(*counts, self.reasoning_tokens),
            **self._told_of_prompt(result),
            **self.prompt_ids,
        }

    @property
    def reasoning_tokens(self) -> int | None:
        """Of all answers so far; None where they are not counted."""
        return sum(stream.reasoning_tokens for stream in self._streams.values()) if self.counts_thoughts else None

    def _told_of_prompt(self, result: TextResult) -> dict[str, Any]:
        """vLLM's field, where it is asked for."""
        top, scores = self.prompt_logprobs, result.prompt_logprobs
        return {} if top is None or scores is None else {"prompt_logprobs": prompt_logprobs(scores, top)}

    def _choice(self, choice: TextChoice) -> dict[str, Any]:
        stream = self._streams[choice.index] = self.new_stream()
        said = [*stream.feed(choice.text, choice.token_ids), *stream.finish()]
        return {
            "index": choice.index,
            "message": message_of(said, tells_reasoning=self.tells_reasoning, as_function_call=self.as_function_call),
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": self._reason(choice.finish_reason, stream),
            **told_ids(self.token_ids, choice),
        }

    def opening(self, index: int, prompt: Prompt) -> dict[str, Any] | None:
        """Where calls may come its content is null, as it stays where nothing else does: some clients open a text at ""."""
        stream = self._streams[index] = self.new_stream()
        if stream.calls is not None:
            self._wordless.add(index)
        content = None if index in self._wordless else ""
        return {**self._chunk(index, {"role": "assistant", "content": content}, None, None), **self.prompt_ids}

    def chunks(self, delta: TextDelta) -> list[dict[str, Any]]:
        """As OpenAI does it, the reason comes in a chunk of its own, whose delta is empty: some clients read no text there.

        Log probabilities and tokens come with the first of a step's chunks, also where its text is held back.
        """
        stream = self._streams[delta.index]
        said = [*stream.feed(delta.text, delta.token_ids), *(stream.finish() if delta.finish_reason else [])]
        parts = [part for item in said if (part := self._part(item)) is not None]
        if any(isinstance(item, Text) for item in said):
            self._wordless.discard(delta.index)
        if delta.finish_reason and delta.index in self._wordless and not stream.has_called:
            parts.append({"content": ""})
        if not parts and (delta.logprobs or (self.token_ids and delta.token_ids)):
            parts = [{"content": None if delta.index in self._wordless else ""}]
        made = [self._chunk(delta.index, part, None if place else delta.logprobs, None) for place, part in enumerate(parts)]
        if made:
            made[0]["choices"][0] |= told_ids(self.token_ids, delta)
        if delta.finish_reason:
            made.append(self._chunk(delta.index, {}, None, self._reason(delta.finish_reason, stream)))
        return made

    def _part(self, said: Said) -> dict[str, Any] | None:
        """A chunk's delta."""
        match said:
            case Reasoning(text):
                return _reasoning(text) if self.tells_reasoning else None
            case Text(text):
                return {"content": text}
            case Call(_, _, name) if self.as_function_call:
                return {"function_call": {"name": name, "arguments": ""}}
            case Arguments(_, text) if self.as_function_call:
                return {"function_call": {"arguments": text}}
            case Call(index, identity, name, custom=True):
                custom = {"name": name, "input": ""}
                return {"tool_calls": [{"index": index, "id": identity, "type": "custom", "custom": custom}]}
            case Input(index, text):
                return {"tool_calls": [{"index": index, "custom": {"input": text}}]}
            case Call(index, identity, name):
                function = {"name": name, "arguments": ""}
                return {"tool_calls": [{"index": index, "id": identity, "type": "function", "function": function}]}
            case Arguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def usage(self, input_tokens: int, cached: int, output_tokens: int) -> dict[str, Any]:
        usage = usage_of(input_tokens, cached, output_tokens, self.reasoning_tokens)
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs), "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, found: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        return chat_logprobs(by_ids(found) if self.tokens_by_ids and found is not None else found)

    def _reason(self, reason: str | None, stream: AnswerStream) -> str | None:
        """An answer that ended by itself after calls waits for their results."""
        if reason != STOP or not stream.has_called:
            return reason
        return FUNCTION_CALL if self.as_function_call else TOOL_CALLS

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _reasoning(text: str) -> dict[str, Any]:
    """Under the name of DeepSeek's API, and the one that vLLM has now: clients read one of them, or the first that is there."""
    return {"reasoning_content": text, "reasoning": text}


def message_of(said: Sequence[Said], *, tells_reasoning: bool = True, as_function_call: bool = False) -> dict[str, Any]:
    """A whole answer; its content is null where it is nothing but calls."""
    thoughts = "".join(item.text for item in said if isinstance(item, Reasoning))
    text = "".join(item.text for item in said if isinstance(item, Text))
    calls = [_whole_call(call, said) for call in said if isinstance(call, Call)]
    return {
        "role": "assistant",
        "content": None if calls and not text else text,
        **(_reasoning(thoughts) if thoughts and tells_reasoning else {}),
        **({"function_call": calls[0]["function"]} if calls and as_function_call else {"tool_calls": calls} if calls else {}),
    }


def _whole_call(call: Call, said: Sequence[Said]) -> dict[str, Any]:
    written = "".join(item.text for item in said if isinstance(item, Arguments | Input) and item.index == call.index)
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": written}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": written}}


def chat_logprobs(found: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """OpenAI's form of chats."""
    if found is None:
        return None

    def entry(item: dict[str, Any]) -> dict[str, Any]:
        return {"token": item.get("name", item["token"]), "logprob": item["logprob"], "bytes": list(token_bytes(item))}

    return {"content": [{**entry(item), "top_logprobs": [entry(other) for other in item["top"]]} for item in found]}
