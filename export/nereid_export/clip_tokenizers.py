"""The checkpoint's tokenizers, read and written as the model `tokenizer` serves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nereid.diffusion.families import family_of
from nereid.diffusion.prompts import SETTINGS_FILE
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.silence import quiet


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizers by their folders' names; raises ExportError for one that cannot be read."""
    from transformers import CLIPTokenizerFast

    found = {}
    for name in (encoder.tokenizer for encoder in family_of(checkpoint.family).encoders):
        with understood(checkpoint.folder / name), quiet():
            found[name] = CLIPTokenizerFast.from_pretrained(checkpoint.folder / name)
    return found


def write_tokenizers(checkpoint: Checkpoint, folder: Path) -> None:
    """What the model `tokenizer` reads: each tokenizer with its settings, in a folder of its own."""
    for name, tokenizer in read_tokenizers(checkpoint).items():
        target = folder / name
        target.mkdir()
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
        encoder = checkpoint.config(name.replace("tokenizer", "text_encoder"))
        length = min(tokenizer.model_max_length, int(encoder["max_position_embeddings"]))
        settings = {"model_max_length": length, "pad_token_id": tokenizer.pad_token_id}
        (target / SETTINGS_FILE).write_text(json.dumps(settings))
