"""Answers bound to a JSON schema, a regular expression, a grammar or a choice, by llguidance; knows nothing of sampling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray


@dataclass(slots=True, eq=False)
class Structure:
    """One sequence's place in its grammar."""

    matcher: LLMatcher
    vocabulary: int

    def copy(self) -> Structure:
        """The same place in the same compiled grammar, to go on from alone."""
        return Structure(self.matcher.deep_copy(), self.vocabulary)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: bool, vocabulary."""
        bits = allocate_token_bitmask(1, self.vocabulary)
        fill_next_token_bitmask(self.matcher, bits, 0)
        return np.unpackbits(bits.view(np.uint8), bitorder="little")[: self.vocabulary].view(np.bool_)

    def take(self, token: int) -> bool:
        """Move on by a drawn token; True where the grammar is complete and nothing can follow."""
        self.matcher.consume_token(token)
        return bool(self.matcher.is_stopped())


@dataclass(frozen=True, slots=True, eq=False)
class StructureFactory:
    """Compiles grammars for one tokenizer."""

    tokenizer: LLTokenizer
    vocabulary: int

    @classmethod
    def of(cls, tokenizer_file: Path, vocabulary: int, eos_ids: tuple[int, ...]) -> StructureFactory:
        text = tokenizer_file.read_text(encoding="utf-8")
        return cls(LLTokenizer(text, n_vocab=vocabulary, eos_token=list(eos_ids)), vocabulary)

    def compile(self, kind: str, value: Any) -> Structure:
        """`kind` is json, regex, choice or grammar (Lark); raises ValueError with the grammar's fault."""
        match kind:
            case "json":
                grammar = LLMatcher.grammar_from_json_schema(value if isinstance(value, str) else json.dumps(value))
            case "regex":
                grammar = LLMatcher.grammar_from_regex(value)
            case "choice":
                grammar = LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(item) for item in value))
            case _:
                grammar = LLMatcher.grammar_from_lark(value)
        if fault := LLMatcher.validate_grammar(grammar, self.tokenizer):
            raise ValueError(fault.splitlines()[0])
        matcher = LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(matcher.get_error().splitlines()[0])
        return Structure(matcher, self.vocabulary)
