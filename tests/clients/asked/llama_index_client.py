"""LlamaIndex: complete, chat, streams, structured output, a function agent, responses, embeddings, through OpenAILike."""

from __future__ import annotations

from typing import Any, Literal

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from pydantic import BaseModel

from told import ANSWER, BASE, BRIEF, CITY, KEY, LLM, QUESTION, TOOLS, Client, expect

client = Client("LlamaIndex", "llama-index-core")


class Price(BaseModel):
    """What a section's price list has."""

    currency: Literal["EUR", "USD"]
    monthly: bool


def temperature(city: str) -> str:
    """Degrees in a city."""
    return ANSWER if city == CITY else "unknown"


def model(name: str = LLM, **options: Any) -> OpenAILike:
    asked: dict[str, Any] = {"is_chat_model": True, "temperature": 0, "max_tokens": 150, "max_retries": 0, **options}
    return OpenAILike(model=name, api_base=BASE, api_key=KEY, context_window=2048, **asked)


@client.capability("chat")
def chat() -> None:
    expect(model().chat([ChatMessage(role="user", content=BRIEF)]).message.content, "the answer is empty")


@client.capability("chat streamed")
def streamed() -> None:
    messages = [ChatMessage(role="user", content=BRIEF)]
    text = "".join(part.delta or "" for part in model().stream_chat(messages))
    expect(text == model().chat(messages).message.content, "the parts are not the whole")


@client.capability("completions")
def completions() -> None:
    other = model(is_chat_model=False)
    text = "".join(part.delta or "" for part in other.stream_complete("<section"))
    expect(text and text == other.complete("<section").text, "the parts are not the whole")


@client.capability("async")
async def asynchronous() -> None:
    made = await model().achat([ChatMessage(role="user", content=BRIEF)])
    expect(made.message.content, "the answer is empty")


@client.capability("structured output by a tool")
def structured() -> None:
    made = model(TOOLS, is_function_calling_model=True).as_structured_llm(Price).complete(BRIEF)
    expect(isinstance(made.raw, Price), f"it is {made.raw!r}")


@client.capability("structured output by json_schema")
def by_schema() -> None:
    made = model(should_use_structured_outputs=True).as_structured_llm(Price).complete(BRIEF)
    expect(isinstance(made.raw, Price), f"it is {made.raw!r}")


@client.capability("tools")
def tools() -> None:
    made = model(TOOLS, is_function_calling_model=True)
    calls = made.get_tool_calls_from_response(made.chat_with_tools([FunctionTool.from_defaults(temperature)], QUESTION))
    expect([call.tool_kwargs for call in calls] == [{"city": CITY}], f"calls are {calls}")


@client.capability("agent")
async def agent() -> None:
    made = await FunctionAgent(tools=[temperature], llm=model(TOOLS, is_function_calling_model=True)).run(QUESTION)
    expect(CITY in str(made), f"the answer is {str(made)!r}")
    expect([call.tool_kwargs for call in made.tool_calls] == [{"city": CITY}], f"calls are {made.tool_calls}")


def over_responses(name: str, **options: Any) -> OpenAILikeResponses:
    asked: dict[str, Any] = {"temperature": 0, "max_output_tokens": 150, "max_retries": 0, **options}
    return OpenAILikeResponses(model=name, api_base=BASE, api_key=KEY, context_window=2048, **asked)


@client.capability("responses API")
def responses() -> None:
    messages = [ChatMessage(role="user", content=BRIEF)]
    made = over_responses(LLM).chat(messages).message.content
    expect(made, "the answer is empty")
    text = "".join(part.delta or "" for part in over_responses(LLM).stream_chat(messages))
    expect(text == made, "the parts are not the whole")


@client.capability("agent over responses")
async def responses_agent() -> None:
    made = await FunctionAgent(tools=[temperature], llm=over_responses(TOOLS, is_function_calling_model=True)).run(QUESTION)
    expect(CITY in str(made), f"the answer is {str(made)!r}")
    expect([call.tool_kwargs for call in made.tool_calls] == [{"city": CITY}], f"calls are {made.tool_calls}")


@client.capability("embeddings")
async def embeddings() -> None:
    texts = OpenAILikeEmbedding(model_name=LLM, api_base=BASE, api_key=KEY, max_retries=0)
    made = texts.get_text_embedding_batch([BRIEF, QUESTION])
    expect(len(made) == 2 and made[0] != made[1], "two texts are not embedded")
    expect(texts.get_query_embedding(QUESTION) == made[1], "a text alone has another embedding")
    expect(await texts.aget_text_embedding_batch([BRIEF, QUESTION]) == made, "asyncio gives others")


@client.capability("retrieval from an index")
def index() -> None:
    """A text finds itself among others: their embeddings are equal, whatever the model knows."""
    texts = OpenAILikeEmbedding(model_name=LLM, api_base=BASE, api_key=KEY, max_retries=0)
    documents = [Document(text=text) for text in (BRIEF, QUESTION, "a red circle")]
    found = VectorStoreIndex.from_documents(documents, embed_model=texts).as_retriever(similarity_top_k=1).retrieve(QUESTION)
    expect([item.text for item in found] == [QUESTION], f"it finds {[item.text for item in found]}")


client.main()
