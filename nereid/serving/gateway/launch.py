"""What the gateway's process is told by the supervisor, as one argument; nothing secret is in it, and no server is imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from nereid.serving.gateway.limits import Limits

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
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)

    def to_argument(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Launch:
        facts = json.loads(argument)
        rules = {**facts["rules"], "cors_origins": tuple(facts["rules"]["cors_origins"])}
        return cls(**{**facts, "limits": Limits(**facts["limits"]), "rules": Rules(**rules)})
