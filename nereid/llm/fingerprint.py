"""What an answer's tokens depend on besides its request, as one short word: engine and weights, precision, version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nereid.engines.digests import file_digest, own_version
from nereid.llm.settings import LlmLimits

_MANIFEST = "manifest.json"


def system_fingerprint(folder: Path, limits: LlmLimits, *, gpu: int | None) -> str:
    """For the exported model in this version folder; what answers the same request the same way has the same."""
    total = hashlib.sha256()
    engine = (limits.engine, limits.kv_cache_precision)
    total.update(json.dumps([own_version(), limits.batch_invariant, limits.threads, gpu is not None, *engine]).encode())
    total.update(json.dumps(_digests(folder)).encode())
    return f"nereid-{total.hexdigest()[:16]}"


def _digests(folder: Path) -> dict[str, str]:
    """Of the files that decide on tokens: as export noted them, or, without its manifest, read now."""
    manifest = folder.parent / _MANIFEST
    if manifest.is_file():
        noted = json.loads(manifest.read_text()).get("files", {})
        version = f"/{folder.name}/"
        found = {name.partition(version)[2]: digest for name, digest in noted.items() if version in name}
        if found:
            return dict(sorted(found.items()))
    return {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.rglob("*")) if _counts(file)}


def _counts(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts
