"""The table of clients is a promise: what was seen, by whom, compared with what is seen now, and written by runs alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client_list import CLIENTS, HERE, Listed
from client_table import BEGIN, END, Row, broken_promises, read_rows, rows_of, with_table, write

PAGE = f"# Clients\n\n{BEGIN}\n{END}\n\nMore.\n"
ONE = Row(
    client="one", version="1.0", works=("chat", "stream"), fails={"tools": "a | b\nc"}, day="2026-11-29", nereid="1.2", asked="x"
)
TWO = Row(client="two", version="2.0", works=("chat",), day="2026-11-28", nereid="1.2", asked="y")
SHIPPED = HERE.parents[1] / "docs" / "clients.md"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    file = tmp_path / "clients.md"
    file.write_text(PAGE)
    return file


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    return tmp_path / "seen.json"


def said(client: str, capability: str, works: bool, why: str = "") -> dict[str, object]:
    return {"client": client, "version": "1.1", "capability": capability, "works": works, "why": why}


def test_what_scripts_say_becomes_rows() -> None:
    rows = rows_of([said("one", "chat", True), said("two", "chat", True), said("one", "tools", False, "a | b")])
    assert rows["one"] == Row(client="one", version="1.1", works=("chat",), fails={"tools": "a | b"})
    assert rows["two"].works == ("chat",)


def test_a_capability_that_a_row_has_and_that_broke_is_named() -> None:
    now = rows_of([said("one", "chat", True), said("one", "stream", False, "it ends early")])["one"]
    assert broken_promises(ONE, now) == ["one: stream no longer works: it ends early"]
    assert broken_promises(ONE, Row(client="one", works=("chat",))) == ["one: stream no longer works: it was not asked for"]
    assert not broken_promises(None, now)


def test_what_is_written_is_read_and_the_page_has_it(seen: Path, page: Path) -> None:
    assert read_rows(seen) == {}
    write(seen, page, {"one": ONE, "two": TWO}, ("two", "one", "three"))
    assert read_rows(seen) == {"one": ONE, "two": TWO}
    text = page.read_text()
    assert "| two | 2.0 | 2026-11-28, Nereid 1.2 | chat | - |\n| one | 1.0 | 2026-11-29, Nereid 1.2 | chat, stream |" in text
    assert "| chat, stream | tools: a / b c |\n| three | - | not run | - | - |\n" in text
    assert text.startswith("# Clients\n\n")
    assert text.endswith(f"{END}\n\nMore.\n")
    write(seen, page, {"one": ONE}, ("one",))
    assert "two" not in page.read_text()
    assert sorted(file.name for file in page.parent.iterdir()) == ["clients.md", "seen.json"]


@pytest.mark.parametrize(
    "change", [{"works": ["chat", "tools"]}, {"version": "2.1"}, {"day": "2026-12-01"}, {"seal": "0"}], ids=str
)
def test_a_row_that_was_changed_by_hand_is_refused(seen: Path, page: Path, change: dict[str, object]) -> None:
    write(seen, page, {"two": TWO}, ("two",))
    entries = json.loads(seen.read_text())
    seen.write_text(json.dumps([{**entries[0], **change}]))
    with pytest.raises(ValueError, match="the row of two was not written by a run"):
        read_rows(seen)


def test_nothing_is_half_written(seen: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(seen, page, {"two": TWO}, ("two",))
    before = seen.read_text(), page.read_text()

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:40])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write(seen, page, {"one": ONE}, ("one",))
    assert (seen.read_text(), page.read_text()) == before
    assert sorted(file.name for file in page.parent.iterdir()) == ["clients.md", "seen.json"]


def test_a_page_without_a_place_for_the_table_is_refused_before_anything_is_written(seen: Path, page: Path) -> None:
    page.write_text("# Clients")
    with pytest.raises(ValueError, match="are missing"):
        write(seen, page, {"one": ONE}, ("one",))
    assert not seen.exists()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_client_has_its_script_and_its_pins(client: Listed) -> None:
    script = HERE / "asked" / client.script
    assert f'"{client.name}"' in script.read_text()
    assert client.pins.is_file()
    assert client.asked
    if not client.is_node:
        lines = client.pins.read_text().splitlines()
        assert lines
        assert all("==" in line for line in lines)


def test_other_pins_or_another_script_are_other_than_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, name in (("asked", "x.py"), ("asked", "hooks.py"), ("requirements", "x.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("a")
    monkeypatch.setattr("client_list.HERE", tmp_path)
    client = Listed(name="x", script="x.py", environment="x", beside=("hooks.py",))
    found = {client.asked}
    for name in ("asked/x.py", "asked/hooks.py", "requirements/x.txt"):
        (tmp_path / name).write_text("b")
        found.add(client.asked)
    assert len(found) == 4


def test_no_capability_has_a_comma_for_the_table_lists_them_by_it() -> None:
    for client in CLIENTS:
        for file in (client.script, *client.beside):
            names = re.findall(r'capability\(f?"([^"]+)"', (HERE / "asked" / file).read_text())
            assert not [name for name in names if ", " in name]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_file_of_a_script_is_part_of_what_is_asked(client: Listed) -> None:
    """A row is of all of them: what a script imports of the folder stands in `beside`."""
    asked = {file.stem: file.name for file in (HERE / "asked").glob("*.py")}
    files = [client.script, *client.beside]
    found = set()
    for file in files:
        for line in (HERE / "asked" / file).read_text().splitlines():
            word = line.split()[1] if line.startswith(("from ", "import ")) else ""
            found |= {asked[word]} if word in asked and file.endswith(".py") else set()
    assert found <= set(files)


def test_the_shipped_table_is_what_runs_have_written_of_the_clients_as_they_are_asked_now() -> None:
    rows, known = read_rows(HERE / "seen.json"), [client.name for client in CLIENTS]
    assert set(rows) <= set(known)
    text = SHIPPED.read_text(encoding="utf-8")
    assert with_table(text, rows, known) == text, "docs/clients.md was changed by hand; make test-clients writes it"
    stale = [client.name for client in CLIENTS if client.name in rows and rows[client.name].asked != client.asked]
    assert not stale, f"script or pins have changed since the run; make test-clients ARGS='--only ...' for {stale}"
