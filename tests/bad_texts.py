"""Sampling parameters that must be refused, each with words that the sentence must hold; for a model without a draft model."""

from __future__ import annotations

from typing import Any


def bad_parameters(vocabulary: int) -> list[tuple[dict[str, Any], list[str]]]:
    """For any model of so many tokens, whatever its context."""
    return [
        ({"temperature": -0.1}, ["temperature", "-0.1", "greater than or equal to 0"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"temperature": "warm"}, ["temperature", "warm"]),
        ({"temperature": True}, ["temperature", "True"]),
        ({"temperature": 1e9}, ["temperature"]),
        ({"top_k": -2}, ["top_k", "-2"]),
        ({"top_k": 2.5}, ["top_k", "2.5"]),
        ({"top_p": 0}, ["top_p", "0"]),
        ({"top_p": 1.01}, ["top_p", "1.01"]),
        ({"min_p": -1}, ["min_p", "-1"]),
        ({"min_p": 2}, ["min_p", "2"]),
        ({"repetition_penalty": 0}, ["repetition_penalty", "0"]),
        ({"presence_penalty": 3}, ["presence_penalty", "3"]),
        ({"frequency_penalty": -2.5}, ["frequency_penalty", "-2.5"]),
        ({"n": 0}, ["n:", "0"]),
        ({"n": 17}, ["n:", "17", "16"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**63}, ["seed"]),
        ({"max_tokens": 0}, ["max_tokens", "0"]),
        ({"max_tokens": -5}, ["max_tokens", "-5"]),
        ({"max_tokens": 100_000}, ["max_tokens", "100000", "1 to"]),
        ({"max_tokens": "many"}, ["max_tokens", "many"]),
        ({"min_tokens": -1}, ["min_tokens", "-1"]),
        ({"min_tokens": 20}, ["min_tokens", "20", "max_tokens, 16"]),
        ({"stop": [""]}, ["stop", "1 to 256 characters"]),
        ({"stop": ["x" * 257]}, ["stop"]),
        ({"stop": ["x"] * 17}, ["stop", "16"]),
        ({"stop": [1]}, ["stop.0", "1", "string"]),
        ({"stop_token_ids": [vocabulary]}, ["stop_token_ids", str(vocabulary), f"0 to {vocabulary - 1}"]),
        ({"stop_token_ids": [-1]}, ["stop_token_ids", "-1"]),
        ({"stop_token_ids": "49"}, ["stop_token_ids", "49"]),
        ({"logprobs": 21}, ["logprobs", "21", "20"]),
        ({"logprobs": -1}, ["logprobs", "-1"]),
        ({"logit_bias": {str(vocabulary): 1}}, ["logit_bias", str(vocabulary), f"0 to {vocabulary - 1}"]),
        ({"logit_bias": {"x": 1}}, ["logit_bias", "x"]),
        ({"logit_bias": {"3": 101}}, ["logit_bias.3", "101", "-100 to 100"]),
        ({"ignore_eos": "yes"}, ["ignore_eos", "yes"]),
        ({"speculation": "magic"}, ["speculation", "magic", "ngram"]),
        ({"speculation": "draft"}, ["speculation", "draft", "without a draft model"]),
        ({"best_of": 3}, ["best_of", "3", "known are", "temperature"]),
        ({"structured_outputs": {}}, ["structured_outputs", "exactly one"]),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, ["structured_outputs", "json, regex", "exactly one"]),
        ({"structured_outputs": {"choice": []}}, ["structured_outputs.choice"]),
        ({"structured_outputs": {"xml": "a"}}, ["structured_outputs.xml", "absent"]),
    ]
