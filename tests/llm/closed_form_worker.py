"""A worker whose model is known in closed form; its settings make it slow, or deadly at a given token."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from test_requests import FACTS, WORDS

from nereid.engines.worker_main import Seat
from nereid.llm.loading import LoadedModel
from nereid.llm.prefix_cache import PrefixCache
from nereid.llm.rows import KvRows
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.worker import LlmLoop

from closed_form import ClosedFormEngine

POISON = 48
"""A prompt that begins with this token ends the process at its first decode call; with 47, the loop hangs."""


class SlowEngine(ClosedFormEngine):
    """Two milliseconds a call, so that there is time to interfere."""

    def decode(self, *arguments: Any) -> Any:
        time.sleep(0.002)
        firsts = [int(row[0, 0, 0]) for row in self.memory[: len(arguments[0])]]
        if POISON in firsts:
            os._exit(9)
        if POISON - 1 in firsts:
            time.sleep(600)
        return super().decode(*arguments)


@dataclass(slots=True)
class OneToken:
    """A grammar whose only answer is one token."""

    token: int
    kind: str
    vocabulary: int = 50

    def copy(self) -> OneToken:
        return self

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(self.vocabulary) == self.token

    def take(self, token: int) -> bool:
        return True


class Grammars:
    """Answers tell how many grammars were compiled; `grammar` stands for a compiler in native code that comes to no end."""

    compiled = 0

    def compile(self, kind: str, value: object, whitespace: str | None) -> OneToken:
        if kind == "grammar":
            time.sleep(600)
        self.compiled += 1
        return OneToken(self.compiled, kind)


def run(seat: Seat) -> None:
    facts = LlmFacts(**{**{name: getattr(FACTS, name) for name in LlmFacts.__slots__}, "context_length": 2000})
    limits = LlmLimits(**seat.settings["limits"])
    cache = PrefixCache(limits.prefix_cache_megabytes * 2**20)
    engine = SlowEngine(16_384)
    LlmLoop(
        seat=seat,
        facts=facts,
        limits=limits,
        model=LoadedModel(KvRows(engine, cache, limits.max_rows, facts.context_length), engine.vocabulary),
        tokenizer=WORDS,
        structures=Grammars(),  # type: ignore[arg-type]
        grammar_seconds=1.0,
    ).run()
