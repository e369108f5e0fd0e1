"""A model's tokenizer in the gateway: read when it is first needed, its work bounded by the model's context; knows no HTTP."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nereid.flow.errors import ContextLengthError, RequestError
from nereid.llm.prompts import Kept, read_part, tokens_of_text
from nereid.llm.settings import LlmFacts, read_tokenizer
from nereid.serving.errors import ServingError
from nereid_client.errors import typed


@dataclass(slots=True, eq=False)
class ModelTokenizer:
    """Of the exported model in a version folder, whose prompt and answer together have at most `longest` tokens.

    Safe between threads; its methods take as long as their texts are, and raise ServingError where the files cannot be read.
    What they refuse is an error of nereid_client.errors, as if `llm` had refused it.
    """

    folder: Path
    longest: int
    _read: tuple[Tokenizer, LlmFacts] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _files(self) -> tuple[Tokenizer, LlmFacts]:
        with self._lock:
            if self._read is None:
                try:
                    self._read = read_tokenizer(self.folder), LlmFacts.read(self.folder)
                except ValueError as error:
                    raise ServingError(str(error)) from None
            return self._read

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Raises InvalidRequestError, naming `text_input`, for a text of more than the context holds."""
        tokenizer, facts = self._files()
        if not text:
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        try:
            found = tokens_of_text(text, tokenizer, facts, self.longest + 1, add_special_tokens=add_special_tokens)
        except RequestError as error:
            raise typed(error.wire()) from None
        return list(found.ids)

    def prompt_ids(self, prompt: str | Sequence[int], sampling: Mapping[str, Any]) -> list[int]:
        """What `llm` reads of a prompt with these sampling parameters. Raises InvalidRequestError as it does."""
        tokenizer, facts = self._files()
        answer, last = sampling.get("max_tokens"), sampling.get("truncation_side") != "right"
        special = sampling.get("add_special_tokens") is not False
        try:
            kept = Kept.asked(sampling.get("truncate_prompt_tokens"), self.longest, answer=answer, last=last)
            if not isinstance(prompt, str):
                return list(prompt if kept is None else kept.of(prompt))
            if kept is None:
                return list(tokens_of_text(prompt, tokenizer, facts, self.longest, add_special_tokens=special).ids)
            return list(read_part(prompt, tokenizer, facts, self.longest, kept, add_special_tokens=special).tokens)
        except RequestError as error:
            raise typed(error.wire()) from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Special tokens included. Raises InvalidRequestError, naming `tokens`, for more than the context holds."""
        if len(tokens) > self.longest:
            raise typed(ContextLengthError.of("tokens", f"{len(tokens)} tokens", f"at most {self.longest}").wire())
        return str(self._files()[0].decode(list(tokens), skip_special_tokens=False))

    def words(self, tokens: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them."""
        tokenizer, _ = self._files()
        return [tokenizer.id_to_token(token) or "" for token in tokens]

    def id_of(self, token: str) -> int | None:
        found: int | None = self._files()[0].token_to_id(token)
        return found

    def leading(self) -> list[int]:
        """What a text begins with."""
        encoding = self._files()[0].encode("a", add_special_tokens=True)
        first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        return list(encoding.ids[:first])
