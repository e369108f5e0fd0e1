"""What the configs of a repository say that matters for keeping it up; loads no engine and asks no server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.serving.errors import ServingError

_STREAMS = "max_streams"
_FEWEST_THREADS, _OTHER_THREADS = 128, 32
"""The Python backend's own default of 32 is too few; what is left for calls and answers beside those of streams."""


@dataclass(frozen=True, slots=True)
class ServedModels:
    """Every model's config, by name."""

    configs: Mapping[str, Any]

    @classmethod
    def read(cls, repository: Path, only: Collection[str] | None = None) -> ServedModels:
        """All models, or these; raises ServingError, naming the file, where a config.pbtxt is not one."""
        configs = {}
        for file in sorted(repository.glob("*/config.pbtxt")):
            if only is not None and file.parent.name not in only:
                continue
            try:
                configs[file.parent.name] = text_format.Parse(file.read_text(), ModelConfig())
            except (text_format.ParseError, UnicodeDecodeError) as error:
                raise ServingError(f"{file} is not a model's config: {error}") from None
            except OSError as error:
                raise ServingError(f"{file} cannot be read: {error.strerror}") from None
        return cls(configs)

    def with_others(self, come: Mapping[str, Any], gone: Collection[str] = ()) -> ServedModels:
        """These, those that have come, and none of those that have gone."""
        return ServedModels({name: config for name, config in {**self.configs, **come}.items() if name not in gone})

    @property
    def entries(self) -> list[str]:
        """Ensembles: what can be closed to new requests while those inside go on."""
        return [name for name, config in self.configs.items() if config.ensemble_scheduling.step]

    @property
    def threads(self) -> int:
        """What the Python backend's pool must have for the model with most streams: two calls of each are out while it runs."""
        streams = (config.parameters[_STREAMS].string_value for config in self.configs.values() if _STREAMS in config.parameters)
        return max([_FEWEST_THREADS, *(2 * int(most) + _OTHER_THREADS for most in streams if most.isdecimal())])

    def of_instance(self, instance: str) -> str | None:
        """The model that a Python stub serves, by its instance's name: its group's name and a number, joined by `_`.

        A group that has no name is called after its model and its own number.
        """
        group = instance.rpartition("_")[0]
        for name, config in self.configs.items():
            if any(item.name and item.name == group for item in config.instance_group):
                return name
        model, _, number = group.rpartition("_")
        return model if model in self.configs and number.isdigit() else None

    def answers_late(self, model: str) -> bool:
        """Whether requests wait in the model's process after Triton has let go of them: then they end only with the server."""
        parameters = self.configs[model].parameters
        return "restart_on_death" in parameters and bool(parameters["restart_on_death"].string_value == "true")

    def pipeline_of(self, models: Collection[str]) -> set[str]:
        """The models that call one another, directly or not, with these among them.

        One that calls several pipelines does not make one of them: where one of those has died, it waits like any caller.
        """
        links: dict[str, set[str]] = {name: set() for name in self.configs}
        for name, config in self.configs.items():
            called = {step.model_name for step in config.ensemble_scheduling.step}
            called |= {value.string_value for value in config.parameters.values()}
            called &= links.keys()
            joins = sum(self.answers_late(other) for other in called) <= 1
            for other in called:
                links[other].add(name)
                if joins:
                    links[name].add(other)
        found: set[str] = set()
        ahead = [model for model in models if model in links]
        while ahead:
            model = ahead.pop()
            if model not in found:
                found.add(model)
                ahead += links[model]
        return found
