"""outlines: its OpenAI and vLLM models, with types, choices, expressions and grammars."""

from __future__ import annotations

import re
from typing import Any, Literal

import openai
import outlines
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict

from told import BRIEF, LLM, Client, expect

client = Client("outlines", "outlines")


class Price(BaseModel):
    """Nothing else may be in it: what a schema leaves open, a small model fills."""

    model_config = ConfigDict(extra="forbid")

    currency: Literal["EUR", "USD"]
    monthly: bool


def ask(model: Any, form: Any) -> str:
    return str(model(BRIEF, form, temperature=0, max_tokens=100))


def vllm() -> Any:
    return outlines.from_vllm(openai.OpenAI(), LLM)


@client.capability("OpenAI model with a type")
def with_openai() -> None:
    Price.model_validate_json(ask(outlines.from_openai(openai.OpenAI(), LLM), Price))


@client.capability("vLLM model with a type")
def with_type() -> None:
    Price.model_validate_json(ask(vllm(), Price))


@client.capability("choices")
def choices() -> None:
    expect(ask(vllm(), Literal["left", "right"]) in ("left", "right"), "it is neither of two")


@client.capability("regular expressions")
def expressions() -> None:
    made = ask(vllm(), Regex("[0-9]{3}-[a-c]{2}"))
    expect(re.fullmatch("[0-9]{3}-[a-c]{2}", made), f"it is {made!r}")


@client.capability("grammars")
def grammars() -> None:
    made = ask(vllm(), CFG('start: "a" start "b" | "c"'))
    expect(re.fullmatch("a*cb*", made) and made.count("a") == made.count("b"), f"it is {made!r}")


@client.capability("streams")
def streams() -> None:
    made = "".join(vllm().stream(BRIEF, Literal["left", "right"], temperature=0, max_tokens=100))
    expect(made in ("left", "right"), f"it is {made!r}")


@client.capability("async")
async def asynchronous() -> None:
    model = outlines.from_vllm(openai.AsyncOpenAI(), LLM)
    Price.model_validate_json(await model(BRIEF, Price, temperature=0, max_tokens=100))


client.main()
