"""LangChain: invoke, stream, structured output by all methods, tools, an agent and its events, the responses API, embeddings."""

from __future__ import annotations

from typing import Any, Literal

from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from told import ANSWER, BRIEF, CITY, LLM, QUESTION, TOOLS, Client, expect

client = Client("LangChain", "langchain")


class Price(BaseModel):
    """What a section's price list has."""

    currency: Literal["EUR", "USD"]
    tiers: Literal[1, 2, 3]
    monthly: bool


@tool
def temperature(city: str) -> str:
    """Degrees in a city."""
    return ANSWER if city == CITY else "unknown"


def model(name: str = LLM, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, temperature=0, max_tokens=150, max_retries=0, **options)


@client.capability("invoke")
def invoke() -> None:
    made = model().invoke(BRIEF)
    expect(made.content and made.usage_metadata, "the answer is empty, or tells no usage")


@client.capability("stream")
def stream() -> None:
    whole = model().invoke(BRIEF).content
    expect("".join(str(part.content) for part in model().stream(BRIEF)) == whole, "the parts are not the whole")


@client.capability("async and batch")
async def asynchronous() -> None:
    made = await model().abatch([BRIEF, BRIEF])
    expect(len(made) == 2 and made[0].content == made[1].content, "there are not two equal answers")
    parts = [part async for part in model().astream(BRIEF)]
    expect("".join(str(part.content) for part in parts) == made[0].content, "the parts are not the whole")


@client.capability("structured output by json_schema")
def by_schema() -> None:
    made = model().with_structured_output(Price, method="json_schema").invoke(BRIEF)
    expect(isinstance(made, Price), f"it is {made!r}")


@client.capability("structured output by function_calling")
def by_function() -> None:
    made = model(TOOLS).with_structured_output(Price, method="function_calling").invoke(BRIEF)
    expect(isinstance(made, Price), f"it is {made!r}")


@client.capability("structured output by json_mode")
def by_json() -> None:
    """Any object: nothing binds the answer to a schema."""
    made = model(TOOLS).with_structured_output(None, method="json_mode").invoke(f"{BRIEF}. Answer in JSON.")
    expect(isinstance(made, dict), f"it is {made!r}")


@client.capability("tools")
def tools() -> None:
    made = model(TOOLS).bind_tools([temperature]).invoke(QUESTION)
    expect([call["args"] for call in made.tool_calls] == [{"city": CITY}], f"calls are {made.tool_calls}")
    forced = model(TOOLS).bind_tools([temperature], tool_choice="temperature").invoke(BRIEF)
    expect([call["name"] for call in forced.tool_calls] == ["temperature"], f"calls are {forced.tool_calls}")


@client.capability("tools streamed")
def tools_streamed() -> None:
    whole: Any = None
    for part in model(TOOLS).bind_tools([temperature]).stream(QUESTION):
        whole = part if whole is None else whole + part
    expect([call["args"] for call in whole.tool_calls] == [{"city": CITY}], f"calls are {whole.tool_calls}")


@client.capability("agent")
def agent() -> None:
    made = create_agent(model(TOOLS), [temperature]).invoke({"messages": [{"role": "user", "content": QUESTION}]})
    kinds = [message.type for message in made["messages"]]
    expect(kinds == ["human", "ai", "tool", "ai"], f"messages are {kinds}")
    expect(CITY in made["messages"][-1].text, f"the answer is {made['messages'][-1].text!r}")


@client.capability("agent's events streamed")
async def agent_events() -> None:
    """Over chat completions and over responses. Connections of asyncio are kept by their options, and outlive their loop."""
    for over in (False, True):
        kinds, text = set(), ""
        asked = {"messages": [{"role": "user", "content": QUESTION}]}
        made = create_agent(model(TOOLS, use_responses_api=over, timeout=90), [temperature])
        async for event in made.astream_events(asked, version="v2"):
            kinds.add(event["event"])
            if event["event"] == "on_chat_model_stream":
                text += event["data"]["chunk"].text
        expect({"on_tool_start", "on_tool_end"} <= kinds and CITY in text, f"events are {sorted(kinds)}, the answer {text!r}")


@client.capability("a context that is too long")
def overflow() -> None:
    """It is told by a class of its own, after which a middleware summarises."""
    for over in (False, True):
        try:
            model(use_responses_api=over).invoke(BRIEF * 500)
        except ContextOverflowError:
            continue
        expect(False, "it is no error")


@client.capability("responses API")
def responses() -> None:
    made = model(use_responses_api=True).invoke(BRIEF)
    expect(made.text, "the answer is empty")
    parts = list(model(use_responses_api=True).stream(BRIEF))
    expect("".join(part.text for part in parts) == made.text, "the parts are not the whole")


@client.capability("responses API with tools")
def responses_tools() -> None:
    made = model(TOOLS, use_responses_api=True).bind_tools([temperature]).invoke(QUESTION)
    expect([call["args"] for call in made.tool_calls] == [{"city": CITY}], f"calls are {made.tool_calls}")
    whole: Any = None
    for part in model(TOOLS, use_responses_api=True).bind_tools([temperature]).stream(QUESTION):
        whole = part if whole is None else whole + part
    expect([call["args"] for call in whole.tool_calls] == [{"city": CITY}], f"streamed calls are {whole.tool_calls}")
    typed = model(use_responses_api=True).with_structured_output(Price, method="json_schema").invoke(BRIEF)
    expect(isinstance(typed, Price), f"it is {typed!r}")


@client.capability("agent over responses")
def responses_agent() -> None:
    """The second call has the first one's answer by previous_response_id alone."""
    over = model(TOOLS, use_responses_api=True, use_previous_response_id=True)
    made = create_agent(over, [temperature]).invoke({"messages": [{"role": "user", "content": QUESTION}]})
    kinds = [message.type for message in made["messages"]]
    expect(kinds == ["human", "ai", "tool", "ai"], f"messages are {kinds}")
    expect(CITY in made["messages"][-1].text, f"the answer is {made['messages'][-1].text!r}")


@client.capability("embeddings")
async def embeddings() -> None:
    """Texts as they are: where nothing is said it sends the tokens of OpenAI's own models."""
    texts = OpenAIEmbeddings(model=LLM, check_embedding_ctx_length=False, max_retries=0)
    made = texts.embed_documents([BRIEF, QUESTION])
    expect(len(made) == 2 and made[0] != made[1], "two texts are not embedded")
    expect(texts.embed_query(QUESTION) == made[1], "a text alone has another embedding")
    expect(await texts.aembed_documents([BRIEF, QUESTION]) == made, "asyncio gives others")


client.main()
