"""DSPy: a call, signatures by its JSON adapter, typed output, the responses API, embeddings."""

from __future__ import annotations

from typing import Any, Literal

import dspy
import litellm

from told import BASE, BRIEF, KEY, LLM, Client, expect

client = Client("DSPy", "dspy")
# As DSPy's users say it of a model that litellm does not know: answers may be bound by schemas.
litellm.register_model({f"openai/{LLM}": {"litellm_provider": "openai", "mode": "chat", "supports_response_schema": True}})


class Price(dspy.Signature):
    """Currency and tiers of a section's price list."""

    brief: str = dspy.InputField()
    currency: Literal["EUR", "USD"] = dspy.OutputField()
    monthly: bool = dspy.OutputField()


def model(name: str = LLM, **options: Any) -> dspy.LM:
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": 200, "cache": False, "num_retries": 0, **options}
    return dspy.LM(f"openai/{name}", api_base=BASE, api_key=KEY, **asked)


@client.capability("call")
def call() -> None:
    expect(model()(BRIEF)[0], "the answer is empty")


@client.capability("text model")
def text() -> None:
    expect(model(model_type="text")("<section")[0], "the answer is empty")


@client.capability("Predict with the JSON adapter")
def predict() -> None:
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()):
        made = dspy.Predict(Price)(brief=BRIEF)
    expect(made.currency in ("EUR", "USD") and isinstance(made.monthly, bool), f"it is {made!r}")


@client.capability("Predict with the default adapter")
def default() -> None:
    with dspy.context(lm=model()):
        made = dspy.Predict(Price)(brief=BRIEF)
    expect(made.currency in ("EUR", "USD"), f"it is {made!r}")


@client.capability("async")
async def asynchronous() -> None:
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()):
        made = await dspy.Predict(Price).acall(brief=BRIEF)
    expect(made.currency in ("EUR", "USD"), f"it is {made!r}")


@client.capability("responses API")
def responses() -> None:
    expect(model(model_type="responses")(BRIEF)[0], "the answer is empty")


@client.capability("embeddings")
async def embeddings() -> None:
    texts = dspy.Embedder(f"openai/{LLM}", api_base=BASE, api_key=KEY, caching=False)
    made = texts([BRIEF, "a red circle"])
    expect(made.shape[0] == 2 and (made[0] != made[1]).any(), "two texts are not embedded")
    expect((await texts.acall(BRIEF) == made[0]).all(), "a text alone, with asyncio, has another embedding")


client.main()
