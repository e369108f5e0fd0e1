"""What the user is told of a prompt that is too long, and of a picture that is none."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nereid.diffusion.images import to_pixels
from nereid.diffusion.prompts import PromptTokenizer
from nereid.flow.errors import EngineError


def test_the_warning_shows_the_text_that_was_cut_as_it_was_written() -> None:
    words = {"a</w>": 0, "red</w>": 1, "?": 2}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="?", end_of_word_suffix="</w>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids, warnings = PromptTokenizer(tokenizer, 3, 0).encode(["one two three Four  five"], "prompt")
    assert ids.shape == (1, 3)
    assert "'three Four'" in warnings[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_values_that_are_no_picture_fail(value: float) -> None:
    images = np.zeros((1, 3, 2, 2), dtype=np.float32)
    images[0, 1, 0, 1] = value
    with pytest.raises(EngineError, match="vae_decoder"):
        to_pixels(images)
