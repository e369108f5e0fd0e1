"""vLLM's server as a peer: what is said where it cannot run. (Its requests are tested at Nereid's own gateway, in e2e.)"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from nereid.serving.errors import ServingError
from nereid_bench import vllm_peer
from nereid_bench.vllm_peer import serving_vllm


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ServingError, match=r"--vllm: .*vllm cannot be run: no such file"),
        serving_vllm(tmp_path / "vllm", tmp_path, 1),
    ):
        pass


def test_an_error_amid_a_stream_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [b'data: {"choices": [{"text": "a"}]}\n', b'data: {"error": {"message": "no room"}}\n', b"data: [DONE]\n"]
    monkeypatch.setattr(vllm_peer.urllib.request, "urlopen", lambda *_, **__: nullcontext(said))
    with pytest.raises(ServingError, match=r"ended with an error: .*no room"):
        vllm_peer.stream_completion("http://nowhere", (5,), lambda: None)
    del said[1]
    with pytest.raises(ServingError, match="without its usage"):
        vllm_peer.stream_completion("http://nowhere", (5,), lambda: None)


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = tmp_path / "vllm"
    command.write_text('#!/bin/sh\necho "loading $2"\necho "no such dtype" >&2\nexit 3\n')
    command.chmod(0o755)
    with pytest.raises(ServingError, match="--vllm: the server ended with 3: no such dtype"), serving_vllm(command, tmp_path, 1):
        pass
