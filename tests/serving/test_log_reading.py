"""What is said of a server that did not start: the first model's own sentence."""

from __future__ import annotations

from nereid.serving.process import first_failure


def test_a_python_models_refusal_is_told_without_its_traceback() -> None:
    lines = [
        'I1125 09:02:09.1 7 server.cc:1] "loading"',
        "E1125 09:02:10.2 7 model_lifecycle.cc:642] \"failed to load 'denoise' version 1: Internal: ValueError: parameter "
        'max_inflght: not known; did you mean max_inflight?\\n\\nAt:\\n  /srv/nereid/flow/parameters.py(23): refuse_unknown\\n"',
        "E1125 09:02:10.3 7 model_lifecycle.cc:642] \"failed to load 'unet' version 1: Unavailable\"",
    ]
    said = (
        "failed to load 'denoise' version 1: Internal: ValueError: parameter max_inflght: not known; did you mean max_inflight?"
    )
    assert first_failure(lines) == said


def test_another_backends_refusal_is_told_as_it_is() -> None:
    line = "E1125 09:02:10.3 7 model_lifecycle.cc:642] failed to load 'unet' version 1: Unavailable: no such file"
    assert first_failure([line]) == "failed to load 'unet' version 1: Unavailable: no such file"
    assert first_failure(["I1125 1 server.cc:1] all is well"]) == ""
