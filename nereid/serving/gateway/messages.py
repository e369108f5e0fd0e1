"""A chat's messages and tools, as OpenAI's API has them, and as chat templates read them; knows no route."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from nereid.llm.json_schemas import without_nulls
from nereid.serving.gateway.call_messages import arguments_of
from nereid.serving.gateway.custom_inputs import arguments_with, parameters_of
from nereid.serving.gateway.sent import Sent, few
from nereid.serving.gateway.tools import MOST_TOOLS
from nereid.serving.gateway.unused_field import CALL, MESSAGE, PART, TOOL

MOST_PATTERN = 10_000
"""Characters of a regular expression."""


class TextPart(Sent):
    place = PART

    type: Literal["text"]
    text: str


class RefusalPart(Sent):
    """What an assistant has answered instead."""

    place = PART

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
"""Text only: the models here see no pictures."""


Parameters = Annotated[dict[str, Any], BeforeValidator(without_nulls)]
"""The schema of a function's arguments; what is null in it is as absent."""


class Function(Sent):
    """What may be called; without `parameters` it takes none."""

    name: str
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


class Tool(Sent):
    place = TOOL

    type: Literal["function"] = "function"
    function: Function

    @property
    def for_template(self) -> dict[str, Any]:
        """As it was sent; `strict` is about this API, and no word to the model."""
        function = self.function.model_dump(exclude_unset=True, exclude={"strict"})
        return {"type": self.type, "function": function}


class FreeText(Sent):
    """Any input."""

    type: Literal["text"]

    pattern: ClassVar[None] = None


class Grammar(Sent):
    """The one form that an answer can be bound to within the text of a call: Lark's grammars have no such place."""

    syntax: Literal["regex"]
    definition: str = Field(max_length=MOST_PATTERN)


class BoundText(Sent):
    """Input that a grammar allows."""

    type: Literal["grammar"]
    grammar: Grammar

    @property
    def pattern(self) -> str:
        return self.grammar.definition


class Custom(Sent):
    """What is called with a text."""

    name: str
    description: str | None = None
    format: Annotated[FreeText | BoundText, Field(discriminator="type")] | None = None


class CustomTool(Sent):
    """To the model it is a function that takes one text; a grammar binds calls where text is allowed, too."""

    place = TOOL

    type: Literal["custom"]
    custom: Custom

    @property
    def pattern(self) -> str | None:
        """A regular expression of the whole input."""
        return self.custom.format.pattern if self.custom.format is not None else None

    @property
    def function(self) -> Function:
        pattern = self.pattern
        about = {} if self.custom.description is None else {"description": self.custom.description}
        return Function(
            name=self.custom.name, **about, parameters=parameters_of(pattern), strict=True if pattern is not None else None
        )

    @property
    def for_template(self) -> dict[str, Any]:
        return Tool(function=self.function).for_template


def with_type(value: Any) -> Any:
    """Without a type it is a function, or a call of one."""
    return {**value, "type": "function"} if isinstance(value, dict) and value.get("type") is None else value


AnyTool = Annotated[Tool | CustomTool, BeforeValidator(with_type)]


class FunctionName(Sent):
    name: str


class NamedTool(Sent):
    """A `tool_choice`: this one must be called."""

    type: Literal["function"]
    function: FunctionName

    must: ClassVar[bool] = True

    @property
    def named(self) -> tuple[str, list[str]]:
        """The field and the names."""
        return "tool_choice.function.name", [self.function.name]


class NamedCustom(Sent):
    """The same of a custom tool."""

    type: Literal["custom"]
    custom: FunctionName

    must: ClassVar[bool] = True

    @property
    def named(self) -> tuple[str, list[str]]:
        return "tool_choice.custom.name", [self.custom.name]


class Allowed(Sent):
    mode: Literal["auto", "required"]
    tools: list[NamedTool | NamedCustom] = Field(min_length=1, max_length=MOST_TOOLS)


class AllowedTools(Sent):
    """A `tool_choice`: only these may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed

    @property
    def must(self) -> bool:
        return self.allowed_tools.mode == "required"

    @property
    def named(self) -> tuple[str, list[str]]:
        return "tool_choice.allowed_tools.tools", [name for tool in self.allowed_tools.tools for name in tool.named[1]]


class FunctionCall(Sent):
    """`arguments` is what the model has written: JSON's text of an object, unless it was cut, or the model erred."""

    name: str
    arguments: str = ""


class ToolCall(Sent):
    """A call that the model has made before; streams number their calls, which is taken and means nothing here."""

    place = CALL

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None

    @property
    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": arguments_of(self.function.arguments.strip() or "{}")}
        return {"id": self.id, "type": self.type, "function": function}


class CustomCall(Sent):
    name: str
    input: str = ""


class CustomToolCall(Sent):
    """A call of a custom tool that the model has made before."""

    place = CALL

    id: str = Field(min_length=1, max_length=256)
    type: Literal["custom"]
    custom: CustomCall
    index: int | None = None

    @property
    def for_template(self) -> dict[str, Any]:
        call = FunctionCall(name=self.custom.name, arguments=arguments_with(self.custom.input))
        return ToolCall(id=self.id, function=call).for_template


AnyCall = Annotated[ToolCall | CustomToolCall, BeforeValidator(with_type)]


class Message(Sent):
    place = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | list[ContentPart] | None, BeforeValidator(few)] = None
    name: str | None = None
    tool_calls: list[AnyCall] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None

    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str | None:
        parts = self.content
        return "".join(part.text for part in parts) if isinstance(parts, list) else parts

    @property
    def for_template(self) -> dict[str, Any]:
        """What a chat template reads: only what was sent. An assistant that has said nothing has said an empty text."""
        fields = {"role", "name", "reasoning_content", "reasoning", "tool_call_id"}
        sent = self.model_dump(include=fields, exclude_none=True)
        calls = {"tool_calls": [call.for_template for call in self.tool_calls]} if self.tool_calls else {}
        return {**sent, "content": self.text if self.text is not None or calls else "", **calls}
