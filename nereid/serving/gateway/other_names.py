"""Fields of a request by the names that they have in another form of it: OpenAI's older functions, responses; knows no form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nereid.serving.gateway.errors import ApiError

_SCHEMA = ".parameters."
"""Behind it stand names of a schema's author."""


@dataclass(frozen=True, slots=True)
class OtherNames:
    """`pairs`: parts of a field's path, and what the other form calls them, in the order in which they are replaced.

    `kept`: how paths begin that are the same in both.
    """

    pairs: tuple[tuple[str, str], ...]
    kept: tuple[str, ...] = ()

    def of(self, field: str) -> str:
        """The field's other name; what stands in a schema keeps its own."""
        if field.startswith(self.kept):
            return field
        before, mark, authors = field.partition(_SCHEMA)
        ours = before + mark
        for name, other in self.pairs:
            ours = ours.replace(name, other)
        return ours + authors

    def of_inputs(self, names: Mapping[str, str]) -> dict[str, str]:
        """The caller's names of `llm`'s inputs."""
        return {inner: self.of(name) for inner, name in names.items()}

    def refusal(self, error: ApiError) -> ApiError:
        """The same in the caller's names."""
        if error.param is not None:
            head, colon, rest = error.message.partition(":")
            error.param, error.message = self.of(error.param), self.of(head) + colon + rest
        return error
