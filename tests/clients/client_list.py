"""The clients that are run, in the order of the table; each has a script in asked/ and pinned versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One client.

    Attributes:
        script: its file in asked/.
        environment: its file in requirements/ without .txt, or its folder in node/.
        beside: further files in asked/ that its script reads or imports.
        seconds: how long it may take.
        sees_project: whether its environment sees the project's packages as well: torch and transformers are large.
    """

    name: str
    script: str
    environment: str
    beside: tuple[str, ...] = ()
    seconds: float = 300
    sees_project: bool = False

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def pins(self) -> Path:
        """The file that says every version of its environment."""
        if self.is_node:
            return HERE / "node" / self.environment / "package-lock.json"
        return HERE / "requirements" / f"{self.environment}.txt"

    @property
    def asked(self) -> str:
        """A digest of what it is asked, and of the versions that are: what was seen of others says nothing of these."""
        files = [*(HERE / "asked" / name for name in (self.script, *self.beside)), self.pins]
        return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


CLIENTS = (
    Listed(
        name="openai-python",
        script="openai_python.py",
        environment="openai-python",
        beside=("openai_pictures.py", "openai_batches.py", "halves.py"),
        seconds=600,
    ),
    Listed(name="LangChain", script="langchain_client.py", environment="langchain"),
    Listed(name="litellm", script="litellm_client.py", environment="litellm", beside=("halves.py",)),
    Listed(name="instructor", script="instructor_client.py", environment="instructor"),
    Listed(name="pydantic-ai", script="pydantic_ai_client.py", environment="pydantic-ai"),
    Listed(name="LlamaIndex", script="llama_index_client.py", environment="llama-index"),
    Listed(name="lm-evaluation-harness", script="lm_eval_client.py", environment="lm-eval", seconds=900, sees_project=True),
    Listed(name="llm", script="llm_client.py", environment="llm"),
    Listed(name="DSPy", script="dspy_client.py", environment="dspy"),
    Listed(name="outlines", script="outlines_client.py", environment="outlines"),
    Listed(name="OpenAI Agents SDK", script="agents_client.py", environment="openai-agents"),
    Listed(name="tritonclient", script="tritonclient_client.py", environment="tritonclient"),
    Listed(name="openai-node", script="openai_node.mjs", environment="openai", beside=("halves.mjs",)),
    Listed(name="Vercel AI SDK", script="ai_sdk.mjs", environment="ai-sdk", beside=("halves.mjs",)),
    Listed(name="guidellm", script="guidellm_client.py", environment="guidellm", seconds=600, sees_project=True),
    Listed(name="llama-benchy", script="llama_benchy_client.py", environment="llama-benchy", seconds=600),
    Listed(name="AIPerf", script="aiperf_client.py", environment="aiperf", seconds=900),
    Listed(name="genai-perf", script="genai_perf_client.py", environment="genai-perf", seconds=600),
    Listed(name="vLLM's benchmark client", script="vllm_bench_client.py", environment="vllm", sees_project=True),
    Listed(name="webuiapi", script="webuiapi_client.py", environment="webuiapi", beside=("halves.py",)),
    Listed(
        name="schemathesis",
        script="schemathesis_client.py",
        environment="schemathesis",
        beside=("schemathesis_hooks.py",),
        seconds=3000,
    ),
)
