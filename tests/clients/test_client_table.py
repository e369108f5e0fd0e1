"""The table of clients is a promise: read, compared with what was seen, and written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from client_list import CLIENTS
from client_table import BEGIN, END, Row, broken_promises, read_table, rows_of, write_table

HERE = Path(__file__).parent
PAGE = f"""# Clients

{BEGIN}
| client | version | works | does not |
| --- | --- | --- | --- |
| one | 1.0 | chat, stream | tools: it does not |
| two | 2.0 | chat | - |
{END}

More.
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "clients.md"
    file.write_text(PAGE)
    return file


def said(client: str, capability: str, works: bool, why: str = "") -> dict[str, object]:
    return {"client": client, "version": "1.1", "capability": capability, "works": works, "why": why}


def test_what_scripts_say_becomes_rows() -> None:
    rows = rows_of([said("one", "chat", True), said("two", "chat", True), said("one", "tools", False, "a | b")])
    assert rows["one"] == Row(client="one", version="1.1", works=("chat",), fails={"tools": "a | b"})
    assert rows["two"].works == ("chat",)


def test_a_capability_that_the_table_has_and_that_broke_is_named() -> None:
    seen = rows_of([said("one", "chat", True), said("one", "stream", False, "it ends early")])
    assert broken_promises(read_table(PAGE), seen) == ["one: stream no longer works: it ends early"]


def test_a_client_that_was_not_run_breaks_all_its_promises() -> None:
    (broken,) = broken_promises(read_table(PAGE), {"two": Row(client="two", fails={"not run": "no network"})})
    assert broken == "two: chat no longer works: no network"


def test_clients_that_were_not_asked_break_nothing_and_stay(page: Path) -> None:
    seen = rows_of([said("two", "chat", True), said("two", "tools", False, "a | b\nc")])
    assert not broken_promises(read_table(PAGE), seen)
    write_table(page, seen, ("two", "one"))
    text = page.read_text()
    assert "| two | 1.1 | chat | tools: a / b c |\n| one | 1.0 | chat, stream | tools: it does not |\n" in text
    assert text.startswith("# Clients")
    assert text.endswith(f"{END}\n\nMore.\n")
    assert read_table(text)["one"].works == ("chat", "stream")


def test_a_row_without_anything_is_no_promise(page: Path) -> None:
    write_table(page, {"two": Row(client="two", fails={"not run": "no network"})}, ("one", "two"))
    assert read_table(page.read_text())["two"].works == ()


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="are missing"):
        read_table("# Clients")


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_client_has_its_script_and_its_pins(client: object) -> None:
    script = HERE / "asked" / client.script  # type: ignore[attr-defined]
    assert f'"{client.name}"' in script.read_text()  # type: ignore[attr-defined]
    if client.is_node:  # type: ignore[attr-defined]
        assert (HERE / "node" / client.environment / "package-lock.json").is_file()  # type: ignore[attr-defined]
        return
    lines = (HERE / "requirements" / f"{client.environment}.txt").read_text().splitlines()  # type: ignore[attr-defined]
    assert lines
    assert all("==" in line for line in lines)


def test_no_capability_has_a_comma_for_the_table_lists_them_by_it() -> None:
    for client in CLIENTS:
        names = re.findall(r'capability\(f?"([^"]+)"', (HERE / "asked" / client.script).read_text())
        assert not [name for name in names if ", " in name]


def test_the_shipped_table_promises_what_its_clients_ask() -> None:
    table = read_table((HERE.parents[1] / "docs" / "clients.md").read_text())
    assert set(table) <= {client.name for client in CLIENTS}
