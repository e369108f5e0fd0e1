"""From logits to each sequence's next token: what prefill and decode end with; knows neither rows nor engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nereid.llm.sampling import sample
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.tick import Tick


def draw(sequences: Sequence[GeneratedSequence], logits: NDArray[np.float32], tick: Tick) -> list[int]:
    """Draw one token for each sequence from its row of `logits`, which may be changed, and give it to the sequence."""
    for sequence, values in zip(sequences, logits, strict=True):
        if sequence.scored:  # probabilities are told of the untouched logits
            sequence.raw_logits = values.copy()
    tokens = [int(token) for token in sample(logits, [sequence.next_row() for sequence in sequences])]
    for sequence, token in zip(sequences, tokens, strict=True):
        before = len(sequence.written)
        sequence.take(token)
        tick.new_tokens += len(sequence.written) - before
    return tokens
