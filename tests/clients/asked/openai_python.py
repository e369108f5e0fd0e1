"""OpenAI's Python package: chats, tools, parsed answers, responses, embeddings, asyncio; pictures and batches lie beside."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel

import openai_batches
import openai_pictures
from told import ANSWER, BASE, BRIEF, CITY, IMAGES, KEY, LLM, QUESTION, TOOLS, Client, expect

client = Client("openai-python", "openai")
api = openai.OpenAI()
MESSAGES: Any = [{"role": "user", "content": BRIEF}]


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    tiers: Literal[1, 2, 3]
    monthly: bool


class temperature(BaseModel):  # noqa: N801  # the function's name
    """Degrees in a city."""

    city: Literal["Paris", "Rome"]


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "Degrees in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@client.capability("models")
def models() -> None:
    expect({LLM, TOOLS, IMAGES} <= {model.id for model in api.models.list()}, "models.list leaves models out")
    expect(api.models.retrieve(LLM).id == LLM, "models.retrieve tells another model")


@client.capability("chat")
def chat() -> None:
    made = api.chat.completions.create(model=LLM, messages=MESSAGES, temperature=0, max_tokens=40)
    expect(made.choices[0].message.content, "the answer is empty")
    expect(made.usage and made.usage.completion_tokens == 40, "usage does not tell 40 tokens")


@client.capability("chat streamed")
def chat_streamed() -> None:
    """To the answer's own end: the package takes one that was cut for an error."""
    whole = api.chat.completions.create(model=LLM, messages=MESSAGES, temperature=0)
    with api.chat.completions.stream(
        model=LLM, messages=MESSAGES, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    expect(text == whole.choices[0].message.content == final.choices[0].message.content, "the parts are not the whole")
    told = final.usage.completion_tokens if final.usage else None
    expect(whole.usage and told == whole.usage.completion_tokens, f"the stream tells {told} tokens")


@client.capability("chat with choices and logprobs")
def choices() -> None:
    made = api.chat.completions.create(
        model=LLM, messages=MESSAGES, n=2, seed=3, stop=["</h2>"], max_tokens=20, logprobs=True, top_logprobs=2
    )
    expect([choice.index for choice in made.choices] == [0, 1], "there are not two answers")
    for choice in made.choices:
        expect(choice.logprobs and len((choice.logprobs.content or [])[0].top_logprobs) == 2, "two likeliest tokens are not told")


@client.capability("parse")
def parse() -> None:
    made = api.chat.completions.parse(model=LLM, messages=MESSAGES, response_format=Price, max_tokens=100)
    expect(isinstance(made.choices[0].message.parsed, Price), "no object was parsed")


@client.capability("parse of tools")
def parse_tools() -> None:
    made = api.chat.completions.parse(
        model=TOOLS,
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(temperature)],
        tool_choice="required",
        max_tokens=100,
    )
    calls = made.choices[0].message.tool_calls or []
    expect(calls and isinstance(calls[0].function.parsed_arguments, temperature), "no call was parsed")


@client.capability("tools in a loop")
def tools_loop() -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    first = api.chat.completions.create(model=TOOLS, messages=messages, tools=[TOOL], temperature=0, max_tokens=100)
    choice = first.choices[0]
    expect(choice.finish_reason == "tool_calls" and choice.message.tool_calls, f"it does not call: {choice.message.content!r}")
    call: Any = choice.message.tool_calls[0]  # type: ignore[index]
    expect(json.loads(call.function.arguments) == {"city": CITY}, f"the arguments are {call.function.arguments}")
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": ANSWER}]
    last = api.chat.completions.create(model=TOOLS, messages=messages, tools=[TOOL], temperature=0, max_tokens=100)
    expect(CITY in (last.choices[0].message.content or ""), f"the answer is {last.choices[0].message.content!r}")


@client.capability("tools streamed")
def tools_streamed() -> None:
    with api.chat.completions.stream(
        model=TOOLS, messages=[{"role": "user", "content": QUESTION}], tools=[TOOL], temperature=0, max_tokens=100
    ) as stream:
        kinds = [event.type for event in stream]
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    expect("tool_calls.function.arguments.delta" in kinds, f"no arguments are streamed, only {sorted(set(kinds))}")
    expect(calls and json.loads(calls[0].function.arguments) == {"city": CITY}, "the call is not whole")


@client.capability("one of several tools streamed")
def one_of_several() -> None:
    """Bound to their schemas, with or without leave to call several at once; the stream says what the whole says."""
    deep = {"type": "object", "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}}}
    strict = {"required": ["tags"], "additionalProperties": False}
    other = {"type": "function", "function": {"name": "other", "parameters": {**deep, **strict}, "strict": True}}
    tools = [TOOL, other, {"type": "function", "function": {"name": "nothing"}}]
    for several in (True, False):
        for choice in ("required", {"type": "function", "function": {"name": "other"}}):
            asked: Any = {"messages": MESSAGES, "tools": tools, "tool_choice": choice, "parallel_tool_calls": several}
            asked |= {"model": TOOLS, "temperature": 1.5, "seed": 1, "max_tokens": 300}
            whole = api.chat.completions.create(**asked).choices[0].message.tool_calls or []
            with api.chat.completions.stream(**asked) as stream:
                done = [(event.name, event.arguments) for event in stream if event.type == "tool_calls.function.arguments.done"]
            expect(done and done == [(call.function.name, call.function.arguments) for call in whole], f"{done}, {whole}")  # type: ignore[union-attr]


@client.capability("completions")
def completions() -> None:
    made = api.completions.create(model=LLM, prompt="<section", max_tokens=8, echo=True, logprobs=1)
    expect(made.choices[0].text.startswith("<section"), "echo does not give the prompt back")
    parts = api.completions.create(model=LLM, prompt=["<a", "<b"], max_tokens=8, stream=True)
    expect({choice.index for part in parts for choice in part.choices} == {0, 1}, "two prompts are not streamed")


@client.capability("responses")
def responses() -> None:
    first = api.responses.create(model=LLM, input=BRIEF, temperature=0, max_output_tokens=40)
    expect(first.output_text and first.status == "incomplete", f"status is {first.status}")
    second = api.responses.create(model=LLM, input="and two tiers", previous_response_id=first.id, max_output_tokens=10)
    expect(second.previous_response_id == first.id, "previous_response_id is not told")
    expect(api.responses.retrieve(first.id).output_text == first.output_text, "it is not kept")
    api.responses.delete(first.id)


@client.capability("tokens of an input counted")
def counted() -> None:
    asked: Any = {
        "model": TOOLS,
        "input": QUESTION,
        "tools": [{"type": "function", **TOOL["function"]}],
        "instructions": "Be brief.",
    }
    made = api.responses.create(max_output_tokens=5, **asked)
    told = api.responses.input_tokens.count(**asked).input_tokens
    expect(made.usage and told == made.usage.input_tokens, f"it tells {told} tokens")


@client.capability("responses streamed")
def responses_streamed() -> None:
    with api.responses.stream(model=LLM, input=BRIEF, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        expect(text == stream.get_final_response().output_text, "the parts are not the whole")


@client.capability("responses parsed")
def responses_parsed() -> None:
    made = api.responses.parse(model=LLM, input=BRIEF, text_format=Price, max_output_tokens=100)
    expect(isinstance(made.output_parsed, Price), "no object was parsed")


@client.capability("responses with tools")
def responses_tools() -> None:
    flat: Any = {"type": "function", **TOOL["function"], "strict": False}
    items: Any = [{"role": "user", "content": QUESTION}]
    first = api.responses.create(model=TOOLS, input=items, tools=[flat], temperature=0, max_output_tokens=100)
    calls: Any = [item for item in first.output if item.type == "function_call"]
    expect(len(calls) == 1, f"it does not call: {first.output_text!r}")
    items += [*first.output, {"type": "function_call_output", "call_id": calls[0].call_id, "output": ANSWER}]
    last = api.responses.create(model=TOOLS, input=items, tools=[flat], temperature=0, max_output_tokens=100)
    expect(CITY in last.output_text, f"the answer is {last.output_text!r}")


@client.capability("responses with tools streamed")
def responses_tools_streamed() -> None:
    """The second turn has the first one's call by previous_response_id alone."""
    flat: Any = {"type": "function", **TOOL["function"], "strict": False}
    with api.responses.stream(model=TOOLS, input=QUESTION, tools=[flat], temperature=0, max_output_tokens=100) as stream:
        parts = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
        first = stream.get_final_response()
    calls: Any = [item for item in first.output if item.type == "function_call"]
    expect(len(calls) == 1 and parts == calls[0].arguments, f"the parts are {parts!r}")
    expect(json.loads(parts) == {"city": CITY}, f"the arguments are {parts}")
    result: Any = [{"type": "function_call_output", "call_id": calls[0].call_id, "output": ANSWER}]
    last = api.responses.create(
        model=TOOLS, input=result, previous_response_id=first.id, tools=[flat], temperature=0, max_output_tokens=100
    )
    expect(CITY in last.output_text, f"the answer is {last.output_text!r}")


@client.capability("responses with a tool that must be called")
def responses_forced() -> None:
    made = api.responses.parse(
        model=TOOLS,
        input=BRIEF,
        tools=[openai.pydantic_function_tool(temperature)],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "temperature"},
        parallel_tool_calls=False,
        max_output_tokens=100,
    )
    calls: Any = [item for item in made.output if item.type == "function_call"]
    expect(len(calls) == 1, f"it calls {len(calls)} times")


@client.capability("embeddings")
def embeddings() -> None:
    """The package asks for base64 where nothing is said."""
    texts = ["a red circle", "pricing for a bakery"]
    made = api.embeddings.create(model=LLM, input=texts)
    expect([item.index for item in made.data] == [0, 1] and made.usage.prompt_tokens > 2, "two texts are not embedded")
    told = (api.models.retrieve(LLM).model_extra or {}).get("embedding_dimensions")
    expect([len(item.embedding) for item in made.data] == [told] * 2, f"the model tells {told} numbers")
    expect(made.data[0].embedding != made.data[1].embedding, "two texts have the same embedding")
    plain = api.embeddings.create(model=LLM, input=texts[1], encoding_format="float", dimensions=told)
    expect(plain.data[0].embedding == made.data[1].embedding, "a text alone, as numbers, has another embedding")
    try:
        api.embeddings.create(model=TOOLS, input=texts)
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found" and error.param == "model", f"code is {error.code}, param {error.param}")
    else:
        expect(False, "a model without embeddings gives some")
    try:
        api.embeddings.create(model=LLM, input=texts, dimensions=7)
    except openai.BadRequestError as error:
        expect(error.param == "dimensions", f"param is {error.param}")
    else:
        expect(False, "dimensions that the model has not are no error")


@client.capability("async")
async def with_asyncio() -> None:
    async with openai.AsyncOpenAI() as other:
        made = await other.chat.completions.create(model=LLM, messages=MESSAGES, max_tokens=8)
        expect(made.choices[0].message.content, "the answer is empty")
        stream = await other.chat.completions.create(model=LLM, messages=MESSAGES, max_tokens=8, stream=True)
        parts = [chunk async for chunk in stream]
        expect(parts[-1].choices[0].finish_reason == "length", "the stream does not end")
        vector = await other.embeddings.create(model=LLM, input="a red circle")
        expect(vector.data[0].embedding, "there is no embedding")
        picture = await other.images.generate(model=IMAGES, prompt="a blue square")
        expect(picture.data and picture.data[0].b64_json, "there is no picture")


@client.capability("errors by their classes")
def errors() -> None:
    try:
        api.chat.completions.create(model="nothing", messages=MESSAGES)
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found" and error.param == "model", f"code is {error.code}, param {error.param}")
    else:
        expect(False, "a model that is not served is no error")
    try:
        api.chat.completions.create(model=LLM, messages=MESSAGES, temperature=-1)
    except openai.BadRequestError as error:
        expect(error.param == "temperature", f"param is {error.param}")
    else:
        expect(False, "a wrong temperature is no error")
    try:
        openai.OpenAI(api_key=f"not {KEY}", base_url=BASE).models.list()
    except openai.AuthenticationError:
        return
    expect(False, "a wrong key is no error")


client.take(openai_pictures.client)
client.take(openai_batches.client)
client.main()
