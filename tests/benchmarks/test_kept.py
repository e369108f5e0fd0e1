"""What the benchmark of kept features is asked for, and how modes take turns."""

from __future__ import annotations

import pytest

pytest.importorskip("nereid_bench")
from nereid_bench.kept import _turned, parse_modes


def test_modes_are_fields_of_requests_and_the_first_is_without_any() -> None:
    modes = parse_modes("cache_interval=3; cache=light,guidance_cache_interval=2;off;guidance_interval=0.1:0.6")
    assert modes == {
        "off": {},
        "cache_interval=3": {"cache_interval": 3},
        "cache=light,guidance_cache_interval=2": {"cache": "light", "guidance_cache_interval": 2},
        "guidance_interval=0.1:0.6": {"guidance_interval": (0.1, 0.6)},
    }
    assert next(iter(modes)) == "off"


@pytest.mark.parametrize("text", ["cache", "cache=", "steps=3", "cache_interval=3,x=1"])
def test_what_is_no_mode_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; it must be like cache=light"):
        parse_modes(text)


@pytest.mark.parametrize("text", ["guidance_interval=1", "guidance_interval=0.1:x", "guidance_interval=0:1:2"])
def test_an_interval_is_two_fractions(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed; it must be like guidance_interval=0.1:0.6"):
        parse_modes(text)


def test_each_round_begins_with_another_mode() -> None:
    modes = {"off": {}, "a": {}, "b": {}}
    assert [[name for name, _ in _turned(modes, turn)] for turn in range(3)] == [
        *(["off", "a", "b"], ["a", "b", "off"], ["b", "off", "a"]),
    ]
