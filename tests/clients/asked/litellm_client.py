"""litellm: completion, streamed, with tools, structured; text completions, embeddings, pictures, masks, responses, batches."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, Literal

import litellm
from pydantic import BaseModel

from halves import DRAWN, DRAWN_ANEW, expect_left_drawn_anew, see_through
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


@client.capability("embeddings")
async def embeddings() -> None:
    found = []
    for provider in ("openai", "hosted_vllm"):
        made: Any = litellm.embedding(f"{provider}/{LLM}", input=[BRIEF, QUESTION], **WHERE)
        expect([item["index"] for item in made.data] == [0, 1], f"{provider}: two texts are not embedded")
        expect(made.usage.prompt_tokens > 2, f"{provider}: usage is not told")
        found += [item["embedding"] for item in made.data]
    expect(found[0] == found[2] and found[1] == found[3] and found[0] != found[1], "embeddings are not the text's own")
    other: Any = await litellm.aembedding(f"openai/{LLM}", input=BRIEF, encoding_format="float", **WHERE)
    expect(other.data[0]["embedding"] == found[0], "a text alone, with asyncio, has another embedding")


@client.capability("images")
def images() -> None:
    made: Any = litellm.image_generation("a red circle", f"openai/{IMAGES}", **WHERE)
    expect(made.data[0].b64_json, "there is no picture")


@client.capability("images edited with a mask")
def masks() -> None:
    drawn: Any = litellm.image_generation(DRAWN, f"openai/{IMAGES}", **WHERE)
    before = base64.b64decode(drawn.data[0].b64_json)
    made: Any = litellm.image_edit(before, DRAWN_ANEW, f"openai/{IMAGES}", mask=see_through(before), **WHERE)
    expect_left_drawn_anew(before, base64.b64decode(made.data[0].b64_json))


@client.capability("responses")
def responses() -> None:
    made: Any = litellm.responses(BRIEF, f"openai/{LLM}", max_output_tokens=10, **WHERE)
    expect(made.output[0].content[0].text, "the answer is empty")


@client.capability("responses with tools")
def responses_tools() -> None:
    flat = {"type": "function", **TOOL["function"]}
    asked = {"tools": [flat], "temperature": 0, "max_output_tokens": 100, **WHERE}
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    first: Any = litellm.responses(items, f"openai/{TOOLS}", **asked)
    calls = [item for item in first.output if item.type == "function_call"]
    expect(len(calls) == 1 and json.loads(calls[0].arguments) == {"city": CITY}, f"calls are {calls}")
    events: Any = litellm.responses(items, f"openai/{TOOLS}", stream=True, **asked)
    parts = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    expect(parts == calls[0].arguments, f"the parts are {parts!r}")
    items += [calls[0].model_dump(), {"type": "function_call_output", "call_id": calls[0].call_id, "output": ANSWER}]
    last: Any = litellm.responses(items, f"openai/{TOOLS}", **asked)
    said = last.output[0].content[0].text
    expect(CITY in said, f"the answer is {said!r}")


@client.capability("files and batches")
def batches() -> None:
    where: Any = {"custom_llm_provider": "openai", **WHERE}
    body = {"model": LLM, "messages": MESSAGES, "max_tokens": 4}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    sent: Any = litellm.create_file(file=("requests.jsonl", json.dumps(line).encode()), purpose="batch", **where)
    batch: Any = litellm.create_batch(completion_window="24h", endpoint="/v1/chat/completions", input_file_id=sent.id, **where)
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "expired") and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = litellm.retrieve_batch(batch.id, **where)
    expect(batch.status == "completed" and batch.output_file_id, f"the batch is {batch.status}")
    answer = json.loads(litellm.file_content(batch.output_file_id, **where).content)
    expect(answer["response"]["status_code"] == 200, "the answer is not there")


@client.capability("errors by their classes")
def errors() -> None:
    try:
        litellm.completion("openai/nothing", messages=MESSAGES, **WHERE)
    except litellm.NotFoundError:
        return
    expect(False, "a model that is not served is no NotFoundError")


client.main()
