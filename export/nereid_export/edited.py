"""A published repository is edited as a whole: a copy is changed, its digests are taken anew, and it is published at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nereid.diffusion.settings import PIPELINE_FILE
from nereid.engines.digests import DigestError, Verifier
from nereid.layout.settings import LAYOUT_FILE
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, Progress, file_digests
from nereid_export.publish import destination, link_or_copy, locked, publish, readable_failures

Manifest = dict[str, Any]


@contextmanager
def edited(
    repository: Path, progress: Progress, verb: str, wanted: Callable[[Manifest], bool], otherwise: str
) -> Iterator[tuple[Path, dict[Path, Manifest]]]:
    """A copy of the repository, and the `wanted` manifests by their place in it; what the body changes of both is published.

    Raises ExportError where there is no such manifest (`otherwise` says what that would be), or files are not what was exported;
    the repository is then as it was before.
    """
    if not repository.is_dir():
        raise ExportError(f"{repository} is no folder; it must be an exported repository")
    repository = destination(repository)
    beside = repository.parent / f".{repository.name}.{verb}"
    with (
        locked(repository, lambda: progress.waiting(f"an export writes to {repository}; waiting for it")),
        readable_failures(repository),
        _removed(beside),
    ):
        homes = _homes(repository, wanted)
        if not homes:
            raise ExportError(f"{repository}: nothing here was exported {otherwise}")
        shutil.copytree(repository, beside, ignore=shutil.ignore_patterns("__pycache__"), copy_function=_link_or_copy)
        before = {home: (repository / home).read_bytes() for home in homes}
        yield beside, homes
        if any((repository / home).read_bytes() != text for home, text in before.items()):
            raise ExportError(f"{repository}: it was changed meanwhile; nothing was published, begin again")
        for home, manifest in homes.items():
            (beside / home).unlink()
            found = {model: file_digests(beside / model) for model in manifest["models"]}
            manifest["files"] = {f"{model}/{file}": digest for model, its in found.items() for file, digest in its.items()}
            (beside / home).write_text(json.dumps(manifest, indent=1))
        progress.step("publishing the repository")
        publish(beside, repository)


@contextmanager
def damage_named(manifest: Path) -> Iterator[None]:
    """Turn what is not in a manifest, or not as export writes it, into one sentence."""
    try:
        yield
    except DigestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{manifest} is damaged ({type(error).__name__}: {error}); export the models again") from error


def rewrite_facts(repository: Path, manifest: Manifest, **facts: Any) -> None:
    """Change what every model of the pipeline knows of it (pipeline.json)."""
    for model in manifest["models"]:
        file = repository / model / "1" / PIPELINE_FILE
        if file.is_file():
            file.write_text(json.dumps({**json.loads(file.read_text()), **facts}, indent=1))


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """The folder is not there before, nor after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _homes(repository: Path, wanted: Callable[[Manifest], bool]) -> dict[Path, Manifest]:
    verifier, found = Verifier(repository), {}
    try:
        # Engines are programs: what is run here is what was exported.
        verifier.verify(folder.name for folder in sorted(repository.iterdir()) if folder.is_dir())
        for file in sorted(repository.glob(f"*/{MANIFEST}")):
            manifest = json.loads(file.read_text())
            if wanted(manifest):
                with damage_named(file):
                    verifier.verify([*manifest["models"], *manifest["engines"]])  # whole folders may be gone
                found[file.relative_to(repository)] = manifest
    except DigestError as error:
        raise ExportError(str(error)) from None
    return found


def _link_or_copy(source: str, target: str) -> None:
    """Engines and code are linked; what is edited here is copied, so that the published file stays as it is."""
    written = (MANIFEST, PIPELINE_FILE, LAYOUT_FILE, ".pbtxt")
    (shutil.copy2 if source.endswith(written) else link_or_copy)(source, target)
