"""OpenAI's Agents SDK: an agent whose loop closes, over both of its models, and typed output."""

from __future__ import annotations

from typing import Any, Literal

import agents
import openai
from pydantic import BaseModel

from told import ANSWER, BRIEF, CITY, LLM, QUESTION, TOOLS, Client, expect

client = Client("OpenAI Agents SDK", "openai-agents")
agents.set_tracing_disabled(True)
SETTINGS = agents.ModelSettings(temperature=0, max_tokens=150)
KINDS: dict[str, Any] = {"chat completions": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}


class Price(BaseModel):
    currency: Literal["EUR", "USD"]
    monthly: bool


@agents.function_tool
def temperature(city: str) -> str:
    """Degrees in a city."""
    return ANSWER if city == CITY else "unknown"


def model(kind: str, name: str) -> Any:
    return KINDS[kind](model=name, openai_client=openai.AsyncOpenAI())


async def loop(kind: str) -> None:
    agent = agents.Agent(name="asker", model=model(kind, TOOLS), model_settings=SETTINGS, tools=[temperature])
    made = await agents.Runner.run(agent, QUESTION)
    expect(CITY in made.final_output, f"the answer is {made.final_output!r}")


async def streamed(kind: str) -> None:
    agent = agents.Agent(name="asker", model=model(kind, TOOLS), model_settings=SETTINGS, tools=[temperature])
    made = agents.Runner.run_streamed(agent, QUESTION)
    kinds = [event.item.type async for event in made.stream_events() if event.type == "run_item_stream_event"]
    expect(kinds == ["tool_call_item", "tool_call_output_item", "message_output_item"], f"items are {kinds}")


async def typed(kind: str) -> None:
    agent = agents.Agent(name="asker", model=model(kind, LLM), model_settings=SETTINGS, output_type=Price)
    made = await agents.Runner.run(agent, BRIEF)
    expect(isinstance(made.final_output, Price), f"it is {made.final_output!r}")


for each in KINDS:
    client.capability(f"agent over {each}")(lambda kind=each: loop(kind))
    client.capability(f"agent over {each} streamed")(lambda kind=each: streamed(kind))
    client.capability(f"typed output over {each}")(lambda kind=each: typed(kind))

client.main()
