"""instructor: every mode of its OpenAI client, streams of parts, lists, validation with another try."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel

from told import BRIEF, CITY, QUESTION, TOOLS, Client, expect

client = Client("instructor", "instructor")
MODES = ("TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON", "RESPONSES_TOOLS")


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    tiers: Literal[1, 2, 3]
    monthly: bool


class Loose(BaseModel):
    """Any object: in these modes nothing binds the answer to a schema."""

    currency: Any = None


class temperature(BaseModel):  # noqa: N801  # the function's name
    """Degrees in a city."""

    city: str


ASKED: Any = {"model": TOOLS, "messages": [{"role": "user", "content": BRIEF}], "temperature": 0, "max_retries": 1}


def by(mode: str) -> Any:
    return instructor.from_openai(openai.OpenAI(), mode=instructor.Mode[mode])


def in_mode(mode: str) -> None:
    limit = {"max_output_tokens" if mode.startswith("RESPONSES") else "max_tokens": 150}
    form = Loose if mode in ("JSON", "MD_JSON") else Price
    made = by(mode).create(response_model=form, **ASKED, **limit)
    expect(isinstance(made, form), f"it is {made!r}")


for each in MODES:
    client.capability(f"mode {each}")(lambda mode=each: in_mode(mode))


@client.capability("parallel tools")
def parallel() -> None:
    from collections.abc import Iterable

    asked = {**ASKED, "messages": [{"role": "user", "content": QUESTION}]}
    made = list(by("PARALLEL_TOOLS").create(response_model=Iterable[temperature], max_tokens=100, **asked))
    expect([item.city for item in made] == [CITY], f"it is {made!r}")


@client.capability("parts streamed")
def parts() -> None:
    made = list(by("TOOLS").create_partial(response_model=Price, max_tokens=150, **ASKED))
    expect(made and made[-1].currency in ("EUR", "USD"), f"the last part is {made[-1:]}")


@client.capability("lists streamed")
def lists() -> None:
    """Of as many as the model writes into the answer's length."""
    made = list(by("RESPONSES_TOOLS").create_iterable(response_model=Price, max_output_tokens=150, **ASKED))
    expect(made and all(isinstance(item, Price) for item in made), f"it is {made!r}")


@client.capability("async")
async def asynchronous() -> None:
    api = instructor.from_openai(openai.AsyncOpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    expect(isinstance(await api.create(response_model=Price, max_tokens=150, **ASKED), Price), "there is no object")


client.main()
