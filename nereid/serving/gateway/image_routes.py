"""/v1/images in OpenAI's forms, and the pictures that are fetched by address; finds models by a callable."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.serving.gateway import images
from nereid.serving.gateway.bodies import is_json, read_body
from nereid.serving.gateway.described import described
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.guard import PICTURES_FOLDER, owner_of
from nereid.serving.gateway.image_bodies import EditBody, EditJsonBody, ImageBody, PictureBody, VariationBody
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.images import CHANGED_NAMES, NAMES, Drawing, Link, MakeDrawing, from_picture
from nereid.serving.gateway.masks import mask_of_edit
from nereid.serving.gateway.picture_forms import IMAGE, MASK, one_picture, picture_and_mask, read_picture_form
from nereid.serving.gateway.picture_store import PictureStore
from nereid.serving.gateway.pictures import decoded, on_white
from nereid.serving.gateway.places import Places
from nereid.serving.gateway.waiting import begin_stream, until_gone
from nereid_client import AsyncClient

T = TypeVar("T")

PICTURE_PATHS = ("/v1/images/edits", "/v1/images/variations")
"""Where pictures are sent."""
_DECODED_AT_ONCE = 2
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class ServedImages:
    """One pipeline, its facts, and who asks it."""

    id: str
    model: ImageModel
    client: AsyncClient
    places: Places


FindImages = Callable[[str | None], ServedImages]
"""An image model by its name, the only one where it has none; raises ApiError."""
ReadPictures = Callable[[], tuple[bytes, bytes | None]]
"""The bytes of a picture, and of what says which part of it is changed, where that was sent. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Pictures that are sent, of so many pixels at most, a few at a time: each takes much memory until it is scaled."""

    most_pixels: int
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_DECODED_AT_ONCE))

    async def drawn(self, make: Callable[[int], T]) -> T:
        """What `make`, which is told that bound, makes on another thread."""
        async with self._turn:
            return await asyncio.to_thread(make, self.most_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRoutes:
    """The handlers. `public_url` is what addresses of pictures begin with; "" takes the host that the caller has asked."""

    find: FindImages
    store: PictureStore
    decoding: Decoding
    lenient: bool = False
    public_url: str = ""

    def routes(self) -> list[Route]:
        return [
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route(PICTURE_PATHS[0], self.edit, methods=["POST"]),
            Route(PICTURE_PATHS[1], self.vary, methods=["POST"]),
            Route(f"{PICTURES_FOLDER}{{name}}", self.show),
        ]

    @described("Pictures of a prompt.", body=ImageBody, streams=True)
    async def generate(self, request: Request) -> Response:
        body = await read_body(request, ImageBody, self.lenient)
        request.state.names = NAMES
        served = self.find(body.model)
        body.check()

        async def drawing() -> Drawing:
            return Drawing(prompt=body.prompt, options=body.options(served.model))

        return await self._draw(request, body, served, drawing, body.partial_images if body.stream else None)

    @described(
        "Pictures made from one, or from a part of it, and a prompt.",
        body=EditJsonBody,
        form_body=EditBody,
        files=(MASK,),
        streams=True,
    )
    async def edit(self, request: Request) -> Response:
        body, read = await self._edit_of(request)
        return await self._change(request, body, read, "image_edit", body.partial_images if body.stream else None)

    async def _edit_of(self, request: Request) -> tuple[Any, ReadPictures]:
        """A form, or JSON where that is sent."""
        if is_json(request):
            body = await read_body(request, EditJsonBody, self.lenient)
            return body, body.pictures
        fields, form = await read_picture_form(request, EditBody, self.lenient)
        sent = picture_and_mask(form)
        return fields, lambda: sent

    @described("Pictures like one.", form_body=VariationBody)
    async def vary(self, request: Request) -> Response:
        body, form = await read_picture_form(request, VariationBody, self.lenient)
        picture = one_picture(form)
        return await self._change(request, body, lambda: (picture, None), "image_variation", None, in_parts=False)

    async def _change(
        self,
        request: Request,
        body: Any,
        read: ReadPictures,
        kind: str,
        partial_images: int | None,
        *,
        in_parts: bool = True,
    ) -> Response:
        """Draw from a picture, all of it or, `in_parts`, the part that is found of it."""
        request.state.names = CHANGED_NAMES
        served = self.find(body.model)
        body.check()

        def made(most_pixels: int) -> Drawing:
            data, sent = read()
            picture = decoded(data, IMAGE, most_pixels)
            mask = mask_of_edit(picture, sent, most_pixels) if in_parts else None
            return from_picture(body.prompt, body.options(served.model), on_white(picture), served.model, kind, mask=mask)

        async def drawing() -> Drawing:
            return await self.decoding.drawn(made)

        return await self._draw(request, body, served, drawing, partial_images)

    async def _draw(
        self, request: Request, body: PictureBody, served: ServedImages, drawing: MakeDrawing, partial_images: int | None
    ) -> Response:
        """What is sent is decoded once the request has its place, so that no more pictures are held than may wait."""
        request_id, names = request.state.request_id, request.state.names
        link = self._link(request) if body.response_format == "url" else None
        if partial_images is not None:
            events = images.prepared(drawing, served.client, body, partial_images, request_id)
            return await begin_stream(request, served.places.during(events), names)

        async def whole() -> dict[str, Any]:
            return await images.whole(served.client, await drawing(), body, request_id, link)

        async with served.places.taking():
            return JSONResponse(await until_gone(request, whole()))

    def _link(self, request: Request) -> Link:
        """Raises ApiError where no address can be made."""
        base = self.public_url or _asked_host(request)
        owner, loop = owner_of(request), asyncio.get_running_loop()

        def link(files: Sequence[bytes], media_type: str) -> list[str]:
            size = sum(map(len, files))
            if size > self.store.largest:
                sentence = f"response_format: url is not allowed for {size} bytes of pictures; {self.store.largest} are kept"
                raise ApiError(400, f"{sentence}; it must be b64_json", param="response_format")
            loop.call_later(self.store.seconds + 1, self.store.sweep)
            names: list[str] = []
            for file in files:
                names.append(self.store.keep(owner, file, media_type, beside=names))
            return [f"{base}{PICTURES_FOLDER}{name}" for name in names]

        return link

    @described("A picture that an answer has named.", answers="image/*")
    async def show(self, request: Request) -> Response:
        name = request.path_params["name"]
        found = self.store.find(name)
        if found is None:
            sentence = (
                f"name: no picture {name[:80]!r} is kept here; each is for {self.store.seconds:g} s, unless newer ones need room"
            )
            raise ApiError(404, sentence, param="name", code="not_found")
        left = max(0, int(found.expires - self.store.clock()))
        headers = {"Cache-Control": f"private, max-age={left}", "X-Content-Type-Options": "nosniff"}
        return Response(found.data, media_type=found.media_type, headers=headers)


def _asked_host(request: Request) -> str:
    """The server's address as the caller has written it; what proxies say of themselves is not read, for anybody can."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        sentence = "response_format: url is not allowed in a request without a host, such as a batch's; it must be b64_json"
        raise ApiError(400, sentence, param="response_format")
    return f"{request.url.scheme}://{host}"
