"""What the gateway offers while models come and go: looks that come to nothing, names that two have, limits that change."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.gateway import catalogue as catalogue_module
from nereid.serving.gateway.catalogue import Catalogue
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.repository import offered_models

CONFIG = 'name: "{name}" backend: "python" parameters {{ key: "max_queue" value: {{ string_value: "{queue}" }} }}'


def write_model(repository: Path, name: str, queue: int = 8, adapters: Sequence[str] = ()) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "llm.json").write_text(json.dumps({"adapters": adapters}))
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, queue=queue))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("a_llm", "b_llm"):
        write_model(tmp_path / "repository", name)
    return tmp_path / "repository"


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the gateway warns of, whatever libraries that other tests have loaded do to this process' logging."""
    found: list[str] = []
    monkeypatch.setattr(catalogue_module.log, "warning", lambda text, *values: found.append(text % values))
    return found


class Served:
    """What the supervisor says."""

    def __init__(self) -> None:
        self.models = ["a_llm", "b_llm"]

    def now(self, url: str) -> dict[str, Any]:
        return {"ready": True, "models": self.models}

    async def later(self, url: str) -> dict[str, Any]:
        return self.now(url)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    made = Served()
    monkeypatch.setattr(catalogue_module, "readiness", made.later)
    monkeypatch.setattr(catalogue_module, "readiness_now", made.now, raising=False)
    return made


def looked(repository: Path, *changes: Callable[[], object], rules: Rules | None = None) -> Catalogue:
    """A catalogue that has looked once at first, and once after each change."""

    async def run() -> Catalogue:
        made = Catalogue(repository, rules or Rules(), "127.0.0.1:9", "")
        try:
            await made.look()
            for change in changes:
                change()
                try:
                    await made.look()
                except Exception:
                    logging.getLogger("test").exception("a look has failed")
        finally:
            await made.close()
        return made

    return asyncio.run(run())


def test_what_nobody_serves_yet_hides_nothing_of_what_comes_and_goes(repository: Path, served: Served) -> None:
    """A folder that is half copied, or that nobody can load."""

    def change() -> None:
        write_model(repository, "c_llm")
        (repository / "c_llm" / "1" / "llm.json").write_text("{")
        (repository / "c_llm" / "config.pbtxt").write_text("{")
        served.models = ["a_llm"]

    assert [*looked(repository, change).models] == ["a_llm"]
    again = Catalogue(repository, Rules(), "127.0.0.1:9", "", first=False)
    assert [*again.models] == ["a_llm"]


def test_a_look_that_came_to_nothing_is_made_again(repository: Path, served: Served, warned: list[str]) -> None:
    """While the repository is exchanged, it is away, or a file of it is."""
    facts = repository / "a_llm" / "1" / "llm.json"
    away = repository.with_name("away")

    def leave() -> None:
        repository.rename(away)
        served.models = ["a_llm"]

    def come_damaged() -> None:
        away.rename(repository)
        facts.write_text("{")

    def nothing() -> None: ...

    made = looked(repository, leave, nothing, come_damaged, nothing)
    assert [*made.models] == ["a_llm"]  # as it was, and b_llm is served no more
    said = ("what is offered stays as it was: ", "what is offered of a_llm stays as it was: ")
    assert [warning.startswith(lead) for warning, lead in zip(warned, said, strict=True)] == [True] * 2  # once each
    facts.write_text("{}")
    served.models = ["a_llm", "b_llm"]

    def go_damaged() -> None:
        facts.write_text("{")
        served.models = ["a_llm"]

    made = looked(repository, go_damaged, lambda: facts.write_text("{}"))
    assert [*made.models] == ["a_llm"]


@pytest.mark.parametrize("damaged", ["1/llm.json", "config.pbtxt"])
def test_a_model_that_cannot_be_read_holds_up_no_other(repository: Path, served: Served, warned: list[str], damaged: str) -> None:
    """It stays as it was, with its adapters and aliases, while others and their adapters come and go."""
    shutil.rmtree(repository / "a_llm")
    write_model(repository, "a_llm", adapters=["verse"])
    file = repository / "a_llm" / damaged
    whole = file.read_text()

    def change() -> None:
        file.write_text("{")
        write_model(repository, "c_llm", adapters=["sql"])
        served.models = ["a_llm", "c_llm"]

    rules = Rules(aliases={"poet": "verse"})
    made = looked(repository, change, lambda: None, rules=rules)
    assert set(made.models) == {"a_llm", "verse", "poet", "c_llm", "sql"}
    assert (made.models["verse"].parent, made.models["poet"].root) == ("a_llm", "verse")
    assert [str(file) in said for said in warned] == [True]  # once
    again = Catalogue(repository, rules, "127.0.0.1:9", "", first=False)
    assert set(again.models) == {"c_llm", "sql"}  # a gateway that is started again does without it
    file.write_text(whole)
    served.models = ["a_llm", "b_llm"]

    def damage() -> None:
        file.write_text("{")
        served.models = ["a_llm", "b_llm", "c_llm"]

    mended = looked(repository, damage, lambda: file.write_text(whole))
    assert set(mended.models) == {"a_llm", "verse", "b_llm", "c_llm", "sql"}
    assert not mended._faults


def test_while_a_model_cannot_be_read_no_other_is_read_again(
    repository: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers are megabytes of JSON, and the gateway looks every second."""
    facts = repository / "a_llm" / "1" / "llm.json"
    reads: list[set[str]] = []

    def counted(*given: Any) -> Any:
        reads.append(set(given[2] or ()))
        return offered_models(*given)

    monkeypatch.setattr(catalogue_module, "offered_models", counted)

    def go_damaged() -> None:
        facts.write_text("{")
        served.models = ["a_llm"]

    def nothing() -> None: ...

    def other() -> None:
        served.models = ["a_llm", "b_llm"]

    def read_in(*changes: Callable[[], object]) -> list[set[str]]:
        facts.write_text("{}")
        served.models = ["a_llm", "b_llm"]
        reads.clear()
        looked(repository, *changes)
        return reads[2:]  # at its start, and at its first look

    assert read_in(go_damaged, nothing, nothing, other, nothing) == [{"a_llm"}, {"a_llm", "b_llm"}]
    assert read_in(go_damaged, nothing, lambda: facts.write_text("{}"), nothing) == [{"a_llm"}] * 2
    monkeypatch.setattr(catalogue_module, "AGAIN_SECONDS", 0.0)
    assert read_in(go_damaged, nothing, nothing) == [{"a_llm"}] * 3


def test_a_model_that_has_come_back_has_the_places_of_its_new_limits(repository: Path, served: Served) -> None:
    taken: list[int] = []

    def go() -> None:
        shutil.rmtree(repository / "b_llm")
        served.models = ["a_llm"]

    def come() -> None:
        write_model(repository, "b_llm", queue=50)
        served.models = ["a_llm", "b_llm"]

    made = looked(repository, go, come)
    taken = [made._places[name].most for name in ("a_llm", "b_llm")]
    assert taken[1] - taken[0] == 42


def test_a_model_that_comes_takes_no_name_of_an_adapter_or_alias(repository: Path, warned: list[str]) -> None:
    """Who asks for the name is answered by the same one as before; and what stands behind another name does not change either."""
    rules = Rules(aliases={"default_llm": "a_llm", "tools": "c_llm"})
    (repository / "a_llm" / "1" / "llm.json").write_text(json.dumps({"adapters": ["c_llm"]}))
    before = offered_models(repository, rules)
    write_model(repository, "default_llm")
    write_model(repository, "c_llm")
    after = offered_models(repository, rules, ["a_llm", "b_llm", "c_llm", "default_llm"], before)
    assert {name: (made.said, made.prefix) for name, made in after.items()} == {
        "a_llm": ("a model", "a"),
        "b_llm": ("a model", "b"),
        "default_llm": ("an alias of a_llm", "a"),
        "c_llm": ("an adapter of a_llm", "a"),
        "tools": ("an alias of c_llm", "a"),
    }
    assert "'c_llm' is a model, and an adapter of a_llm; each must have a name of its own: a model is not offered" in warned
    gone = offered_models(repository, rules, ["b_llm", "c_llm", "default_llm"], after)
    assert {name: made.said for name, made in gone.items() if name != "tools"} == dict.fromkeys(
        ("b_llm", "c_llm", "default_llm"), "a model"
    )
    back = offered_models(repository, rules, ["a_llm", "b_llm", "c_llm", "default_llm"], gone)
    assert (back["c_llm"].said, back["default_llm"].said) == ("a model", "a model")


def test_a_batch_that_names_no_model_is_for_the_only_language_model(repository: Path, served: Served) -> None:
    """As its requests are, whatever that has of adapters."""
    (repository / "a_llm" / "1" / "llm.json").write_text(json.dumps({"adapters": ["verse"]}))

    def change() -> None:
        served.models = ["a_llm"]

    two, one = looked(repository), looked(repository, change)
    assert [two.text_model(name) for name in (None, "", "b_llm", "c_llm", 5)] == [None, None, "b_llm", None, None]
    assert [one.text_model(name) for name in (None, "", "verse", "b_llm")] == ["a_llm", "a_llm", "a_llm", None]
