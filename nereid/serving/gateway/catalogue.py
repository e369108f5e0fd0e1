"""Which models the gateway offers now, each with its client and its places: read again when others are served; knows no route.

What is served the supervisor tells. Where it does not answer, nothing is known to be gone, and all stays as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nereid.serving.errors import ServingError
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.places import Places, places_of
from nereid.serving.gateway.readiness import readiness, readiness_now
from nereid.serving.gateway.repository import files_seen, offered_models
from nereid_client import AsyncClient
from nereid_client.server import Statistics

log = logging.getLogger("nereid.gateway")

LOOK_SECONDS = 1.0
"""Between two looks at what is served: the supervisor unloads no model before that (nereid.serving.following)."""
AGAIN_SECONDS = 30.0
"""Before models are read again of which one could not be read, where no file has changed: to read tokenizers holds callers up."""

_OF_OPENAI = ("llm", "image")
"""Kinds of models that OpenAI's own routes take, batches among them."""

Found = tuple[Offered, AsyncClient, Places]


@dataclass(slots=True, eq=False)
class Catalogue:
    """Used by one event loop, between `open` and `close`. Raises ServingError, ValueError over what it cannot read at first.

    `first`: whether this is the first start of a serve, when every name that its options have must be somebody's.
    """

    repository: Path
    rules: Rules
    grpc_url: str
    ready_url: str
    first: bool = True
    models: Mapping[str, Offered] = field(init=False)
    """By id; replaced as a whole."""
    statistics: dict[str, Statistics] = field(default_factory=dict)
    """Of each pipeline's client."""
    _clients: dict[str, AsyncClient] = field(default_factory=dict)
    _places: dict[str, Places] = field(default_factory=dict)
    _served: frozenset[str] | None = None
    _looking: asyncio.Task[None] | None = None
    _faults: Mapping[str, str] = field(default_factory=dict)
    """Why the last look came to nothing, by model; "": for all."""
    _seen: int = 0
    """What the files looked like before that."""
    _again_at: float = 0.0

    def __post_init__(self) -> None:
        served = None if self.first else _served(readiness_now(self.ready_url))
        faults: dict[str, str] | None = None if self.first else {}
        found = offered_models(self.repository, self.rules, served, None if self.first else {}, faults)
        self._places = self._places_of(found, faults)
        self.models = {name: model for name, model in found.items() if model.holder in self._places}
        self._tell(faults or {})

    @property
    def at_once(self) -> int:
        """Requests that the model with most places has running together, of those that batches may be for."""
        batched = {model.holder for model in self.models.values() if model.kind in _OF_OPENAI}
        return max((self._places[holder].at_once for holder in batched), default=1)

    async def open(self) -> None:
        self._meet(self.models)
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        for client in self._clients.values():
            await client.close()

    # --- what routes ask ---

    def find(self, name: str | None, kind: str) -> Found:
        """Without a name the only one of the kind. Raises ApiError, OpenAI's `model_not_found`."""
        name = name or self.only(kind)
        model = self.models.get(name)
        if model is None or model.kind != kind:
            known = ", ".join(item.id for item in self.models.values() if item.kind == kind) or "none"
            raise ApiError(
                404, f"model: {name[:80]!r} is not one of those served here: {known}", param="model", code="model_not_found"
            )
        return model, self._clients[model.prefix], self._places[model.holder]

    def text_model(self, name: object) -> str | None:
        """The Triton model by which a language model of this name is served, or without one the only one; None: there is none."""
        if not name:
            try:
                name = self.only("llm")
            except ApiError:
                return None
        model = self.models.get(name) if isinstance(name, str) else None
        return model.holder if model is not None and model.kind == "llm" else None

    def ids(self, kind: str) -> list[str]:
        """Names of a kind's models; that of a pipeline without a name of its own is the first."""
        return [model.id for model in sorted(self.models.values(), key=lambda model: bool(model.prefix)) if model.kind == kind]

    def only(self, kind: str) -> str:
        """The one model of a kind, which need not be named; its adapters and aliases do not count."""
        found = [model.id for model in self.models.values() if model.kind == kind and model.is_model]
        if len(found) == 1:
            return found[0]
        known = ", ".join(found) or "none"
        sentence = f"model: it is missing; it must be one of those served here: {known}"
        raise ApiError(400, sentence, param="model", code="missing_required_parameter")

    def listed(self) -> dict[str, Any]:
        """/v1/models; first those that OpenAI's own routes take, for there are clients that ask the first one."""
        ordered = sorted(self.models.values(), key=lambda model: model.kind not in _OF_OPENAI)
        return {"object": "list", "data": [_card(model) for model in ordered]}

    def shown(self, name: str) -> dict[str, Any]:
        """/v1/models/NAME; raises ApiError."""
        if name not in self.models:
            raise ApiError(404, f"model: {name[:80]!r} is not served here", param="model", code="model_not_found")
        return _card(self.models[name])

    # --- what comes and goes ---

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("the models that are served could not be looked at; going on")

    async def look(self) -> None:
        """Offer what is served now, if that is not what was served at the last look.

        What cannot be read stays as it was, whatever comes and goes beside it, and is read again when files have changed.
        """
        served = _served(await readiness(self.ready_url))
        if served is None or (served == self._served and not self._faults):
            return
        faults: dict[str, str] = {}
        try:
            seen = await asyncio.to_thread(files_seen, self.repository)
            if served == self._served and seen == self._seen and time.monotonic() < self._again_at:
                return
            offered = await asyncio.to_thread(offered_models, self.repository, self.rules, served, self.models, faults)
        except (ServingError, ValueError, OSError) as error:  # all of it: it is being exchanged, say
            self._tell({"": str(error)})
            return
        places = self._places_of(offered, faults)
        found = {name: model for name, model in offered.items() if model.holder in places.keys() | self._places.keys()}
        self._tell(faults)
        self._served, self._seen, self._again_at = served, seen, time.monotonic() + AGAIN_SECONDS
        # One that has come back may have other limits; what is still under way from before counts where it was begun.
        known = {model.holder for model in self.models.values()}
        self._places |= {name: place for name, place in places.items() if name not in known}
        for word, names in (("offered", found.keys() - self.models.keys()), ("gone", self.models.keys() - found.keys())):
            if names:
                log.info("%s: %s", word, ", ".join(sorted(names)))
        self._meet(found)
        self.models = found

    def _places_of(self, models: Mapping[str, Offered], faults: dict[str, str] | None) -> dict[str, Places]:
        """By the Triton model where requests wait: adapters and aliases share those of their model.

        Those of a model whose config cannot be read are left out, and named among `faults`, where these are given.
        """
        made = {}
        for name in {model.holder for model in models.values()}:
            try:
                made[name] = places_of(self.repository, name)
            except (ServingError, ValueError, OSError) as error:
                if faults is None:
                    raise
                faults.setdefault(name, str(error))
        return made

    def _tell(self, faults: Mapping[str, str]) -> None:
        """Say what cannot be read, by model, "" for all, once."""
        for name, reason in faults.items():
            if self._faults.get(name) != reason:
                log.warning("what is offered%s stays as it was: %s", f" of {name}" if name else "", reason)
        self._faults = faults

    def _meet(self, models: Mapping[str, Offered]) -> None:
        """A client for each pipeline; one that is gone keeps its own, with what is under way there."""
        for prefix in {model.prefix for model in models.values()} - self._clients.keys():
            # A full queue is told at once: callers try again as they like, and know how long they wait.
            client = self._clients[prefix] = AsyncClient(self.grpc_url, name=prefix, retry_full=False)
            self.statistics[prefix] = client.statistics


def _served(said: Mapping[str, Any]) -> frozenset[str] | None:
    """The Triton models that the supervisor serves; None where it does not say."""
    told = said.get("models")
    return frozenset(map(str, told)) if isinstance(told, list) else None


def _card(item: Offered) -> dict[str, Any]:
    """OpenAI's object, with vLLM's `root`, `parent` and `max_model_len`, and where there are embeddings, their length."""
    length = {} if item.max_model_len is None else {"max_model_len": item.max_model_len}
    if item.embedding_width:
        length["embedding_dimensions"] = item.embedding_width
    told = {"id": item.id, "object": "model", "created": item.created, "owned_by": "nereid"}
    return {**told, "root": item.root or item.id, "parent": item.parent or None, **length}
