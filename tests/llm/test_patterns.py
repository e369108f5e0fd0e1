"""Regular expressions as answers are bound by them: which are found in a schema, and which are kept once looked at."""

from __future__ import annotations

from nereid.llm.patterns import _SHORT, _fault_kept, fault_of_pattern, patterns


def test_expressions_are_found_where_they_bind_something() -> None:
    schema = {
        "properties": {
            "a": {"type": "string", "pattern": "a+"},
            "b": {"type": ["null", "string"], "pattern": "b+"},
            "c": {"type": "integer", "pattern": "c+"},
            "d": {"$ref": "#/$defs/used"},
        },
        "patternProperties": {"^x": {"pattern": "e+"}},
        "enum": [{"pattern": "data"}],
        "$defs": {"used": {"pattern": "d+"}, "unused": {"pattern": "f+"}},
    }
    assert sorted(patterns(schema)) == [
        ("$defs.used.pattern", "d+"),
        ("patternProperties", "^x"),
        ("patternProperties.^x.pattern", "e+"),
        ("properties.a.pattern", "a+"),
        ("properties.b.pattern", "b+"),
    ]


def test_long_expressions_are_told_and_not_kept() -> None:
    kept = _fault_kept.cache_info().currsize
    for number in range(3):
        assert fault_of_pattern(f"{number}" + "a" * _SHORT) is None
        assert fault_of_pattern("a" * _SHORT + f"{number}[") == "unclosed character class"
    assert _fault_kept.cache_info().currsize == kept
