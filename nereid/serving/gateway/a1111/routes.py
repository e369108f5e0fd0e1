"""AUTOMATIC1111's /sdapi/v1 before the same image models; finds them by a callable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.serving.gateway.a1111 import answers
from nereid.serving.gateway.a1111.bodies import (
    INFO_PICTURE,
    MODEL,
    NAMES,
    DrawBody,
    ImageToImageBody,
    PictureInfoBody,
    Settings,
    TextToImageBody,
)
from nereid.serving.gateway.a1111.jobs import Job, Jobs
from nereid.serving.gateway.a1111.masks import drawing_of
from nereid.serving.gateway.a1111.settings import Kept
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.described import described
from nereid.serving.gateway.errors import WEBUI_FOLDER, ApiError
from nereid.serving.gateway.guard import REFRESH_PATHS, WEBUI_QUEUE, owner_of
from nereid.serving.gateway.image_routes import Decoding, FindImages, ServedImages
from nereid.serving.gateway.images import Drawing, check_sides
from nereid.serving.gateway.pictures import from_base64, texts_of
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.waiting import until_gone

_BASE = f"{WEBUI_FOLDER}v1"
_IMG2IMG, _PNG_INFO = f"{_BASE}/img2img", f"{_BASE}/png-info"
WEBUI_PICTURE_PATHS = (_IMG2IMG, _PNG_INFO)
"""Where pictures are sent."""

S = TypeVar("S", bound=Sent)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebUiRoutes:
    """The handlers; `models` tells the names of those served. What a front end has set is kept for its key."""

    find: FindImages
    models: Callable[[], Sequence[str]]
    decoding: Decoding
    lenient: bool = False
    jobs: Jobs = field(default_factory=Jobs)
    set_by: dict[str, Kept] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        return [
            Route(f"{_BASE}/txt2img", self.draw_text, methods=["POST"]),
            Route(_IMG2IMG, self.draw_picture, methods=["POST"]),
            Route(_PNG_INFO, self.show_texts, methods=["POST"]),
            Route(f"{_BASE}/progress", self.progress),
            Route(f"{_BASE}/interrupt", self.interrupt, methods=["POST"]),
            Route(f"{_BASE}/skip", self.skip, methods=["POST"]),
            Route(f"{_BASE}/options", self.show_options, methods=["GET"]),
            Route(f"{_BASE}/options", self.set_options, methods=["POST"]),
            Route(f"{_BASE}/sd-models", self.show_models),
            Route(f"{_BASE}/samplers", self.show_samplers),
            Route(f"{_BASE}/schedulers", self.show_schedulers),
            Route(f"{_BASE}/cmd-flags", self.show_flags),
            Route(f"{_BASE}/memory", self.show_memory),
            Route(WEBUI_QUEUE, self.show_queue),
            *(Route(path, self.refresh, methods=["POST"]) for path in REFRESH_PATHS),
            *(Route(f"{_BASE}/{name}", self.show_nothing) for name in answers.NOTHING),
        ]

    @described("Pictures of a prompt, as AUTOMATIC1111's front ends ask for them.", body=TextToImageBody)
    async def draw_text(self, request: Request) -> Response:
        return await self._draw(request, await self._read(request, TextToImageBody))

    @described("Pictures made from one and a prompt, as they ask for them.", body=ImageToImageBody)
    async def draw_picture(self, request: Request) -> Response:
        return await self._draw(request, await self._read(request, ImageToImageBody))

    async def _read(self, request: Request, schema: type[S]) -> S:
        """The body, also of clients that do not say that it is JSON: AUTOMATIC1111 does not ask."""
        return await read_body(request, schema, self.lenient, untyped=True)

    async def _draw(self, request: Request, body: DrawBody) -> Response:
        request.state.names = NAMES
        owner, asked = owner_of(request), body.override_settings.sd_model_checkpoint
        served = self._served(f"override_settings.{MODEL}", asked) if asked else self.find(self._model(owner))
        kept = self._kept(owner).changed(body.override_settings)
        body.check()
        sampler = body.solver(served.model)
        options = body.options(sampler, served.model)

        async def drawn() -> Response:
            with self.jobs.running(owner, job := Job(body.n_iter)):
                drawing = await self._drawing(body, served, options)
                check_sides(drawing, kept.encoding)
                results = await job.draw(served.client, _batches(body, drawing), request.state.request_id)
            made = answers.Drawn(
                body=body,
                model=served.id,
                sampler=sampler,
                steps=body.steps or served.model.steps,
                cfg_scale=served.model.guidance if body.cfg_scale is None else body.cfg_scale,
                job=job,
                results=results,
                encoding=kept.encoding,
                warnings=[*body.warnings(served.model), *drawing.warnings],
            )
            return JSONResponse(await self._answer(made, body, served, options))

        async with served.places.taking(body.batch_size):
            answer = await until_gone(request, drawn())
        if not body.override_settings_restore_afterwards:
            self._keep(owner, body.override_settings)
        return answer

    async def _drawing(self, body: DrawBody, served: ServedImages, options: dict[str, Any]) -> Drawing:
        """What all pictures have in common."""
        if not isinstance(body, ImageToImageBody):
            return Drawing(prompt=body.prompt, options=options)
        return await self.decoding.drawn(lambda most_pixels: drawing_of(body, options, served.model, most_pixels)[0])

    async def _answer(self, made: answers.Drawn, body: DrawBody, served: ServedImages, options: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(body, ImageToImageBody) or not body.mask or not made.results:
            return await asyncio.to_thread(made.answer)

        def answer(most_pixels: int) -> dict[str, Any]:
            return made.answer(drawing_of(body, options, served.model, most_pixels)[1])

        # As large as the picture that was sent: it is made again, and not kept while others are drawn.
        return await self.decoding.drawn(answer)

    def _model(self, owner: str) -> str:
        """The one that a front end has set, where it is still served, else the first."""
        if not (models := self.models()):
            raise ApiError(404, "model: no image model is served here", param="model", code="model_not_found")
        wanted = self._kept(owner).sd_model_checkpoint
        return wanted if wanted in models else models[0]

    def _kept(self, owner: str) -> Kept:
        return self.set_by.get(owner, Kept())

    def _keep(self, owner: str, sent: Settings) -> None:
        self.set_by[owner] = self._kept(owner).changed(sent)

    def _served(self, field: str, name: str) -> ServedImages:
        if name not in (models := self.models()):
            known = ", ".join(models) or "none"
            sentence = f"{field}: {name[:80]!r} is not one of those served here: {known}"
            raise ApiError(404, sentence, param=field, code="model_not_found")
        return self.find(name)

    @described("How far the caller's pictures are.", query={"skip_current_image": {"type": "boolean"}})
    async def progress(self, request: Request) -> Response:
        wanted = request.query_params.get("skip_current_image", "false").lower() not in ("true", "1")
        jobs = self.jobs.of(owner_of(request))
        told = answers.progress(jobs)
        if wanted and jobs and (preview := jobs[0].preview) is not None:
            told["current_image"] = await asyncio.to_thread(answers.preview_of, preview)
        return JSONResponse(told)

    @described("Ends the caller's pictures where they are.")
    async def interrupt(self, request: Request) -> Response:
        for job in self.jobs.of(owner_of(request)):
            job.interrupt()
        return JSONResponse({})

    @described("Ends the caller's pictures that are under way; the next ones are drawn.")
    async def skip(self, request: Request) -> Response:
        for job in self.jobs.of(owner_of(request)):
            job.skip()
        return JSONResponse({})

    @described("The texts of a picture: what it was drawn with.", body=PictureInfoBody)
    async def show_texts(self, request: Request) -> Response:
        body = await self._read(request, PictureInfoBody)

        def read() -> dict[str, Any]:
            return answers.picture_info(texts_of(from_base64(body.image, INFO_PICTURE), INFO_PICTURE))

        return JSONResponse(await asyncio.to_thread(read))

    @described("The settings of a front end.")
    async def show_options(self, request: Request) -> Response:
        owner = owner_of(request)
        return JSONResponse(answers.options(replace(self._kept(owner), sd_model_checkpoint=self._model(owner))))

    @described("Sets the model, and how pictures are written.", body=Settings)
    async def set_options(self, request: Request) -> Response:
        body = await self._read(request, Settings)
        if body.sd_model_checkpoint:
            self._served(MODEL, body.sd_model_checkpoint)
        self._keep(owner_of(request), body)
        return JSONResponse(None)

    @described("The image models.")
    async def show_models(self, request: Request) -> Response:
        return JSONResponse(answers.models(self.models()))

    @described("The samplers.")
    async def show_samplers(self, request: Request) -> Response:
        return JSONResponse(answers.samplers())

    @described("The schedules of noise.")
    async def show_schedulers(self, request: Request) -> Response:
        return JSONResponse(answers.schedulers())

    @described("Whether there is an API.")
    async def show_flags(self, request: Request) -> Response:
        return JSONResponse(answers.FLAGS)

    @described("Nothing of the memory: front ends look here whether anybody answers.")
    async def show_memory(self, request: Request) -> Response:
        return JSONResponse(answers.MEMORY)

    @described("How many requests the caller has under way.")
    async def show_queue(self, request: Request) -> Response:
        return JSONResponse(answers.queue(self.jobs.of(owner_of(request))))

    @described("Nothing: what is told is always what there is.")
    async def refresh(self, request: Request) -> Response:
        return JSONResponse(None)

    @described("What the server has none of.")
    async def show_nothing(self, request: Request) -> Response:
        return JSONResponse(answers.NOTHING[request.url.path.removeprefix(f"{_BASE}/")])


def _batches(body: DrawBody, drawing: Drawing) -> list[list[Drawing]]:
    seeds = body.seeds()
    drawings = [Drawing(prompt=drawing.prompt, options={**drawing.options, "seed": seed}) for seed in seeds]
    return [drawings[start : start + body.batch_size] for start in range(0, len(drawings), body.batch_size)]
