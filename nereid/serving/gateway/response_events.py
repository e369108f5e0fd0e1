"""An answer of /v1/responses: its items as they grow, and the events that tell so; knows no HTTP and no store.

Events and items are those of OpenAI's API reference, "Responses", as openai-python reads them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.answer_streams import AnswerStream
from nereid.serving.gateway.chat_answers import chat_logprobs
from nereid.serving.gateway.said import Arguments, Call, Input, Reasoning, Said, Text
from nereid_client.texts import TextDelta

Event = dict[str, Any]


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass(slots=True, eq=False)
class ResponseAnswer:
    """`head` are the response's members that do not change; `stream` takes the answer's text apart."""

    head: dict[str, Any]
    stream: AnswerStream
    output: list[dict[str, Any]] = field(default_factory=list)
    _count: int = 0
    _open: dict[str, Any] | None = None
    _reason: str | None = None

    def begin(self) -> Iterator[Event]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.response("in_progress"))

    def take(
        self, text: str, reason: str | None, logprobs: list[dict[str, Any]] | None, tokens: Sequence[int]
    ) -> Iterator[Event]:
        """A piece of the answer; `reason` is there with the last."""
        entries = (chat_logprobs(logprobs) or {"content": []})["content"]
        for said in [*self.stream.feed(text, tokens), *(self.stream.finish() if reason else [])]:
            yield from self._say(said, entries if isinstance(said, Text) else [])
            if isinstance(said, Text):
                entries = []
        self._reason = reason or self._reason

    def take_delta(self, delta: TextDelta) -> Iterator[Event]:
        return self.take(delta.text, delta.finish_reason, delta.logprobs, delta.token_ids)

    def end(self, usage: dict[str, Any]) -> Iterator[Event]:
        """The last events; `self.response()` is whole from then on."""
        cut = self._reason == "length"
        if not any(item["type"] != "reasoning" for item in self.output) and not cut:
            yield from self._begin_message()
        yield from self._close("incomplete" if cut else "completed")
        self.head |= {"usage": usage}
        if cut:
            self.head["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event(f"response.{self.status}", response=self.response(self.status))

    def fail(self, message: str) -> Iterator[Event]:
        """What is there ends as incomplete."""
        yield from self._close("incomplete")
        self.head["error"] = {"code": "server_error", "message": message}
        yield self._event("response.failed", response=self.response("failed"))

    @property
    def status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def response(self, status: str) -> dict[str, Any]:
        return {**self.head, "status": status, "output": [dict(item) for item in self.output]}

    # --- one item ---

    def _say(self, said: Said, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        match said:
            case Reasoning(text):
                if self._kind != "reasoning":
                    yield from self._begin_reasoning()
                yield from self._grow("reasoning_text", text)
            case Text(text):
                if self._kind != "message":
                    yield from self._begin_message()
                self._item["content"][0]["logprobs"] += logprobs
                yield from self._grow("output_text", text, logprobs=logprobs)
            case Call(_, identity, name, custom=True):
                made = {"id": new_id("ctc"), "type": "custom_tool_call", "call_id": identity, "name": name, "input": ""}
                yield from self._begin_item(made)
            case Input(_, text):
                self._item["input"] += text
                yield self._of_item("response.custom_tool_call_input.delta", delta=text)
            case Call(_, identity, name):
                made = {"id": new_id("fc"), "type": "function_call", "call_id": identity, "name": name, "arguments": ""}
                yield from self._begin_item(made)
            case Arguments(_, text):
                self._item["arguments"] += text
                yield self._of_item("response.function_call_arguments.delta", delta=text)

    def _grow(self, kind: str, text: str, **more: Any) -> Iterator[Event]:
        self._item["content"][0]["text"] += text
        yield self._of_item(f"response.{kind}.delta", content_index=0, delta=text, **more)

    def _begin_reasoning(self) -> Iterator[Event]:
        item = {"id": new_id("rs"), "type": "reasoning", "summary": []}
        yield from self._begin_content(item, {"type": "reasoning_text", "text": ""})

    def _begin_message(self) -> Iterator[Event]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield from self._begin_content({"id": new_id("msg"), "type": "message", "role": "assistant"}, part)

    def _begin_content(self, item: dict[str, Any], part: dict[str, Any]) -> Iterator[Event]:
        yield from self._begin_item({**item, "content": []})
        self._item["content"] = [part]
        yield self._of_item("response.content_part.added", content_index=0, part=_copied(part))

    def _begin_item(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = {**item, "status": "in_progress"}
        self.output.append(self._open)
        yield self._event("response.output_item.added", output_index=len(self.output) - 1, item=dict(self._open))

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item = self._item
        if item["type"] == "function_call":
            more = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **more)
        elif item["type"] == "custom_tool_call":
            yield self._of_item("response.custom_tool_call_input.done", input=item["input"])
        else:
            (part,) = item["content"]
            more = {"logprobs": list(part["logprobs"])} if part["type"] == "output_text" else {}
            yield self._of_item(f"response.{part['type']}.done", content_index=0, text=part["text"], **more)
            yield self._of_item("response.content_part.done", content_index=0, part=_copied(part))
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self.output) - 1, item=dict(item))
        self._open = None

    @property
    def _item(self) -> dict[str, Any]:
        assert self._open is not None
        return self._open

    @property
    def _kind(self) -> str:
        return "" if self._open is None else str(self._open["type"])

    def _of_item(self, kind: str, **members: Any) -> Event:
        return self._event(kind, item_id=self._item["id"], output_index=len(self.output) - 1, **members)

    def _event(self, kind: str, **members: Any) -> Event:
        self._count += 1
        return {"type": kind, "sequence_number": self._count - 1, **members}


def _copied(part: dict[str, Any]) -> dict[str, Any]:
    """As it is now: events are written down later than they are made."""
    return {name: list(value) if isinstance(value, list) else value for name, value in part.items()}
