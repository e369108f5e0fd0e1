"""Requests to a language model, every option concrete: made once from what was sent (nereid.llm.sent), for one model."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nereid.flow.errors import ContextLengthError, InvalidRequestError
from nereid.flow.noise import derived_seed
from nereid.flow.tickets import USUAL_PRIORITY
from nereid.llm.bad_words import tokens_of_bad_words
from nereid.llm.prompt_places import places_in_text, places_of_ids
from nereid.llm.prompts import Kept, check_tokens, context, read_part, tokens_of_ids, tokens_of_text
from nereid.llm.sampling import Sampling
from nereid.llm.sent import Inputs, SentRequest, SentSampling, read_request
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_protocol.sampling import GREEDY_BELOW, STRUCTURES

MAX_CHOICE_CHARACTERS = 100_000
ANY_WHITESPACE = r"[ \n\r\t]*"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureRequest:
    """What binds an answer's form; `whitespace` is a regular expression of what may stand between the parts of JSON."""

    kind: str
    value: Any
    whitespace: str | None = None

    @property
    def field(self) -> str:
        return f"structured_outputs.{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmRequest:
    """One request, every option concrete; `samplings` has one entry for each of `n` answers.

    `scored`: whether the drawn tokens' log probabilities are computed; `logprobs`: whether they are told, with `top_logprobs`
    of the likeliest tokens at each position, or those of `logprob_token_ids`; `prompt_logprobs`: with so many those of the
    prompt, None where they are not told. `prompt_places` are then where the prompt's tokens begin in its text.
    `allowed_token_ids` are all that may be drawn, where there are any, and `bad_words` what may not be, as tokens. `adapter` is
    one of the model's, counted from 1; 0: none of them. `embeds`: nothing is written, and the mean of the prompt's last hidden
    states is told.
    """

    prompt: tuple[int, ...]
    prompt_text: str
    stream: bool
    exclude_input: bool
    samplings: tuple[Sampling, ...]
    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    allowed_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    scored: bool
    logprobs: bool
    top_logprobs: int
    logprob_token_ids: tuple[int, ...]
    prompt_logprobs: int | None
    structure: StructureRequest | None
    speculation: str
    timeout_seconds: float
    outputs: frozenset[str]
    run_id: str | None = None
    priority: int = USUAL_PRIORITY
    prompt_places: tuple[int, ...] = ()
    adapter: int = 0
    cache_salt: str = ""
    embeds: bool = False


def parse_llm_request(
    inputs: Inputs, tokenizer: Tokenizer, facts: LlmFacts, limits: LlmLimits, longest: int, *, has_draft: bool = False
) -> LlmRequest:
    """Raises InvalidRequestError naming the field, its value and what is allowed; `longest` is prompt and answer together."""
    sent = read_request(inputs, limits.max_input_bytes)
    sampling = sent.sampling
    if sent.embeds and not facts.embedding_width:
        raise InvalidRequestError.of("task", "embed", "generate: this model was exported without --embeddings")
    stream = bool(sent.stream)
    exclude = stream if sent.exclude_input is None else sent.exclude_input
    if stream and not exclude:
        raise InvalidRequestError.of("exclude_input_in_output", False, "true, or absent, where stream is true")
    _check_sampling(sampling, facts, limits, has_draft)
    adapter = _adapter(sampling, facts)
    structure = _structure(sampling)
    text, prompt, places = _prompt(sent, tokenizer, facts, longest)  # the one dear part, after all that is cheap to refuse
    max_tokens = 0 if sent.embeds else _max_tokens(sent, len(prompt), longest)
    if sampling["min_tokens"] > max_tokens:
        raise InvalidRequestError.of("min_tokens", sampling["min_tokens"], f"at most max_tokens, {max_tokens}")
    if not max_tokens and sampling["logprob_token_ids"]:
        shown = f"{len(sampling['logprob_token_ids'])} tokens"
        raise InvalidRequestError.of("logprob_token_ids", shown, "absent where max_tokens is 0: nothing is written")
    logprobs = sampling["logprobs"] is not None or bool(sampling["logprob_token_ids"])
    eos = () if sampling["ignore_eos"] else facts.eos_token_ids
    return LlmRequest(
        prompt=prompt,
        prompt_text=text,
        stream=stream,
        exclude_input=exclude,
        samplings=_samplings(sampling),
        max_tokens=max_tokens,
        min_tokens=sampling["min_tokens"],
        stop_ids=frozenset((*eos, *sampling["stop_token_ids"])),
        allowed_token_ids=tuple(dict.fromkeys(sampling["allowed_token_ids"] or ())),
        bad_words=tokens_of_bad_words(sampling["bad_words"], tokenizer, facts),
        stop=tuple(sampling["stop"]),
        include_stop=sampling["include_stop_str_in_output"],
        skip_special_tokens=sampling["skip_special_tokens"],
        scored=logprobs or "cumulative_logprob" in sent.asked,
        logprobs=logprobs,
        top_logprobs=sampling["logprobs"] or 0,
        logprob_token_ids=tuple(dict.fromkeys(sampling["logprob_token_ids"])),
        prompt_logprobs=sampling["prompt_logprobs"],
        structure=structure,
        speculation="none" if sent.embeds else sampling["speculation"] or limits.speculation,
        timeout_seconds=limits.default_timeout_seconds if sent.timeout_seconds is None else sent.timeout_seconds,
        outputs=frozenset(("embedding",) if sent.embeds else ("text_output", "index")).union(sent.asked),
        run_id=sent.run_id,
        priority=sampling["priority"],
        prompt_places=places,
        adapter=adapter,
        cache_salt=sampling["cache_salt"] or "",
        embeds=sent.embeds,
    )


def _prompt(
    sent: SentRequest, tokenizer: Tokenizer, facts: LlmFacts, longest: int
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Text and tokens of the prompt, of which one was sent, and where they begin in it, where that will be told."""
    told, kept = sent.sampling["prompt_logprobs"] is not None, _kept(sent, longest)
    if sent.input_ids is not None:
        prompt = tokens_of_ids(sent.input_ids, facts, longest, kept)
        text = tokenizer.decode(list(prompt), skip_special_tokens=False)
        return text, prompt, places_of_ids(prompt, tokenizer) if told else ()
    text = sent.text_input or ""
    special = sent.sampling["add_special_tokens"]
    if kept is not None:
        read = read_part(text, tokenizer, facts, longest, kept, add_special_tokens=special)
        return read.text, read.tokens, read.places if told else ()
    encoding = tokens_of_text(text, tokenizer, facts, longest, add_special_tokens=special)
    return text, tuple(encoding.ids), places_in_text(encoding) if told else ()


def _kept(sent: SentRequest, longest: int) -> Kept | None:
    """What is read of the prompt; None: all of it."""
    side = sent.sampling["truncation_side"]
    answer = 0 if sent.embeds else sent.sampling["max_tokens"] if sent.max_tokens is None else sent.max_tokens
    last = not sent.embeds if side is None else side == "left"
    return Kept.asked(sent.sampling["truncate_prompt_tokens"], longest, answer=answer, last=last)


def _max_tokens(sent: SentRequest, prompt: int, longest: int) -> int:
    """The input of this name stands above the sampling parameter."""
    room, wanted = longest - prompt, sent.max_tokens
    if wanted is not None and wanted < 0:
        raise InvalidRequestError.of("max_tokens", wanted, f"0 to {room}")
    if wanted is None:
        wanted = room if sent.sampling["max_tokens"] is None else int(sent.sampling["max_tokens"])
    if wanted > room:
        raise ContextLengthError.of("max_tokens", wanted, f"0 to {room}: the prompt has {prompt} tokens, and {context(longest)}")
    return wanted


def _check_sampling(sent: SentSampling, facts: LlmFacts, limits: LlmLimits, has_draft: bool) -> None:
    """What depends on the model."""
    if sent["n"] > limits.max_rows:
        raise InvalidRequestError.of("n", sent["n"], f"1 to {limits.max_rows}, the model's max_rows")
    check_tokens("stop_token_ids", sent["stop_token_ids"], facts)
    check_tokens("allowed_token_ids", sent["allowed_token_ids"] or (), facts)
    check_tokens("logprob_token_ids", sent["logprob_token_ids"], facts)
    for key in sent["logit_bias"] or ():
        if not (key.isdecimal() and key.isascii() and len(key) < 10 and int(key) < facts.vocabulary):
            raise InvalidRequestError.of("logit_bias", key, f"token ids 0 to {facts.vocabulary - 1}")
    if sent["speculation"] == "draft" and not has_draft:
        raise InvalidRequestError.of("speculation", "draft", "none or ngram: this model was exported without a draft model")


def _adapter(sent: SentSampling, facts: LlmFacts) -> int:
    """The number of the one that was asked for by name; 0: none was."""
    name = sent["lora_name"]
    if name is None:
        return 0
    if name not in facts.adapters:
        known = ", ".join(facts.adapters)
        allowed = f"absent, or one of this model's adapters: {known}" if known else "absent: this model has no adapters"
        raise InvalidRequestError.of("lora_name", name, allowed)
    return facts.adapters.index(name) + 1


def _samplings(sent: SentSampling) -> tuple[Sampling, ...]:
    seed = secrets.randbits(63) if sent["seed"] in (None, -1) else sent["seed"]
    return tuple(
        Sampling(
            temperature=sent["temperature"] if sent["temperature"] >= GREEDY_BELOW else 0.0,
            top_k=max(sent["top_k"], 0),
            top_p=sent["top_p"],
            min_p=sent["min_p"],
            repetition_penalty=sent["repetition_penalty"],
            presence_penalty=sent["presence_penalty"],
            frequency_penalty=sent["frequency_penalty"],
            logit_bias={int(token): bias for token, bias in (sent["logit_bias"] or {}).items()},
            seed=derived_seed(seed, index),
        )
        for index in range(sent["n"])
    )


def _structure(sent: SentSampling) -> StructureRequest | None:
    given = sent["structured_outputs"]
    if given is None:
        return None
    kinds = [kind for kind in STRUCTURES if given[kind] is not None and given[kind] is not False]
    if len(kinds) != 1:
        names = ", ".join(kinds) or "nothing"
        raise InvalidRequestError.of("structured_outputs", names, "exactly one of json, regex, choice, grammar and json_object")
    pattern, compact = given["whitespace_pattern"], given["disable_any_whitespace"]
    if pattern is not None and kinds[0] not in ("json", "json_object"):
        raise InvalidRequestError.of("structured_outputs.whitespace_pattern", pattern, "absent where there is no json")
    kind, value = ("json", {"type": "object"}) if kinds == ["json_object"] else (kinds[0], given[kinds[0]])
    if kinds == ["choice"] and (not value or sum(map(len, value)) > MAX_CHOICE_CHARACTERS):
        shown = f"{len(value)} texts of {sum(map(len, value))} characters together"
        raise InvalidRequestError.of("structured_outputs.choice", shown, f"1 to 1000 texts of at most {MAX_CHOICE_CHARACTERS}")
    return StructureRequest(
        kind=kind, value=value, whitespace=pattern if pattern is not None else None if compact else ANY_WHITESPACE
    )
