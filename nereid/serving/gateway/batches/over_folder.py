"""Handlers over the folder of files and batches: where that cannot be used, they say so in OpenAI's form of an error."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from nereid.serving.gateway.batches.trouble import FOLDER_ERRORS, Trouble, trouble_of
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.guard import asked_by

log = logging.getLogger("nereid.gateway")

_RETRY_SECONDS = 60
"""What a caller is asked to wait where somebody has to put the folder right."""

Handler = Callable[[Request], Awaitable[Response]]


def over_folder(folder: Path, handler: Handler) -> Handler:
    """The same handler, whose errors that are the folder's fault are answered with 507 or 503 and a sentence."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except FOLDER_ERRORS as error:
            trouble = trouble_of(error, folder)
            if trouble is None:
                raise
            log.warning("request %s: the folder of files and batches: %s", asked_by(request.scope["state"]), trouble.reason)
            raise _unusable(trouble) from None

    return answer


def _unusable(trouble: Trouble) -> ApiError:
    sentence = f"the gateway's folder of files and batches cannot be used now: {trouble.reason}"
    if trouble.is_full:
        return ApiError(507, sentence, "server_error", code="insufficient_storage")
    headers = {"Retry-After": str(_RETRY_SECONDS)}
    return ApiError(503, sentence, "service_unavailable_error", code="storage_unavailable", headers=headers)
