"""The files of a batch's answers as they are written: good ones and errors apart; knows no store."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nereid.serving.gateway.batches.usage import BatchUsage
from nereid_protocol.json_lines import json_line

Answered = tuple[str, int | None, str | None]
"""Of one request its custom id, whether it went well, and its answer as JSON; None, None: there is none."""


def write_answers(
    answers: Iterable[Answered], files: Mapping[bool, Path], unanswered: Mapping[str, str] | None
) -> tuple[dict[bool, int], BatchUsage]:
    """How many lines each file has, and what they have used; `unanswered` is the error of requests without an answer."""
    written, used = dict.fromkeys(files, 0), BatchUsage()
    with contextlib.ExitStack() as stack:
        opened = {ok: stack.enter_context(file.open("w", encoding="utf-8")) for ok, file in files.items()}
        for custom_id, ok, answer in answers:
            told: dict[str, Any] = {"response": None, "error": unanswered} if answer is None else json.loads(answer)
            if ok:
                used.add(told["response"].get("body"))
            opened[bool(ok)].write(json_line({"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, **told}) + "\n")
            written[bool(ok)] += 1
        for stream in opened.values():
            stream.flush()
            os.fsync(stream.fileno())
    return written, used
