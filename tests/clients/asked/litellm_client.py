"""litellm: completion, streamed, with tools, structured; text completions, pictures, responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel

from told import ANSWER, BASE, BRIEF, CITY, IMAGES, KEY, LLM, QUESTION, TOOLS, Client, expect

client = Client("litellm", "litellm")
WHERE: Any = {"api_base": BASE, "api_key": KEY, "max_retries": 0}
MESSAGES = [{"role": "user", "content": BRIEF}]
TOOL = {
    "type": "function",
    "function": {
        "name": "temperature",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    monthly: bool


@client.capability("completion")
def completion() -> None:
    for provider in ("openai", "hosted_vllm"):
        made: Any = litellm.completion(f"{provider}/{LLM}", messages=MESSAGES, temperature=0, max_tokens=20, **WHERE)
        expect(made.choices[0].message.content and made.usage.completion_tokens == 20, f"{provider}: the answer is empty")


@client.capability("completion streamed")
def streamed() -> None:
    whole: Any = litellm.completion(f"openai/{LLM}", messages=MESSAGES, temperature=0, max_tokens=30, **WHERE)
    parts: Any = litellm.completion(
        f"openai/{LLM}",
        messages=MESSAGES,
        temperature=0,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
        **WHERE,
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    expect(text == whole.choices[0].message.content, "the parts are not the whole")


@client.capability("async")
async def asynchronous() -> None:
    made: Any = await litellm.acompletion(f"openai/{LLM}", messages=MESSAGES, max_tokens=5, **WHERE)
    expect(made.choices[0].message.content, "the answer is empty")


@client.capability("structured output")
def structured() -> None:
    made: Any = litellm.completion(f"openai/{LLM}", messages=MESSAGES, response_format=Price, max_tokens=100, **WHERE)
    Price.model_validate_json(made.choices[0].message.content)


@client.capability("tools in a loop")
def tools() -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    asked = {"tools": [TOOL], "temperature": 0, "max_tokens": 100, **WHERE}
    first: Any = litellm.completion(f"openai/{TOOLS}", messages=messages, **asked)
    calls = first.choices[0].message.tool_calls or []
    expect(len(calls) == 1, f"it does not call: {first.choices[0].message.content!r}")
    expect(json.loads(calls[0].function.arguments) == {"city": CITY}, f"arguments are {calls[0].function.arguments}")
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": calls[0].id, "content": ANSWER}]
    last: Any = litellm.completion(f"openai/{TOOLS}", messages=messages, **asked)
    expect(CITY in (last.choices[0].message.content or ""), f"the answer is {last.choices[0].message.content!r}")


@client.capability("text completion")
def text_completion() -> None:
    made: Any = litellm.text_completion("<section", f"text-completion-openai/{LLM}", max_tokens=8, **WHERE)
    expect(made.choices[0].text, "the answer is empty")


@client.capability("images")
def images() -> None:
    made: Any = litellm.image_generation("a red circle", f"openai/{IMAGES}", **WHERE)
    expect(made.data[0].b64_json, "there is no picture")


@client.capability("responses")
def responses() -> None:
    made: Any = litellm.responses(BRIEF, f"openai/{LLM}", max_output_tokens=10, **WHERE)
    expect(made.output[0].content[0].text, "the answer is empty")


@client.capability("errors by their classes")
def errors() -> None:
    try:
        litellm.completion("openai/nothing", messages=MESSAGES, **WHERE)
    except litellm.NotFoundError:
        return
    expect(False, "a model that is not served is no NotFoundError")


client.main()
