"""Export of `page`: what it takes from the models beside it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nereid.page.settings import PAGE_FILE, PageFacts, PageLimits
from nereid_export.configs import read_config
from nereid_export.errors import ExportError

from conftest import ZOO, export, export_layout, export_llm, export_page

pytestmark = pytest.mark.torch

PROMPTS = ZOO / "shapes" / "page-prompts.json"


@pytest.fixture(scope="module")
def beside(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all that a page calls; to be copied."""
    out = tmp_path_factory.mktemp("beside") / "out"
    export(checkpoints["sd"], out)
    export_llm(ZOO / "sections" / "checkpoint", out)
    export_layout(checkpoints["layout"], out)
    return out


@pytest.fixture
def out(beside: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(beside, tmp_path / "out"))


def facts_of(out: Path, model: str = "page") -> PageFacts:
    return PageFacts.read(out / model / "1")


def test_a_page_knows_its_writers_chat_its_painters_language_and_whom_to_call(out: Path) -> None:
    before = {path.name for path in out.iterdir()}
    manifest = export_page(out, picture_prompts=PROMPTS)
    assert {path.name for path in out.iterdir()} == before | {"page"}
    facts = facts_of(out)
    assert facts.chat.prompt("hero for a gym") == "<|im_start|>user\nhero for a gym<|im_end|>\n<|im_start|>assistant\n"
    assert set(facts.chat.marks) == {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    assert facts.language.as_json() == {**json.loads(PROMPTS.read_text()), "by_topic": ["background"]}
    assert facts.picture_ratio == 1.0
    parameters = {key: value.string_value for key, value in read_config(out / "page" / "config.pbtxt").parameters.items()}
    parameters.pop("restart_on_death")
    limits = PageLimits.from_parameters(parameters)
    assert (limits.llm_model, limits.layout_model, limits.denoise_model, limits.planner_model) == ("llm", "layout", "denoise", "")
    assert manifest["models"] == ["page"]


def test_a_planner_and_a_prefix_are_those_that_were_named(out: Path) -> None:
    for model in ("llm", "layout", "text_to_image", "denoise"):
        shutil.copytree(out / model, out / f"x_{model}")
    export_page(out, name="x", planner="llm")
    parameters = read_config(out / "x_page" / "config.pbtxt").parameters
    assert parameters["planner_model"].string_value == "llm"
    assert parameters["text_to_image_model"].string_value == "x_text_to_image"
    assert facts_of(out, "x_page").planner_chat == facts_of(out, "x_page").chat
    assert facts_of(out, "x_page").language.template == "{alt}, {topic}"


def test_without_a_layout_model_rules_are_asked_for_by_name(out: Path) -> None:
    shutil.rmtree(out / "layout")
    with pytest.raises(ExportError, match=r"has no model layout.*\(--no-layout\)"):
        export_page(out)
    export_page(out, layout=False)
    assert read_config(out / "page" / "config.pbtxt").parameters["layout_model"].string_value == ""


@pytest.mark.parametrize(
    ("options", "missing", "said"),
    [
        ({}, "layout", "has no model layout, which page calls"),
        ({}, "text_to_image", "has no model text_to_image"),
        ({"planner": "nobody"}, "", "has no model nobody"),
        ({"planner": "layout"}, "", "layout is no language model"),
        ({"name": "a b"}, "", "--name: 'a b' is not allowed"),
        ({"name": "x"}, "", "has no model x_llm"),
        ({"picture_prompts": Path("/nowhere")}, "", "--picture-prompts: /nowhere cannot be read"),
        ({"picture_prompts": ZOO / "sections" / "checkpoint" / "config.json"}, "", "--picture-prompts: .* is not allowed"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_changed(
    out: Path, options: dict[str, Any], missing: str, said: str
) -> None:
    if missing:
        shutil.rmtree(out / missing)
    before = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    with pytest.raises(ExportError, match=said):
        export_page(out, **options)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == before


def test_a_language_model_without_a_template_is_asked_plainly(out: Path) -> None:
    (out / "llm" / "1" / "chat_template.jinja").unlink()
    export_page(out)
    assert facts_of(out).chat.prompt("hero") == "hero\n"
    raw = json.loads((out / "page" / "1" / PAGE_FILE).read_text())
    assert raw["chat"]["whole"] is False
    (out / "llm" / "1" / "chat_template.jinja").write_text("nothing of it")
    with pytest.raises(ExportError, match="leaves the user's message out"):
        export_page(out)


def test_a_pipeline_that_cannot_be_read_is_refused_by_its_file(out: Path) -> None:
    (out / "denoise" / "1" / "pipeline.json").write_text("{}")
    with pytest.raises(ExportError, match=r"denoise/1/pipeline\.json is not what export writes: it lacks"):
        export_page(out)
