"""Files of a repository against the digests of its export: what changed is named and not loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nereid.engines import digests
from nereid.engines.digests import DigestError, Verifier, fingerprint_of, sign, verify_model
from nereid.serving.errors import ServingError
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid_client.main import app

MODELS = ["text_to_image", "unet"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two exported models, and one of somebody's own."""
    folder = tmp_path / "repository"
    for model in (*MODELS, "own"):
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(f'name: "{model}"')
        (folder / model / "1" / "model.onnx").write_bytes(b"engine")
    manifest = {"version": digests.MANIFEST_VERSION, "models": MODELS, "files": {}}
    (folder / "text_to_image" / "manifest.json").write_text(json.dumps(manifest))
    assert sign(folder) == MODELS
    return folder


def _flip(repository: Path) -> None:
    """One byte, and the time of change put back: inode and size are the same as well."""
    file = repository / "unet" / "1" / "model.onnx"
    stat = file.stat()
    file.write_bytes(b"enginf")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (_flip, r"unet/1/model\.onnx was changed after its export"),
    (lambda folder: (folder / "unet" / "config.pbtxt").write_text("x"), r"unet/config\.pbtxt was changed"),
    (lambda folder: (folder / "unet" / "1" / "model.onnx").unlink(), r"unet/1/model\.onnx is missing"),
    (lambda folder: (folder / "unet" / "1" / "model.py").write_text("x"), r"unet/1/model\.py was not exported"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_damage_is_named(repository: Path, damage: Callable[[Path], object], said: str) -> None:
    Verifier(repository).verify(["unet", "text_to_image", "own"])
    damage(repository)
    with pytest.raises(DigestError, match=said):
        Verifier(repository).verify(["unet"])
    with pytest.raises(DigestError, match=said):
        verify_model(repository / "unet")
    verify_model(repository / "text_to_image")
    assert sign(repository) == ["unet"]
    verify_model(repository / "unet")


def test_fingerprint_is_of_all_that_was_exported_together_and_of_the_version(repository: Path) -> None:
    before = fingerprint_of(repository / "text_to_image", "1")
    (repository / "own" / "1" / "model.onnx").write_bytes(b"another")
    assert fingerprint_of(repository / "text_to_image", "1") == before
    assert fingerprint_of(repository / "text_to_image", "2") != before
    (repository / "unet" / "1" / "model.onnx").write_bytes(b"another")
    sign(repository)
    assert fingerprint_of(repository / "text_to_image", "1") != before


def test_models_of_ones_own_and_bytecode_are_let_be(repository: Path) -> None:
    (repository / "own" / "1" / "model.onnx").write_bytes(b"another")
    (repository / "unet" / "1" / "__pycache__").mkdir()
    (repository / "unet" / "1" / "__pycache__" / "model.pyc").write_bytes(b"x")
    Verifier(repository).verify(["own", "unet"])


def test_file_that_stands_as_it_stood_is_read_once(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    really = Verifier._read

    def count(self: Verifier, path: Path) -> str:
        read.append(path)
        return really(self, path)

    monkeypatch.setattr(Verifier, "_read", count)
    verifier = Verifier(repository)
    verifier.verify(MODELS)
    first = len(read)
    verifier.verify(MODELS)
    assert len(read) == first == 4
    verifier.share(tmp_path)
    monkeypatch.setenv("NEREID_STATE_DIR", str(tmp_path))
    verify_model(repository / "unet")
    assert len(read) == first
    (repository / "unet" / "1" / "model.onnx").write_bytes(b"enginf")
    with pytest.raises(DigestError):
        verify_model(repository / "unet")


def test_repository_of_an_earlier_version_is_refused_with_what_to_do(repository: Path, tmp_path: Path) -> None:
    file = repository / "text_to_image" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["version"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(DigestError, match=r"manifest\.json is of version 0\.1.*export the model again"):
        Verifier(repository).verify(["unet"])
    with pytest.raises(DigestError, match="export the model again"):
        sign(repository)


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1}', '{"version": 2}', None])
def test_a_damaged_manifest_is_an_error_of_the_models_that_no_other_knows(repository: Path, damage: str | None) -> None:
    other = repository / "llm"
    (other / "1").mkdir(parents=True)
    (other / "1" / "model.onnx").write_bytes(b"engine")
    (other / "manifest.json").write_text(json.dumps({"version": digests.MANIFEST_VERSION, "models": ["llm"], "files": {}}))
    sign(repository)
    fingerprint = fingerprint_of(other, "1")
    file = repository / "text_to_image" / "manifest.json"
    if damage is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_text(damage)
    Verifier(repository).verify(["llm"])
    verify_model(other)
    assert fingerprint_of(other, "1") == fingerprint
    assert digests.version_digest(other / "1") is not None
    for model in (*MODELS, "own"):  # each may be one of those that it names
        for look in (
            lambda model=model: Verifier(repository).verify(["llm", model]),
            lambda model=model: verify_model(repository / model),
            lambda model=model: fingerprint_of(repository / model, "1"),
            lambda model=model: digests.version_digest(repository / model / "1"),
        ):
            with pytest.raises(DigestError, match=r"text_to_image/manifest\.json"):
                look()
    (other / "1" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(DigestError, match=r"llm/1/model\.onnx was changed"):
        verify_model(other)


def test_sign_of_the_command_line_says_what_changed(repository: Path) -> None:
    (repository / "unet" / "config.pbtxt").write_text("x")
    for said in ("signed: unet", "nothing was changed"):
        done = CliRunner().invoke(app, ["export", "sign", str(repository)])
        assert done.exit_code == 0
        assert said in done.output


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_sign_of_what_is_no_repository_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["export", "sign", str(tmp_path / name)])
    assert done.exit_code == 1
    assert f"error: {tmp_path / name} is no exported repository" in done.output.replace("\n", "")


@pytest.mark.triton
def test_serve_refuses_a_changed_file_before_anything_starts(repository: Path, tmp_path: Path) -> None:
    _flip(repository)
    with pytest.raises(ServingError, match=r"unet/1/model\.onnx was changed"):
        Supervisor(ServeOptions.on_free_ports(repository, tmp_path / "log")).start()
    assert (tmp_path / "log").exists() is False
