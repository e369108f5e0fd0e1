"""What a client's script says: one JSON line for each capability.

Standard library only, for it runs in the client's environment.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

GATEWAY, KEY = os.environ.get("NEREID_URL", ""), os.environ.get("OPENAI_API_KEY", "")
BASE = f"{GATEWAY}/v1"
TRITON_HTTP, TRITON_GRPC = os.environ.get("NEREID_TRITON_HTTP", ""), os.environ.get("NEREID_TRITON_GRPC", "")
LLM, TOOLS, IMAGES = "llm", "tools_llm", "text_to_image"
"""The zoo's language model, the same one taught to call tools, and its painter."""
CHECKPOINT, FOLDER = Path(os.environ.get("NEREID_CHECKPOINT", ".")), Path(os.environ.get("NEREID_FOLDER", "."))
"""The language model's checkpoint, and a folder for what a client writes."""
BRIEF = "pricing section for a bakery called Golden Lane, three tiers"
QUESTION, CITY, ANSWER = "What is the temperature in Paris?", "Paris", "17"
"""What the model with tools was taught: it asks `temperature` for the city, and answers in a sentence about it.

Six million parameters do not copy the number: that a loop closes is what is looked at."""


class FaultError(Exception):
    """Something does not work; its sentence is told."""


def expect(truth: object, sentence: str) -> None:
    if not truth:
        raise FaultError(sentence)


def command(*words: object, seconds: float = 240, **environment: str) -> str:
    """What a program of this environment says; raises FaultError with the end of it where it fails."""
    program = Path(sys.prefix) / "bin" / str(words[0])
    done = subprocess.run(
        [str(program), *map(str, words[1:])],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **environment},
        cwd=FOLDER,
        check=False,
    )
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode:
        sys.stderr.write(said)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise FaultError(f"{words[0]} ends with {done.returncode}: {' '.join(lines[-2:])}")
    return said


@dataclass
class Client:
    """The capabilities of one client, each a function that raises where it does not work."""

    name: str
    distribution: str
    _asked: list[tuple[str, Callable[[], Any]]] = field(default_factory=list)

    def capability(self, name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        def keep(ask: Callable[[], Any]) -> Callable[[], Any]:
            self._asked.append((name, ask))
            return ask

        return keep

    def take(self, other: Client) -> None:
        """What another file asks of the same client comes after what is here."""
        self._asked += other._asked

    def main(self) -> None:
        """Ask all, say each, exit with 1 where one does not work. Words of the command line choose capabilities."""
        broken = 0
        for name, ask in self._asked:
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            why = ""
            try:
                made = ask()
                if inspect.isawaitable(made):
                    asyncio.run(_whole(made))
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines() or [""]
                why = lines[0] if isinstance(error, FaultError) else f"{type(error).__name__}: {lines[0]}"
                broken += 1
            line = {"client": self.name, "version": version(self.distribution), "capability": name, "works": not why}
            # On a line of its own, whatever a client has left on the last one.
            print(f"\n{json.dumps({**line, 'why': why[:300]})}", flush=True)
        sys.exit(1 if broken else 0)


async def _whole(made: Any) -> Any:
    return await made
