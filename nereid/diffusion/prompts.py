"""Prompts to token ids, with the checkpoint's own tokenizers; knows nothing of Triton or torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nereid.diffusion.families import TextEncoder, family_of
from nereid.diffusion.families.base import HALVES
from nereid.diffusion.settings import Pipeline
from nereid.diffusion.unsuitable import idle_negative_prompts
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader, Inputs

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"
MAX_PROMPT_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """One text encoder's tokenizer; pads every prompt to the encoder's full length, as diffusers does."""

    tokenizer: Tokenizer
    max_length: int
    pad_token_id: int

    @classmethod
    def read(cls, folder: Path) -> PromptTokenizer:
        """Read `tokenizer.json` and `tokenizer_settings.json` (model_max_length, pad_token_id), as export wrote them."""
        settings = json.loads((folder / SETTINGS_FILE).read_text())
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, int(settings["model_max_length"]), int(settings["pad_token_id"]))

    def encode(self, texts: Sequence[str], field: str) -> tuple[NDArray[np.int32], list[str]]:
        """Ids (int32, texts x max_length) and one warning a text, '' where nothing was cut.

        Raises InvalidRequestError for a text that is absurdly long.
        """
        rows, warnings = [], []
        for text in texts:
            if len(text) > MAX_PROMPT_CHARACTERS:
                raise InvalidRequestError.of(f"characters in {field}", len(text), f"at most {MAX_PROMPT_CHARACTERS}")
            encoding = self.tokenizer.encode(text)
            ids = encoding.ids
            warning = ""
            if len(ids) > self.max_length:
                # Offsets into the prompt give its own text back; decoding would show the vocabulary's spelling.
                cut = encoding.offsets[self.max_length - 1 : -1]
                lost = text[cut[0][0] : cut[-1][1]]
                warning = f"{field}: {len(ids)} tokens were cut to {self.max_length}; ignored: {lost[:200]!r}"
                ids = [*ids[: self.max_length - 1], ids[-1]]
            rows.append(ids + [self.pad_token_id] * (self.max_length - len(ids)))
            warnings.append(warning)
        return np.array(rows, dtype=np.int32), warnings


@dataclass(frozen=True, slots=True)
class PromptService:
    """The `tokenizer` model as plain Python: one tokenizer for each text encoder of the family."""

    tokenizers: tuple[tuple[TextEncoder, PromptTokenizer], ...]
    pipeline: Pipeline

    @classmethod
    def read(cls, folder: Path) -> PromptService:
        """`tokenizer/`, and further ones that the family has, below a version folder."""
        pipeline = Pipeline.read(folder)
        encoders = family_of(pipeline.family).encoders
        return cls(tuple((encoder, PromptTokenizer.read(folder / encoder.tokenizer)) for encoder in encoders), pipeline)

    def encode(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], inputs: Inputs = MappingProxyType({})
    ) -> dict[str, np.ndarray]:
        """The outputs of `tokenizer`: ids for prompts and negative prompts, and warnings, a row a prompt.

        `inputs` are those of the request: a negative prompt may have no effect beside them.
        """
        if len(negative_prompts) != len(prompts):
            raise InvalidRequestError.of(
                "shape of negative_prompt", len(negative_prompts), f"one for each of {len(prompts)} prompts"
            )
        outputs: dict[str, np.ndarray] = {}
        idle = idle_negative_prompts(FieldReader(inputs, len(prompts)), self.pipeline, negative_prompts)
        notes: list[list[str]] = [[said] if said else [] for said in idle]
        for encoder, tokenizer in self.tokenizers:
            for half, texts in zip(HALVES, (prompts, negative_prompts), strict=True):
                outputs[encoder.ids(half)], warnings = tokenizer.encode(texts, f"{half}prompt")
                for row, warning in enumerate(warnings):
                    if warning and encoder is self.tokenizers[0][0]:
                        notes[row].append(warning)
        outputs["tokenizer_warnings"] = np.array([["\n".join(note).encode()] for note in notes], dtype=np.object_)
        return outputs
