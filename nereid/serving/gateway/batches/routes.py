"""/v1/files and /v1/batches in OpenAI's forms, over a store; knows no model."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from nereid.serving.gateway.batches.files import StorageFullError, StoredFile
from nereid.serving.gateway.batches.lines import whole_path
from nereid.serving.gateway.batches.over_folder import Handler, over_folder
from nereid.serving.gateway.batches.states import OPEN_STATES, State
from nereid.serving.gateway.batches.store import Batch, BatchStore, TooManyBatchesError
from nereid.serving.gateway.batches.uploads import (
    ANCHOR,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    ExpiresAfter,
    Uploads,
    expiry_of,
    storage_full,
)
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.described import described
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.forms import Keep, boundary_of, chunks_of, read_form
from nereid.serving.gateway.guard import owner_of
from nereid.serving.gateway.metadata import Metadata
from nereid.serving.gateway.paging import Part, paged
from nereid.serving.gateway.sent import Sent

FILES_PATH = "/v1/files"
PURPOSE = "batch"
"""What files that are sent are for."""
_DAY = 86_400
_RETRY_SECONDS = 60
"""What a caller with too many batches is asked to wait."""
_MOST_FILES, _MOST_BATCHES = 10_000, 100
"""In one page of a list, as in OpenAI's API."""
_UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"const": PURPOSE},
        "expires_after[anchor]": {"const": ANCHOR},
        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST_SECONDS, "maximum": LONGEST_SECONDS},
    },
    "required": ["file", "purpose"],
}


class BatchBody(Sent):
    """What begins a batch."""

    input_file_id: str
    endpoint: Annotated[
        Literal[
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/embeddings",
            "/v1/images/generations",
            "/v1/images/edits",
        ],
        BeforeValidator(whole_path),
    ]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@dataclass(slots=True, eq=False)
class BatchRoutes:
    """The handlers; `lenient` ignores fields that nobody knows."""

    store: BatchStore
    lenient: bool = False
    uploads: Uploads = field(init=False)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.store)

    def routes(self) -> list[Route]:
        handlers: tuple[tuple[str, str, Handler], ...] = (
            ("POST", FILES_PATH, self.upload),
            ("GET", FILES_PATH, self.list_files),
            ("GET", "/v1/files/{id}", self.show_file),
            ("DELETE", "/v1/files/{id}", self.delete_file),
            ("GET", "/v1/files/{id}/content", self.content),
            ("POST", "/v1/batches", self.create),
            ("GET", "/v1/batches", self.list_batches),
            ("GET", "/v1/batches/{id}", self.show_batch),
            ("POST", "/v1/batches/{id}/cancel", self.cancel),
        )
        folder = self.store.folder
        return [Route(path, over_folder(folder, handler), methods=[method]) for method, path, handler in handlers]

    # --- files ---

    @described("Keeps a file of requests.", form=_UPLOAD)
    async def upload(self, request: Request) -> Response:
        boundary = boundary_of(request.headers.get("content-type", ""))
        owner, draft = owner_of(request), self.store.draft()
        try:
            async with self.uploads.under_way(owner) as upload:
                with draft.open("wb") as opened:
                    file = _OneFile(upload.into(opened.write))
                    fields = dict(await read_form(chunks_of(request), boundary, file.part))
                if file.name is None:
                    raise ApiError(400, "file: it is missing; it must be the JSONL file of a batch", param="file")
                seconds = self._checked(fields)
                add = partial(self.store.add_file, draft, owner, file.name, PURPOSE, seconds, bounded=True)
                made = await asyncio.to_thread(add)
        except StorageFullError as error:
            raise storage_full(error, "file") from None
        finally:
            draft.unlink(missing_ok=True)
        return JSONResponse(_file(made))

    def _checked(self, fields: dict[str, str]) -> int | None:
        """Look at a file's fields; in how many seconds it expires."""
        purpose = fields.pop("purpose", "")
        if purpose != PURPOSE:
            raise ApiError(400, f"purpose: {purpose[:80]!r} is not allowed; it must be batch", param="purpose")
        seconds = expiry_of(fields)
        for name in () if self.lenient else fields:
            sentence = f"{name[:80]}: this field is not supported"
            raise ApiError(400, sentence, param=name[:80], code="unsupported_parameter")
        return seconds

    @described("The files that are kept.", query={"purpose": {"type": "string"}, **paged(_MOST_FILES)})
    async def list_files(self, request: Request) -> Response:
        part = Part.of(request.query_params, _MOST_FILES, usual=_MOST_FILES)
        purpose = request.query_params.get("purpose")
        found = await asyncio.to_thread(self.store.files, owner_of(request), part, purpose)
        return JSONResponse(part.told(found, lambda item: item.id, _file))

    @described("One file.")
    async def show_file(self, request: Request) -> Response:
        return JSONResponse(_file(await self._found_file(request)))

    @described("What a file holds.", answers="application/jsonl")
    async def content(self, request: Request) -> Response:
        found = await self._found_file(request)
        path = self.store.path(found.id)
        try:
            stat = await asyncio.to_thread(_look_into, path)
        except FileNotFoundError:  # it was deleted just now, or the folder has lost it
            raise ApiError(
                404, f"file_id: the contents of {found.id} are not in the gateway's folder any more", param="file_id"
            ) from None
        return FileResponse(path, media_type="application/jsonl", filename=Path(found.filename).name, stat_result=stat)

    @described("Forgets a file.")
    async def delete_file(self, request: Request) -> Response:
        found = await self._found_file(request)
        if await asyncio.to_thread(self.store.in_use, found.id):
            raise ApiError(409, f"file_id: {found.id} is read by a batch that is not done; cancel it first", param="file_id")
        await asyncio.to_thread(self.store.drop_file, found.id)
        return JSONResponse({"id": found.id, "object": "file", "deleted": True})

    async def _found_file(self, request: Request) -> StoredFile:
        return await self._file_of(owner_of(request), request.path_params["id"], "file_id", 404)

    async def _file_of(self, owner: str, file_id: str, param: str, status: int) -> StoredFile:
        found = await asyncio.to_thread(self.store.file, owner, file_id)
        if found is None:
            raise ApiError(status, f"{param}: there is no file {file_id[:80]!r}", param=param)
        return found

    # --- batches ---

    @described("Begins a batch.", body=BatchBody)
    async def create(self, request: Request) -> Response:
        body = await read_body(request, BatchBody, self.lenient)
        owner = owner_of(request)
        found = await self._file_of(owner, body.input_file_id, "input_file_id", 400)
        if found.purpose != PURPOSE:
            sentence = f"{found.id} is not allowed; it must be a file of purpose batch"
            raise ApiError(400, f"input_file_id: {sentence}", param="input_file_id")
        stays = body.output_expires_after.seconds if body.output_expires_after is not None else None
        add = partial(self.store.add_batch, owner, body.endpoint, found.id, body.completion_window, _DAY, body.metadata, stays)
        try:
            made = await asyncio.to_thread(add)
        except StorageFullError as error:
            raise storage_full(error, "input_file_id") from None
        except TooManyBatchesError as error:
            sentence, headers = f"{error}; send it again when some are done", {"Retry-After": str(_RETRY_SECONDS)}
            raise ApiError(429, sentence, "rate_limit_error", code="rate_limit_exceeded", headers=headers) from None
        return JSONResponse(batch_object(made))

    @described("The batches.", query=paged(_MOST_BATCHES))
    async def list_batches(self, request: Request) -> Response:
        part = Part.of(request.query_params, _MOST_BATCHES)
        found = await asyncio.to_thread(self.store.batches, owner_of(request), part)
        return JSONResponse(part.told(found, lambda item: item.id, batch_object))

    @described("One batch.")
    async def show_batch(self, request: Request) -> Response:
        return JSONResponse(batch_object(await self._found_batch(request)))

    @described("Ends a batch.")
    async def cancel(self, request: Request) -> Response:
        found = await self._found_batch(request)
        if found.status not in (*OPEN_STATES, State.CANCELLED):  # a caller who has heard nothing asks again
            raise ApiError(409, f"batch_id: {found.id} is {found.status} and cannot be cancelled", param="batch_id")
        await asyncio.to_thread(self.store.move, found.id, State.CANCELLING, State.VALIDATING, State.IN_PROGRESS)
        return JSONResponse(batch_object(await self._found_batch(request)))

    async def _found_batch(self, request: Request) -> Batch:
        batch_id = request.path_params["id"]
        found = await asyncio.to_thread(self.store.batch, batch_id, owner_of(request))
        if found is None:
            raise ApiError(404, f"batch_id: there is no batch {batch_id[:80]!r}", param="batch_id")
        return found


@dataclass(slots=True)
class _OneFile:
    """The part `file` of a form."""

    keep: Keep
    name: str | None = None

    def part(self, name: str, filename: str | None) -> Keep | None:
        """Where a part's bytes go; raises ApiError for a second file."""
        if name != "file":
            return None
        if self.name is not None:
            raise ApiError(400, "file: two files are not allowed in one form; send one", param="file")
        self.name = filename or "file"
        return self.keep


def _file(item: StoredFile) -> dict[str, Any]:
    return {
        "id": item.id,
        "object": "file",
        "bytes": item.bytes,
        "created_at": item.created_at,
        "expires_at": item.expires_at,
        "filename": item.filename,
        "purpose": item.purpose,
        "status": "processed",
        "status_details": None,
    }


def _look_into(path: Path) -> os.stat_result:
    """Raises OSError for a file that cannot be read."""
    with path.open("rb") as file:
        return os.fstat(file.fileno())


def batch_object(batch: Batch) -> dict[str, Any]:
    """OpenAI's form of a batch."""
    times = batch.times
    stamps = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.problems} if batch.problems else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": str(batch.status),
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{name}_at": times.get(name) for name in stamps},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
        "model": batch.model,
        "usage": batch.usage,
    }
