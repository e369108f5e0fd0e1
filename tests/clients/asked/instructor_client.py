"""instructor: every mode of its OpenAI client, streams of parts, lists, validation with another try."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel

from told import BRIEF, TOOLS, Client, expect

client = Client("instructor", "instructor")
MODES = ("TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON", "RESPONSES_TOOLS")


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    tiers: Literal[1, 2, 3]
    monthly: bool


ASKED: Any = {"model": TOOLS, "messages": [{"role": "user", "content": BRIEF}], "temperature": 0, "max_retries": 1}


def by(mode: str) -> Any:
    return instructor.from_openai(openai.OpenAI(), mode=instructor.Mode[mode])


def in_mode(mode: str) -> None:
    limit = {"max_output_tokens" if mode.startswith("RESPONSES") else "max_tokens": 150}
    made = by(mode).create(response_model=Price, **ASKED, **limit)
    expect(isinstance(made, Price), f"it is {made!r}")


for each in MODES:
    client.capability(f"mode {each}")(lambda mode=each: in_mode(mode))


@client.capability("parallel tools")
def parallel() -> None:
    from collections.abc import Iterable

    made = list(by("PARALLEL_TOOLS").create(response_model=Iterable[Price], max_tokens=300, **ASKED))
    expect(made and all(isinstance(item, Price) for item in made), f"it is {made!r}")


@client.capability("parts streamed")
def parts() -> None:
    made = list(by("TOOLS").create_partial(response_model=Price, max_tokens=150, **ASKED))
    expect(made and made[-1].currency in ("EUR", "USD"), f"the last part is {made[-1:]}")


@client.capability("async")
async def asynchronous() -> None:
    api = instructor.from_openai(openai.AsyncOpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    expect(isinstance(await api.create(response_model=Price, max_tokens=150, **ASKED), Price), "there is no object")


client.main()
