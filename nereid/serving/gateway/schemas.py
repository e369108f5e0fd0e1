"""Bodies of OpenAI's API for texts as far as they can be honoured; whatever else is sent is refused by name."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    WithJsonSchema,
    create_model,
    model_validator,
)

from nereid.serving.gateway.chat_templates import OWN_VARIABLES
from nereid.serving.gateway.field_schemas import schema_of
from nereid.serving.gateway.messages import AllowedTools, AnyTool, Function, FunctionName, Message, NamedCustom, NamedTool
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.tools import MOST_TOOLS
from nereid.serving.gateway.unused_field import CHAT, COMPLETIONS, EMBEDDINGS
from nereid_client.images import annotation
from nereid_client.layouts import LAYOUT_OPTIONS
from nereid_client.pages import PAGE_OPTIONS
from nereid_protocol.older_names import OLDER, without_older_names
from nereid_protocol.sampling import EMBEDDING_FIELDS, SAMPLING_FIELDS
from nereid_protocol.sampling_field import Kind, SamplingField

MOST_MESSAGES = 1000
"""Of a chat."""
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
"""What `llm` takes as int32; whether the vocabulary has it, the model says."""


class _First(FailFast):
    """Of a list's entries the first wrong one is told, and no other is looked for: there may be millions."""

    def __hash__(self) -> int:  # members of a union must have one
        return id(self)


TokenIds = Annotated[list[TokenId], _First()]
Texts = Annotated[list[str], _First()]


class _Body(Sent):
    """Without `model` it is for the only language model that is served."""

    model: str = ""


class Usage(Enum):
    """Which chunks of a stream tell how many tokens there are."""

    NONE = "none"
    LAST = "last"
    EACH = "each"


class StreamOptions(Sent):
    """`continuous_usage_stats` is vLLM's: every chunk tells the usage so far. Chunks are not padded, whatever is asked for."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


class JsonSchema(Sent):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Sent):
    """`schema` beside either type of JSON is llama.cpp's and Together's form of a `json_schema`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


_JSON_TYPES: dict[Kind, Any] = {
    Kind.NUMBER: float,
    Kind.INTEGER: int,
    Kind.FLAG: bool,
    Kind.TEXT: str,
    Kind.TEXTS: str | list[str],
    Kind.TOKEN_IDS: list[int],
    Kind.BIASES: dict[str, float],
    Kind.OBJECT: dict[str, Any],
}


def _body_field(field: SamplingField) -> Any:
    """A row of the table of sampling parameters as a field of a body, with the table's own check."""
    plain: Any = _JSON_TYPES[field.kind]
    checked = BeforeValidator(field.check), WithJsonSchema(schema_of(field))
    kind: Any = Annotated.__class_getitem__((plain | None, *checked))  # type: ignore[attr-defined]
    return kind, Field(default=1 if field.name == "n" else None, description=field.help)


def _no_fields(variables: dict[str, Any]) -> dict[str, Any]:
    for name in OWN_VARIABLES:
        if name in variables:
            raise ValueError(f"must not have {name}, which is a field of its own")
    return variables


TemplateVariables = Annotated[dict[str, Any], AfterValidator(_no_fields)]
"""What a chat template is given beside a chat's own fields."""
GATEWAY_FIELDS = tuple(field for field in SAMPLING_FIELDS if field.gateway)

_SamplingFields = create_model("_SamplingFields", __base__=_Body, **{field.name: _body_field(field) for field in GATEWAY_FIELDS})


class SamplingBody(_SamplingFields):  # type: ignore[misc, valid-type]
    """What both text endpoints share: every sampling parameter of `llm` that means the same there, OpenAI's and vLLM's."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False

    _older: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _without_older_names(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """vLLM's older names of what binds an answer's form."""
        if not isinstance(value, dict):
            return handler(value)
        made = handler(without_older_names(value))
        made._older = {now: older for older, now in OLDER.items() if value.get(older) is not None}
        return made

    @classmethod
    def taken_beside(cls) -> dict[str, Any]:
        older = [item for field in GATEWAY_FIELDS for item in (field, *field.members) if item.alias]
        return {**super().taken_beside(), **{item.alias: schema_of(item) for item in older}}

    @property
    def names(self) -> dict[str, str]:
        """The caller's names of `llm`'s sampling parameters, where they are others."""
        return dict(self._older)

    @property
    def usage_wanted(self) -> Usage:
        options = self.stream_options
        if options is None:
            return Usage.NONE
        return Usage.EACH if options.continuous_usage_stats else Usage.LAST if options.include_usage else Usage.NONE

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that were sent, for `llm`."""
        sent = {field.name: getattr(self, field.name) for field in GATEWAY_FIELDS if field.name in self.model_fields_set}
        return {name: value for name, value in sent.items() if value is not None}


class ChatBody(SamplingBody):
    place = CHAT

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    return_tokens_as_token_ids: bool = False
    response_format: ResponseFormat | None = None
    tools: list[AnyTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | NamedCustom | AllowedTools | None = None
    parallel_tool_calls: bool = True
    functions: list[Function] | None = Field(default=None, max_length=MOST_TOOLS)
    function_call: Literal["none", "auto"] | FunctionName | None = None
    include_reasoning: bool = True
    documents: list[dict[str, Any]] | None = Field(default=None, max_length=1000)
    chat_template: str | None = None
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    reasoning_effort: str | None = None


class CompletionBody(SamplingBody):
    place = COMPLETIONS

    prompt: str | TokenIds | Texts | Annotated[list[TokenIds], _First()]
    max_tokens: int | None = 16
    logprobs: int | None = Field(default=None, ge=0, le=20)
    return_tokens_as_token_ids: bool = False
    response_format: ResponseFormat | None = None
    echo: bool = False
    best_of: int | None = Field(default=None, ge=1, le=16)
    suffix: str | None = None

    @property
    def drawn(self) -> int:
        """How many answers are drawn for each prompt, of which the likeliest `n` are told."""
        return self.best_of or self.n


_EmbeddingFields = create_model(
    "_EmbeddingFields",
    __base__=_Body,
    **{field.name: _body_field(field) for field in SAMPLING_FIELDS if field.name in EMBEDDING_FIELDS},
)


class EmbeddingBody(_EmbeddingFields):  # type: ignore[misc, valid-type]
    """What is to be embedded: a text, its tokens, or a list of either; or a chat, with what its template reads (vLLM's form)."""

    place = EMBEDDINGS

    input: str | TokenIds | Texts | Annotated[list[TokenIds], _First()] | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MOST_MESSAGES)
    chat_template: str | None = None
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)

    def options(self) -> dict[str, Any]:
        """The parameters that were sent, for `llm`."""
        sent = {name: getattr(self, name) for name in EMBEDDING_FIELDS}
        return {name: value for name, value in sent.items() if value is not None}


LAYOUT_FIELDS_TAKEN = tuple(field for field in LAYOUT_OPTIONS if field.gateway)
"""Request fields of a layout that are taken under their own names."""


class _LayoutBody(Sent):
    model: str | None = None
    canvas: Annotated[int, Field(strict=True)] | dict[str, Any]
    html: str | None = None
    elements: list[dict[str, Any]] | None = Field(default=None, max_length=1000)
    stream: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The request's fields, by the SDK's names."""
        return {field.name: getattr(self, field.name) for field in LAYOUT_FIELDS_TAKEN}


LayoutBody = create_model(
    "LayoutBody",
    __base__=_LayoutBody,
    __doc__="A section as HTML or as a list of elements, its canvas, and the request fields that the table gives the gateway.",
    **{field.name: (annotation(field), None) for field in LAYOUT_FIELDS_TAKEN},  # type: ignore[call-overload]
)


PAGE_FIELDS_TAKEN = tuple(field for field in PAGE_OPTIONS if field.gateway)
"""Request fields of a page that are taken under their own names."""


class _PageBody(Sent):
    model: str | None = None
    brief: str
    stream: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The request's fields, by the SDK's names."""
        return {field.name: getattr(self, field.name) for field in PAGE_FIELDS_TAKEN}


PageBody = create_model(
    "PageBody",
    __base__=_PageBody,
    __doc__="A page's brief, and the request fields that the table gives the gateway.",
    **{field.name: (annotation(field), None) for field in PAGE_FIELDS_TAKEN},  # type: ignore[call-overload]
)
