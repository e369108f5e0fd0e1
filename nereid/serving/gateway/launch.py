"""What the gateway's process is told by the supervisor, as one argument; nothing secret is in it, and no server is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nereid.serving.errors import ServingError
from nereid.serving.gateway.limits import Limits
from nereid.serving.gateway.tool_formats import TOOL_FORMATS

_ALIAS = re.compile(r"(?=.{1,128}\Z)[^\s/]+(?:/[^\s/]+)*")
"""Also as the Hugging Face Hub names a model, which is what callers of other servers send."""
API_KEY = "NEREID_API_KEY"
"""Environment variable of the key: no process list shows it, and Triton's processes do not get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the gateway allows its callers."""

    keys: str | None = None
    """A file of API keys with names and limits (nereid.serving.gateway.keys), beside the environment's key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages a browser may let ask; `*` is all."""
    lenient: bool = False
    """Whether fields that nobody knows are ignored, and named in a header of the answer, not refused."""
    batches: str | None = None
    """The folder of files and batches; None: there are none."""
    batches_days: int = 30
    """How long a batch that has ended is known."""
    files_megabytes: int = 10_240
    """How much files, and requests and answers of batches that are not done, may take there for each key."""
    files_total_megabytes: int = 51_200
    """How much those of all keys may take together."""
    tool_formats: Mapping[str, str] = field(default_factory=dict)
    """How a model calls tools, by its name, or of all the others by ""; `auto` is as its template shows, `none` not at all."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """More names of models, and of their adapters."""
    reasoning: bool = True
    """Whether thoughts are told apart from answers."""
    schema: bool = False
    """Whether /openapi.json is served."""
    stored_responses: int = 1000
    """How many answers of /v1/responses are kept for each key; 0: none."""
    stored_megabytes: int = 64
    """How much those may take for each key."""
    url_seconds: float = 600.0
    """For how long a picture can be fetched by its address (`response_format: url`)."""
    url_megabytes: int = 128
    """How much such pictures may take for each key."""
    url_total_megabytes: int = 1024
    """How much those of all keys may take together."""
    public_url: str = ""
    """What their addresses begin with; "": the host that the caller has asked."""
    a1111: bool = False
    """Whether AUTOMATIC1111's /sdapi/v1 is served, too."""


def tool_formats_of(words: Sequence[str]) -> dict[str, str]:
    """The words of --openai-tools, FORMAT or MODEL=FORMAT; raises ServingError."""
    made: dict[str, str] = {}
    for word in words:
        model, _, name = word.rpartition("=")
        if name not in (known := ("auto", "none", *TOOL_FORMATS)):
            raise ServingError(f"--openai-tools: {word!r} is not allowed; it must be [MODEL=]FORMAT, of {', '.join(known)}")
        if model in made:
            raise ServingError(f"--openai-tools: {word!r} is not allowed; the model has a format already, {made[model]}")
        made[model] = name
    return made


def aliases_of(words: Sequence[str]) -> dict[str, str]:
    """The words of --alias, NAME=MODEL; raises ServingError."""
    made: dict[str, str] = {}
    for word in words:
        name, _, model = word.partition("=")
        if not (model and _ALIAS.fullmatch(name)):
            raise ServingError(f"--alias: {word!r} is not allowed; it must be NAME=MODEL, NAME without blanks, slashes within")
        if name in made:
            raise ServingError(f"--alias: {word!r} is not allowed; the name stands for {made[name]} already")
        made[name] = model
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """`listener` and `heart` are descriptors that the process inherits."""

    repository: str
    grpc_url: str
    metrics_url: str
    ready_url: str
    drain_seconds: float
    listener: int
    heart: int
    first: bool = True
    """Whether it is started for the first time, and not again after a death."""
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Launch:
        facts = json.loads(argument)
        rules = {**facts["rules"], "cors_origins": tuple(facts["rules"]["cors_origins"])}
        return cls(**{**facts, "limits": Limits(**facts["limits"]), "rules": Rules(**rules)})
