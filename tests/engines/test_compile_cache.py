"""Compiled engines on disk: what is kept, what is damaged, whose folder it must be, when entries go."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nereid.engines.compile_cache import KEPT_DAYS, CompileCache, choose_folder, default_folder


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(choose_folder(tmp_path / "deep" / "cache", tmp_path / "other") / "engines")


def write(cache: CompileCache, *key: str) -> Path:
    with cache.entry(*key) as made:
        assert made is not None
        (made / "blob").write_text("compiled")
    (entry,) = cache.folder.iterdir()
    return entry


def test_an_entry_is_found_again_by_its_key_alone(cache: CompileCache) -> None:
    entry = write(cache, "a", "bc")
    with cache.entry("a", "bc") as found:
        assert found == entry
    with cache.entry("ab", "c") as other:
        assert other is not None
        assert list(other.iterdir()) == []


def test_what_a_failure_has_written_is_not_kept(cache: CompileCache) -> None:
    def fail() -> None:
        with cache.entry("a") as made:
            assert made is not None
            (made / "blob").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert list(cache.folder.iterdir()) == []


def test_an_entry_in_which_nothing_was_kept_is_none(cache: CompileCache) -> None:
    """OpenVINO removes what it cannot write whole, and says nothing."""
    with cache.entry("a"):
        pass
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("make", [lambda place: place.write_text("x"), lambda place: place.symlink_to("/nowhere")])
def test_what_stands_where_an_entry_should_is_removed(make: Callable[[Path], object], cache: CompileCache) -> None:
    entry = write(cache, "a")
    shutil.rmtree(entry)
    make(entry)
    assert (write(cache, "a") / "blob").read_text() == "compiled"
    assert not entry.is_symlink()


def test_a_cache_that_can_only_be_read_is_read(cache: CompileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    entry = write(cache, "a")
    monkeypatch.setattr(os, "utime", refused)
    with cache.entry("a") as found:
        assert found == entry


@pytest.mark.parametrize("content", ["compilex", "comp", None])
def test_a_damaged_entry_is_named_and_written_anew(
    content: str | None, cache: CompileCache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = write(cache, "a")
    if content is None:
        (entry / "digests.json").unlink()
    else:
        (entry / "blob").write_text(content)
    assert (write(cache, "a") / "blob").read_text() == "compiled"
    assert f"{entry} is damaged; the engine is compiled again" in caplog.text


def test_the_slower_of_two_processes_keeps_what_the_other_has_written(cache: CompileCache) -> None:
    with cache.entry("a") as slower:
        assert slower is not None
        (slower / "blob").write_text("slower")
        with cache.entry("a") as faster:
            assert faster is not None
            (faster / "blob").write_text("faster")
    (entry,) = cache.folder.iterdir()
    assert (entry / "blob").read_text() == "faster"


@pytest.mark.parametrize("place", ["cache", "cache/engines"])
def test_a_folder_that_others_can_write_to_is_refused_by_name(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, other = tmp_path / "cache", tmp_path / "other"
    assert choose_folder(wanted, other) == wanted
    assert wanted.stat().st_mode & 0o777 == 0o700
    (tmp_path / place).chmod(0o770)
    with caplog.at_level(logging.WARNING, "nereid"):
        assert choose_folder(wanted, other) == other
    assert f"--cache-dir: {tmp_path / place} is not used: it must be a folder of this user that others cannot" in caplog.text


def test_a_link_is_no_folder_of_this_user(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    assert choose_folder(tmp_path / "cache", tmp_path / "other") == tmp_path / "other"


def test_what_nobody_used_for_long_goes_and_other_things_stay(cache: CompileCache, tmp_path: Path) -> None:
    old = write(cache, "old")
    (cache.folder / "mine").mkdir()
    past = time.time() - (KEPT_DAYS + 1) * 86400
    for path in (old, cache.folder / "mine"):
        os.utime(path, (past, past))
    with cache.entry("old"):  # is used now
        pass
    choose_folder(cache.folder.parent, tmp_path / "other")
    assert old.is_dir()
    os.utime(old, (past, past))
    choose_folder(cache.folder.parent, tmp_path / "other")
    assert [path.name for path in cache.folder.iterdir()] == ["mine"]


def test_an_entry_that_another_server_renames_while_old_ones_are_looked_for_costs_nothing(
    cache: CompileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = cache.folder / "new-abc"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda folder: iter([gone]))
        assert choose_folder(cache.folder.parent, tmp_path / "other") == cache.folder.parent
    assert caplog.text == ""


def test_the_users_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/nereid")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path("/home/somebody/.cache/nereid")
