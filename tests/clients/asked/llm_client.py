"""The `llm` tool: prompts, streams, schemas, tools, completions, with the gateway in its extra-openai-models.yaml."""

from __future__ import annotations

import json

from told import ANSWER, BASE, BRIEF, CITY, FOLDER, LLM, QUESTION, TOOLS, Client, command, expect

client = Client("llm", "llm")
HOME = {"LLM_USER_PATH": str(FOLDER)}
SCHEMA = {
    "type": "object",
    "properties": {"currency": {"enum": ["EUR", "USD"]}, "monthly": {"type": "boolean"}},
    "required": ["currency", "monthly"],
    "additionalProperties": False,
}
MODELS = f"""- model_id: chat
  model_name: {LLM}
  api_base: {BASE}
  api_key_name: openai
  supports_schema: true
- model_id: caller
  model_name: {TOOLS}
  api_base: {BASE}
  api_key_name: openai
  supports_tools: true
- model_id: plain
  model_name: {LLM}
  api_base: {BASE}
  api_key_name: openai
  completion: true
"""
FUNCTION = f"""def temperature(city: str) -> str:
    "Degrees in a city."
    return "{ANSWER}" if city == "{CITY}" else "unknown"
"""
(FOLDER / "extra-openai-models.yaml").write_text(MODELS)


def ask(*words: str) -> str:
    return command("llm", *words, **HOME).strip()


@client.capability("prompt")
def prompt() -> None:
    expect("<" in ask("-m", "chat", "--no-stream", "-o", "temperature", "0", "-o", "max_tokens", "40", BRIEF), "there is no HTML")


@client.capability("prompt streamed")
def streamed() -> None:
    asked = ("-m", "chat", "-o", "temperature", "0", "-o", "max_tokens", "40", BRIEF)
    expect(ask(*asked) == ask("--no-stream", *asked), "the parts are not the whole")


@client.capability("conversation continued")
def continued() -> None:
    expect(ask("-c", "-o", "max_tokens", "20", "and two tiers"), "the answer is empty")


@client.capability("schema")
def schema() -> None:
    made = json.loads(ask("-m", "chat", "--schema", json.dumps(SCHEMA), "-o", "max_tokens", "100", BRIEF))
    expect(made.keys() == {"currency", "monthly"}, f"it is {made}")


@client.capability("tools")
def tools() -> None:
    said = ask("-m", "caller", "--functions", FUNCTION, "-o", "temperature", "0", "-o", "max_tokens", "100", QUESTION)
    expect(CITY in said, f"the answer is {said!r}")


@client.capability("completions")
def completions() -> None:
    expect(ask("-m", "plain", "-o", "max_tokens", "10", "<section"), "the answer is empty")


client.main()
