"""The table of sampling parameters of language models: each is written here once, with vLLM's name; knows no model.

From it come the server's validation (nereid.llm.sent), the gateway's request bodies (nereid.serving.gateway.schemas) and
the reference of request fields.
"""

from __future__ import annotations

from nereid_protocol.sampling_field import MAX_SEED, Kind, SamplingField, UnreadField

_INT32_MAX = 2**31 - 1

GREEDY_BELOW = 1e-5
"""Temperatures below this are taken as 0: the likeliest token would be drawn all the same (vLLM's bound)."""

STRUCTURES = ("json", "regex", "choice", "grammar", "json_object")
"""Exactly one of these members of `structured_outputs` is given."""

_STRUCTURED_OUTPUTS = (
    SamplingField(name="json", kind=Kind.SCHEMA, alias="guided_json", help="A JSON schema that the answer obeys."),
    SamplingField(
        name="regex",
        kind=Kind.TEXT,
        length=10_000,
        alias="guided_regex",
        help="A regular expression that the whole answer matches.",
    ),
    SamplingField(
        name="choice", kind=Kind.TEXTS, most=1000, length=10_000, alias="guided_choice", help="The answer is one of these."
    ),
    SamplingField(
        name="grammar",
        kind=Kind.TEXT,
        length=100_000,
        alias="guided_grammar",
        help="A grammar: Lark, or GBNF, llama.cpp's form of EBNF (`root ::= ...`).",
    ),
    SamplingField(
        name="json_object", kind=Kind.FLAG, default=False, help="true: the answer is an object of JSON, whatever it holds."
    ),
    SamplingField(
        name="whitespace_pattern",
        alias="guided_whitespace_pattern",
        kind=Kind.TEXT,
        length=1000,
        help="With json or json_object: a regular expression of the whitespace between its parts, such as ` ?`.",
    ),
    SamplingField(
        name="disable_any_whitespace",
        kind=Kind.FLAG,
        default=True,
        help="Of JSON: no whitespace between its parts. false allows any, which a model may write until max_tokens.",
    ),
)

_UNREAD_MEMBERS = (
    UnreadField(name="disable_additional_properties", value=False),
    UnreadField(name="disable_fallback", value=False),
    UnreadField(name="backend"),
)

UNREAD_SAMPLING = (
    UnreadField(name="best_of", value=1),
    UnreadField(name="use_beam_search", value=False),
    UnreadField(name="length_penalty", value=1.0),
    UnreadField(name="early_stopping", value=False),
    UnreadField(name="detokenize", value=True),
    UnreadField(name="spaces_between_special_tokens", value=True),
    UnreadField(name="logits_processors", value=[]),
    UnreadField(name="extra_args", value={}),
)
"""Other members of vLLM's SamplingParams: programs send all that they have. The gateway has a table of its own."""

SAMPLING_FIELDS: tuple[SamplingField, ...] = (
    SamplingField(name="n", kind=Kind.INTEGER, default=1, low=1, high=16, help="Answers; at most max_rows of the model."),
    SamplingField(
        name="temperature",
        kind=Kind.NUMBER,
        default=1.0,
        low=0,
        high=100,
        help=f"Divides the logits; 0, and anything below {GREEDY_BELOW:g}, takes the likeliest token.",
    ),
    SamplingField(
        name="top_k", kind=Kind.INTEGER, default=0, low=-1, high=_INT32_MAX, help="Only the k likeliest tokens; 0 and -1: all."
    ),
    SamplingField(
        name="top_p",
        kind=Kind.NUMBER,
        default=1.0,
        low=0,
        high=1,
        help="Only the likeliest tokens that together have this probability; 0: the likeliest one alone.",
    ),
    SamplingField(
        name="min_p",
        kind=Kind.NUMBER,
        default=0.0,
        low=0,
        high=1,
        help="Only tokens at least this probable, as a share of the likeliest one's probability.",
    ),
    SamplingField(
        name="repetition_penalty",
        kind=Kind.NUMBER,
        default=1.0,
        low=0.01,
        high=10,
        help="Above 1: tokens of prompt and answer become less likely, by dividing their logits.",
    ),
    SamplingField(
        name="presence_penalty",
        kind=Kind.NUMBER,
        default=0.0,
        low=-2,
        high=2,
        help="Taken from the logits of tokens that the answer has.",
    ),
    SamplingField(
        name="frequency_penalty",
        kind=Kind.NUMBER,
        default=0.0,
        low=-2,
        high=2,
        help="Taken from a token's logit for each time that the answer has it.",
    ),
    SamplingField(
        name="logit_bias", kind=Kind.BIASES, low=-100, high=100, most=1024, help="Added to the logits of tokens, by id; none."
    ),
    SamplingField(
        name="allowed_token_ids",
        kind=Kind.TOKEN_IDS,
        low=0,
        high=_INT32_MAX,
        least=1,
        most=2**18,
        help="The only tokens that may be drawn; all where it is not given. An answer ends by itself only by a token among them.",
    ),
    SamplingField(
        name="bad_words",
        kind=Kind.TEXTS,
        default=(),
        most=128,
        length=256,
        help="Texts that the answer may not have: the tokens of each, as it is and behind a space; the last of them is not drawn "
        "where the others stand before it. Other tokens may spell the same text.",
    ),
    SamplingField(
        name="seed",
        kind=Kind.INTEGER,
        low=-1,
        high=MAX_SEED,
        help="The same seed gives the same answer again; random by default, and where it is -1.",
    ),
    SamplingField(
        name="stop", kind=Kind.TEXTS, default=(), most=64, length=256, help="Texts that end the answer, after min_tokens."
    ),
    SamplingField(
        name="stop_token_ids",
        kind=Kind.TOKEN_IDS,
        default=(),
        low=0,
        high=_INT32_MAX,
        most=64,
        help="Tokens that end the answer.",
    ),
    SamplingField(
        name="include_stop_str_in_output", kind=Kind.FLAG, default=False, help="Whether the text keeps the stop text it ended by."
    ),
    SamplingField(name="ignore_eos", kind=Kind.FLAG, default=False, help="Whether to go on after an end-of-text token."),
    SamplingField(
        name="max_tokens",
        kind=Kind.INTEGER,
        default=16,
        nullable=True,
        low=0,
        high=_INT32_MAX,
        gateway=False,
        help="Tokens of an answer at most; 0: the prompt is read, and nothing is written; null: as many as the context holds.",
    ),
    SamplingField(
        name="min_tokens",
        kind=Kind.INTEGER,
        default=0,
        low=0,
        high=_INT32_MAX,
        help="Tokens before which nothing ends the answer, neither a stop token nor a stop text.",
    ),
    SamplingField(
        name="logprobs",
        kind=Kind.INTEGER,
        low=0,
        high=20,
        gateway=False,
        help="Log probabilities of the drawn tokens, and of so many of the likeliest; none where it is not given.",
    ),
    SamplingField(
        name="logprob_token_ids",
        kind=Kind.TOKEN_IDS,
        default=(),
        low=0,
        high=_INT32_MAX,
        most=128,
        help="Tokens whose log probabilities are told at each place of the answer, in their order, in the place of the likeliest "
        "ones. The gateway tells them where log probabilities are asked for.",
    ),
    SamplingField(
        name="prompt_logprobs",
        kind=Kind.INTEGER,
        low=0,
        high=20,
        help="Log probabilities of the prompt's tokens, and of so many of the likeliest at each place; the prompt is read from "
        "its beginning: what the prefix cache has of it is not used.",
    ),
    SamplingField(
        name="priority",
        kind=Kind.INTEGER,
        default=5,
        low=0,
        high=9,
        help="0 goes first, 9 last; of equal ones who came first. Waiting raises it, one for every ten seconds. "
        "One behind 5 stands still while others are inside.",
    ),
    SamplingField(
        name="add_special_tokens",
        kind=Kind.FLAG,
        default=True,
        help="Whether the tokenizer adds its own to a prompt of text; in a chat false by default, for templates write them.",
    ),
    SamplingField(
        name="truncate_prompt_tokens",
        kind=Kind.INTEGER,
        low=-1,
        high=_INT32_MAX,
        help="Tokens of the prompt that are read at most, those among them that the tokenizer adds; a longer one is cut. -1: as "
        "many as the context holds beside max_tokens. Nothing is cut where it is not given.",
    ),
    SamplingField(
        name="truncation_side",
        kind=Kind.TEXT,
        choices=("left", "right"),
        help="Where truncate_prompt_tokens cuts: left keeps the prompt's end, right its beginning; left by default, right where "
        "the prompt is embedded.",
    ),
    SamplingField(
        name="skip_special_tokens", kind=Kind.FLAG, default=True, help="Whether special tokens are left out of the text."
    ),
    SamplingField(
        name="structured_outputs",
        kind=Kind.OBJECT,
        members=_STRUCTURED_OUTPUTS,
        unread=_UNREAD_MEMBERS,
        alias="guided_decoding",
        help=f"Binds the answer to a form: exactly one of {', '.join(STRUCTURES)}.",
    ),
    SamplingField(
        name="lora_name",
        kind=Kind.TEXT,
        length=64,
        help="By which of the model's adapters the answer is written; by none of them where it is not given.",
    ),
    SamplingField(
        name="cache_salt",
        kind=Kind.TEXT,
        least=1,
        length=256,
        help="What the prefix cache has of a prompt is found only by requests of the same salt; those without one share theirs.",
    ),
    SamplingField(
        name="speculation",
        kind=Kind.TEXT,
        choices=("none", "ngram", "draft"),
        help="Speculative decoding, by prompt lookup (ngram) or a draft model; the model's own setting where it is not given.",
    ),
)

EMBEDDING_FIELDS = ("priority", "add_special_tokens", "truncate_prompt_tokens", "truncation_side", "lora_name")
"""Those that mean something where a prompt is embedded, and nothing is written."""
