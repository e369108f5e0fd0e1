"""Bodies of /v1/responses as far as they can be honoured; whatever else is sent is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from nereid.serving.gateway.messages import CustomCall, FreeText, FunctionCall, Grammar, Parameters, RefusalPart, with_type
from nereid.serving.gateway.metadata import Metadata
from nereid.serving.gateway.schemas import SamplingBody, TemplateVariables
from nereid.serving.gateway.sent import MOST_PARTS, Sent, few
from nereid.serving.gateway.tools import MOST_TOOLS
from nereid.serving.gateway.unused_field import RESPONSES

MOST_ITEMS = 10_000
LOGPROBS = "message.output_text.logprobs"


class Part(Sent):
    """Text only. What an answer's part has besides is taken back."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


AnyPart = Annotated[Part | RefusalPart, Field(discriminator="type")]


def _text(content: str | Sequence[Part | RefusalPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Item(Sent):
    id: str | None = None
    status: str | None = None


class MessageItem(_Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[AnyPart], BeforeValidator(few)]
    phase: str | None = None

    @property
    def text(self) -> str:
        return _text(self.content)


class CallItem(_Item, FunctionCall):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)


class _Output(_Item):
    """What a tool has answered."""

    call_id: str = Field(min_length=1, max_length=256)
    output: Annotated[str | list[Part], BeforeValidator(few)]

    @property
    def text(self) -> str:
        return _text(self.output)


class OutputItem(_Output):
    type: Literal["function_call_output"]


class CustomCallItem(_Item, CustomCall):
    """A call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: str = Field(min_length=1, max_length=256)


class CustomOutputItem(_Output):
    type: Literal["custom_tool_call_output"]


CALLS, OUTPUTS = (CallItem, CustomCallItem), (OutputItem, CustomOutputItem)
"""Items of either kind of tool."""


class ReasoningItem(_Item):
    """`encrypted_content` is another provider's: nobody here can read it."""

    type: Literal["reasoning"]
    summary: list[Part] = Field(default_factory=list, max_length=MOST_PARTS)
    content: list[Part] | None = Field(default=None, max_length=MOST_PARTS)
    encrypted_content: str | None = None

    @property
    def text(self) -> str:
        return _text(self.content or self.summary)


class ItemReference(Sent):
    """Stands for an item that is kept here, of an answer or of what was sent with a request before."""

    type: Literal["item_reference"]
    id: str = Field(min_length=1, max_length=256)


def _with_type(value: Any) -> Any:
    """A message may come without a type, and so may a reference."""
    if not isinstance(value, dict) or value.get("type") is not None:
        return value
    kind = "message" if "role" in value else "item_reference" if value.keys() - {"type"} == {"id"} else None
    return value if kind is None else {**value, "type": kind}


Kept = MessageItem | CallItem | OutputItem | CustomCallItem | CustomOutputItem | ReasoningItem
Item = Annotated[Annotated[Kept | ItemReference, Field(discriminator="type")], BeforeValidator(_with_type)]


class FlatTool(Sent):
    """A function with its type beside its name."""

    type: Literal["function"] = "function"
    name: str
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    @property
    def for_chat(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_unset=True)}


class FlatGrammar(Grammar):
    type: Literal["grammar"]


class FlatCustom(Sent):
    """A custom tool with its type beside its name."""

    type: Literal["custom"]
    name: str
    description: str | None = None
    format: Annotated[FreeText | FlatGrammar, Field(discriminator="type")] | None = None

    @property
    def for_chat(self) -> dict[str, Any]:
        custom = self.model_dump(exclude={"type", "format"}, exclude_unset=True)
        if isinstance(self.format, FlatGrammar):
            grammar = {"syntax": self.format.syntax, "definition": self.format.definition}
            custom["format"] = {"type": "grammar", "grammar": grammar}
        return {"type": "custom", "custom": custom}


class FlatName(Sent):
    type: Literal["function", "custom"]
    name: str

    @property
    def for_chat(self) -> dict[str, Any]:
        return {"type": self.type, self.type: {"name": self.name}}


class FlatAllowed(Sent):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatName] = Field(min_length=1, max_length=MOST_TOOLS)


class TextFormat(Sent):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @property
    def for_chat(self) -> dict[str, Any]:
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.schema_}}


class TextOptions(Sent):
    format: TextFormat = Field(default_factory=TextFormat)
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Sent):
    """Thoughts are told as they are; there is no summary of them."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Sent):
    """Events are not padded, whatever is asked for: they hide their length from nobody who reads the stream."""

    include_obfuscation: bool | None = None


Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""What may be told besides; all but the first is about what no answer here has."""


def _not_too_many(value: Any) -> Any:
    """Checked before the items are: each may be wrong, and take time to be told so."""
    if isinstance(value, list) and len(value) > MOST_ITEMS:
        raise ValueError(f"must have at most {MOST_ITEMS} items")
    return value


class ResponsesBody(SamplingBody):
    place = RESPONSES

    input: Annotated[str | list[Item], BeforeValidator(_not_too_many)] = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    max_output_tokens: int | None = None
    tools: list[Annotated[FlatTool | FlatCustom, BeforeValidator(with_type)]] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | FlatName | FlatAllowed | None = None
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    reasoning: ReasoningOptions | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[Included] = Field(default_factory=list, max_length=100)
    metadata: Metadata = Field(default_factory=dict)
    truncation: Literal["auto", "disabled"] = "disabled"
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    stream_options: ResponseStreamOptions | None = None  # type: ignore[assignment]

    @field_validator("input")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if not value:
            raise ValueError("must be a text or at least one item")
        return value

    @field_validator("n")
    @classmethod
    def _one(cls, value: int) -> int:
        if value != 1:
            raise ValueError("must be 1")
        return value

    @property
    def given(self) -> list[Kept | ItemReference]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(type="message", role="user", content=self.input)]
        return list(self.input)
