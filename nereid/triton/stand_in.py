"""What the stand-ins of Triton's C++ backends share: an engine is loaded, warmed up, and run for requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from nereid.engines.priority import give_way
from nereid.engines.served_model import Arguments, Runs, warm_up
from nereid.triton import bridge


class Loads(Protocol):
    """A kind of engine."""

    def load(self, arguments: Arguments) -> Runs:
        """Raises ValueError naming what in the config and the file do not fit."""
        ...


class StandIn:
    """One loaded engine."""

    engine: ClassVar[Loads]
    _model: Runs

    def initialize(self, args: Any) -> None:
        give_way()
        arguments = bridge.ModelArguments.parse(args)
        self._model = self.engine.load(arguments)
        warm_up(self._model, arguments)
        bridge.tell_loaded(arguments.name)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        results = self._model.run([bridge.read_inputs(request) for request in requests])
        return [bridge.answer_of(request, result) for request, result in zip(requests, results, strict=True)]
