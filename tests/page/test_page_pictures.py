"""The language that pictures are asked for in."""

from __future__ import annotations

import pytest

from nereid.page.pictures import PictureLanguage

WORDS = {"size": ["small", "large"], "color": ["red", "blue", "green"]}
RAW = {"template": "a {size} {color} {alt}", "words": WORDS, "by_topic": ["size"]}


def test_a_prompt_is_of_the_lists_words_and_the_same_again() -> None:
    language = PictureLanguage.read(RAW)
    made = [language.prompt("bread", f"topic {n // 4}", n) for n in range(64)]
    assert made == [language.prompt("bread", f"topic {n // 4}", n) for n in range(64)]
    assert {prompt.split()[1] for prompt in made} == {"small", "large"}
    assert {prompt.split()[2] for prompt in made} == {"red", "blue", "green"}
    assert all(len({prompt.split()[1] for prompt in made[at : at + 4]}) == 1 for at in range(0, 64, 4))
    assert PictureLanguage.read(language.as_json()) == language


def test_without_a_language_of_its_own_a_picture_is_asked_for_in_words() -> None:
    assert PictureLanguage().prompt("rye bread", "a bakery", 0) == "rye bread, a bakery"
    assert PictureLanguage().prompt("", "a bakery", 0) == "a bakery, a bakery"
    assert PictureLanguage().prompt("{topic.x} %s", "{0}", 0) == "{topic.x} %s, {0}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{what}"}, "template"),
        ({"template": "{alt.__class__}"}, "template"),
        ({"template": "{alt!r:>10}"}, "template"),
        ({"template": "{}"}, "template"),
        ({"template": 3}, "template"),
        ({"template": " "}, "template"),
        ({"by_topic": [["size"]]}, "by_topic"),
        ({"words": {"size": []}}, "words"),
        ({"words": ["a"]}, "words"),
        ({"by_topic": ["shape"]}, "by_topic"),
        ({"more": 1}, "an object of"),
    ],
)
def test_a_language_that_is_none_is_refused_by_member(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PictureLanguage.read({**RAW, **changes})
    with pytest.raises(ValueError, match="an object"):
        PictureLanguage.read([])
