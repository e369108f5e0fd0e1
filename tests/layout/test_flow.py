"""The rule-based layout and the picture: valid on every canvas, in every style; and rooms apart."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import product
from random import Random

import pytest

from nereid.layout.arrange import arrange
from nereid.layout.canvas import Canvas, Density, Style
from nereid.layout.checks import Check, check_layout, has_errors
from nereid.layout.elements import TEXTS, Section
from nereid.layout.flow import flow_layout, usual_arrangement
from nereid.layout.picture import picture
from nereid_zoo.layout.batches import sample_row

from sections import section, two_cards


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_rules_lay_out_any_section_in_any_style_without_error(width: int) -> None:
    rng = Random(width)
    for style, density in product(Style, Density):
        canvas = Canvas.of(width, density, None, style)
        made = Section.of(canvas, sample_row(rng)[0].elements)
        findings = check_layout(made, flow_layout(made))
        assert not has_errors(findings), (canvas, findings)


def test_arranged_text_has_room_to_spare() -> None:
    """What is drawn a little narrower and lower still holds its text."""
    rng = Random(7)
    for _ in range(40):
        made, _ = sample_row(rng)
        boxes = arrange(made, usual_arrangement(made.canvas))
        tight = [box._replace(width=box.width * 0.97, height=box.height - 5) for box in boxes]
        texts = {element.id for element in made.elements if element.kind in TEXTS}
        found = [finding for finding in check_layout(made, tight) if finding.check is Check.MINIMUM_SIZE]
        assert not texts & {finding.elements[0] for finding in found}


def test_rules_keep_fixed_fields() -> None:
    made = section(
        {"id": "title", "class": "heading", "characters": 8},
        {"id": "image", "class": "image", "ratio": 2, "fixed": {"y": 400, "width": 480}},
    )
    boxes = flow_layout(made)
    assert (boxes[1].y, boxes[1].width) == (400, 480)
    assert not has_errors(check_layout(made, boxes))


def test_the_same_section_is_laid_out_the_same_way() -> None:
    made, _ = two_cards()
    assert flow_layout(made) == flow_layout(made)


def test_a_picture_has_a_box_for_each_element_and_outlines_what_is_wrong() -> None:
    made, boxes = two_cards()
    boxes[1] = boxes[1]._replace(y=80.0)
    tree = ElementTree.fromstring(picture(made, boxes, check_layout(made, boxes)))
    groups = {(group[0].text or "").split()[0]: group for group in tree.iterfind("{*}g")}
    assert set(groups) == {element.id for element in made.elements}
    lead = groups["lead"].find("{*}rect")
    assert lead is not None
    assert (lead.get("y"), lead.get("stroke"), lead.get("stroke-dasharray")) == ("80", "#dc2626", None)
    assert "disjoint: 24, limit 0" in (groups["lead"][0].text or "")
    card = groups["one"].find("{*}rect")
    assert card is not None
    assert card.get("stroke") == "#6b7280"


def test_a_picture_has_a_title_and_tells_warnings_from_errors_without_their_colour() -> None:
    made, boxes = two_cards()
    boxes[1] = boxes[1]._replace(x=boxes[1].x + 3)
    tree = ElementTree.fromstring(picture(made, boxes, check_layout(made, boxes)))
    assert (tree[0].text or "").startswith(f"Layout of {len(boxes)} elements, 1280 x ")
    drawn = [box for box in tree.iterfind("{*}g/{*}rect") if box.get("stroke") == "#d97706"]
    assert drawn
    assert {box.get("stroke-dasharray") for box in drawn} == {"6 3"}


def test_an_id_cannot_write_into_the_picture() -> None:
    made = section({"id": "<script>", "class": "paragraph", "characters": 3})
    assert "<script>" not in picture(made, flow_layout(made))


def test_what_serves_needs_neither_torch_nor_the_zoo() -> None:
    modules = "elements element_list html canvas checks repair flow picture tokens".split()
    program = "import sys\n" + "".join(f"import nereid.layout.{module}\n" for module in modules)
    program += "print([name for name in ('torch', 'diffusers', 'scipy', 'nereid_zoo', 'nereid_export') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
