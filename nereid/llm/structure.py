"""Answers bound to a JSON schema, a regular expression, a grammar or a choice, by llguidance; knows nothing of sampling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from nereid.llm.json_schemas import readable, unbindable

_REASON = "error: "
_LONGEST_PART = 300
"""Characters of a part of a fault."""
_REASONS = {"NoExtensionBias": "a schema leads back to itself, and says nothing else"}
"""What llguidance says in words of its own code."""


@dataclass(slots=True, eq=False)
class Structure:
    """How far one sequence is in its grammar."""

    matcher: LLMatcher
    vocabulary: int
    kind: str

    def copy(self) -> Structure:
        """A copy in the same state of the same compiled grammar, to go on from alone."""
        return Structure(self.matcher.deep_copy(), self.vocabulary, self.kind)

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: bool, vocabulary; raises ValueError where the grammar has become too much to follow."""
        bits = allocate_token_bitmask(1, self.vocabulary)
        fill_next_token_bitmask(self.matcher, bits, 0)
        self._check()
        return np.unpackbits(bits.view(np.uint8), bitorder="little")[: self.vocabulary].view(np.bool_)

    def take(self, token: int) -> bool:
        """Move on by a drawn token; True where the grammar is complete and nothing can follow. Raises ValueError as `allowed`."""
        self.matcher.consume_token(token)
        self._check()
        return bool(self.matcher.is_stopped())

    def _check(self) -> None:
        if self.matcher.is_error():
            raise ValueError(_first_line(self.matcher.get_error()))


def _first_line(text: str) -> str:
    """Of a fault; a regular expression's goes on with the expression and, further down, its reason."""
    first, *rest = text.splitlines() or ["no reason given"]
    reason = next((line.removeprefix(_REASON) for line in rest if line.startswith(_REASON)), "")
    if reason and first.endswith(":"):
        return f"{_short(first)} {_short(rest[0].strip())}: {_short(reason)}"
    return _REASONS.get(first, _short(first))


def _short(text: str) -> str:
    """An expression may have thousands of characters, and stands in most faults of it."""
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART // 2]} ... {text[-_LONGEST_PART // 2 :]}"


def _schema_text(value: Any) -> str:
    """A schema, or its JSON, as llguidance reads it; raises ValueError for one that goes too deep, or cannot be bound."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        if (fault := unbindable(schema)) is not None:
            raise ValueError(f"{fault} cannot be bound")
        return json.dumps(readable(schema))
    except json.JSONDecodeError:
        return str(value)  # whose fault llguidance tells
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None


def _as_lark(grammar: str) -> str:
    """A grammar in Lark's form, also one that was written in llama.cpp's, GBNF; raises ValueError with its fault."""
    if is_lark_syntax(grammar) or "::=" not in grammar:
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except RecursionError:
        raise ValueError("the GBNF grammar is nested too deeply") from None
    except Exception as error:  # its parser has an error of its own, and others where it did not look
        raise ValueError(f"the GBNF grammar cannot be read: {_first_line(str(error))}") from None


@dataclass(frozen=True, slots=True, eq=False)
class StructureFactory:
    """Compiles grammars for one tokenizer."""

    tokenizer: LLTokenizer
    vocabulary: int

    @classmethod
    def of(cls, tokenizer_file: Path, vocabulary: int, eos_ids: tuple[int, ...]) -> StructureFactory:
        text = tokenizer_file.read_text(encoding="utf-8")
        return cls(LLTokenizer(text, n_vocab=vocabulary, eos_token=list(eos_ids)), vocabulary)

    def compile(self, kind: str, value: Any, whitespace: str | None = None) -> Structure:
        """`kind` is json, regex, choice or grammar (Lark or GBNF); raises ValueError with the grammar's fault.

        Between the parts of JSON stands what matches `whitespace`, by default nothing: where any may stand, a model can write
        whitespace until its tokens are used up, and obey the schema.
        """
        match kind:
            case "json":
                text = _schema_text(value)
                spacing = {"whitespace_flexible": False} if whitespace is None else {"whitespace_pattern": whitespace}
                grammar = LLMatcher.grammar_from_json_schema(text, overrides=spacing)
            case "regex":
                grammar = LLMatcher.grammar_from_regex(value)
            case "choice":
                grammar = LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(item) for item in value))
            case _:
                grammar = LLMatcher.grammar_from_lark(_as_lark(value))
        if fault := LLMatcher.validate_grammar(grammar, self.tokenizer):
            raise ValueError(_first_line(fault))
        matcher = LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(_first_line(matcher.get_error()))
        return Structure(matcher, self.vocabulary, kind)
