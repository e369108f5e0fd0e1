"""pydantic-ai: text, streams, output by tool, by schema and by prompt, an agent with a tool, the responses API, embeddings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, Embedder, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelContextWindowExceededError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from told import ANSWER, BASE, BRIEF, CITY, KEY, LLM, QUESTION, TOOLS, Client, expect

client = Client("pydantic-ai", "pydantic-ai-slim")
SETTINGS: Any = {"temperature": 0, "max_tokens": 150}


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    tiers: Literal[1, 2, 3]
    monthly: bool


class Listed(BaseModel):
    names: list[Literal["a", "b"]] = Field(min_length=1, max_length=2)


class Loose(BaseModel):
    """Any object: a prompt binds nothing."""

    currency: Any = None


def agent(name: str = LLM, kind: Any = OpenAIChatModel, **options: Any) -> Agent[None, Any]:
    provider = OpenAIProvider(base_url=BASE, api_key=KEY)
    return Agent(kind(name, provider=provider), model_settings=SETTINGS, retries=0, **options)


@client.capability("run")
def run() -> None:
    made = agent().run_sync(BRIEF)
    expect(made.output, "the answer is empty")


@client.capability("run streamed")
async def streamed() -> None:
    async with agent().run_stream(BRIEF) as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    expect("".join(parts) == (await agent().run(BRIEF)).output, "the parts are not the whole")


@client.capability("output by tool")
def by_tool() -> None:
    made = agent(TOOLS, output_type=ToolOutput(Price)).run_sync(BRIEF)
    expect(isinstance(made.output, Price), f"it is {made.output!r}")


@client.capability("output by schema")
def by_schema() -> None:
    made = agent(output_type=NativeOutput(Price)).run_sync(BRIEF)
    expect(isinstance(made.output, Price), f"it is {made.output!r}")


@client.capability("output by prompt")
def by_prompt() -> None:
    made = agent(TOOLS, output_type=PromptedOutput(Loose)).run_sync(BRIEF)
    expect(isinstance(made.output, Loose), f"it is {made.output!r}")


@client.capability("output streamed by its types")
async def streamed_types() -> None:
    """By a tool, by one of two tools, and by schemas, over chat completions and over responses."""
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        for form in (Price, [Price, Listed], NativeOutput(Price), NativeOutput([Price, Listed]), bool):
            async with agent(TOOLS, kind, output_type=form).run_stream(BRIEF) as result:
                parts = [part async for part in result.stream_output(debounce_by=None)]
                whole = await result.get_output()
            expect(isinstance(whole, Price | Listed | bool) and parts[-1] == whole, f"{form}: it is {whole!r} after {parts}")


@client.capability("a context that is too long")
def overflow() -> None:
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        try:
            agent(kind=kind).run_sync(BRIEF * 500)
        except ModelContextWindowExceededError:
            continue
        expect(False, "it is no error")


def loop(kind: Any) -> None:
    asked: list[str] = []
    made_of = agent(TOOLS, kind)

    @made_of.tool_plain
    def temperature(city: str) -> str:
        """Degrees in a city."""
        asked.append(city)
        return ANSWER

    made = made_of.run_sync(QUESTION)
    expect(asked == [CITY], f"the tool was asked for {asked}")
    expect(CITY in made.output, f"the answer is {made.output!r}")


@client.capability("agent with a tool")
def with_tool() -> None:
    loop(OpenAIChatModel)


@client.capability("responses API")
def responses() -> None:
    expect(agent(kind=OpenAIResponsesModel).run_sync(BRIEF).output, "the answer is empty")
    made = agent(kind=OpenAIResponsesModel, output_type=NativeOutput(Price)).run_sync(BRIEF)
    expect(isinstance(made.output, Price), f"it is {made.output!r}")


@client.capability("agent with a tool over responses")
def with_tool_over_responses() -> None:
    loop(OpenAIResponsesModel)


@client.capability("embeddings")
async def embeddings() -> None:
    texts = Embedder(OpenAIEmbeddingModel(LLM, provider=OpenAIProvider(base_url=BASE, api_key=KEY)))
    made = await texts.embed_documents([BRIEF, QUESTION])
    expect(len(made.embeddings) == 2 and made.usage.input_tokens > 2, "two texts are not embedded, or usage is not told")
    alone = await texts.embed_query(QUESTION)
    expect(list(alone.embeddings[0]) == list(made[QUESTION]), "a text alone has another embedding")


client.main()
