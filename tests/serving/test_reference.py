"""docs/reference.md is what the tables say."""

from __future__ import annotations

from nereid.serving.reference import PAGE, page
from nereid_protocol.errors import ErrorKind
from nereid_protocol.image_fields import IMAGE_FIELDS
from nereid_protocol.sampling import SAMPLING_FIELDS


def test_reference_page_equals_the_tables() -> None:
    assert PAGE.read_text() == page(), "write it anew with `make reference`"


def test_reference_page_names_every_field_and_error() -> None:
    names = (*(field.name for field in IMAGE_FIELDS), *(field.name for field in SAMPLING_FIELDS), *ErrorKind)
    missing = [name for name in names if f"| `{name}` |" not in page()]
    assert not missing


def test_limits_of_the_page_are_explained_where_they_stand() -> None:
    text = page()
    for name in ("max_inflight", "memory_budget_bytes", "use_slicing", "kv_tokens", "speculation"):
        line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |") and line.count("|") == 4)
        assert len(line.split("|")[3].strip()) > 10
