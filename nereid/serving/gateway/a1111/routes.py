"""AUTOMATIC1111's /sdapi/v1 before the same image models; finds them by a callable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nereid.serving.gateway.a1111 import answers
from nereid.serving.gateway.a1111.bodies import MODEL, NAMES, PICTURE, DrawBody, ImageToImageBody, Settings, TextToImageBody
from nereid.serving.gateway.a1111.jobs import Job, Jobs
from nereid.serving.gateway.bodies import read_body
from nereid.serving.gateway.described import described
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.guard import WEBUI_FOLDER, owner_of
from nereid.serving.gateway.image_routes import Decoding, FindImages, ServedImages
from nereid.serving.gateway.images import Drawing, from_picture
from nereid.serving.gateway.pictures import decoded, from_base64, on_white
from nereid.serving.gateway.waiting import until_gone

_BASE = f"{WEBUI_FOLDER}v1"
IMG2IMG_PATH = f"{_BASE}/img2img"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebUiRoutes:
    """The handlers; `models` tells the names of those served. Which one a front end has set is kept for its key."""

    find: FindImages
    models: Callable[[], Sequence[str]]
    decoding: Decoding
    lenient: bool = False
    jobs: Jobs = field(default_factory=Jobs)
    set_by: dict[str, str] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        return [
            Route(f"{_BASE}/txt2img", self.draw_text, methods=["POST"]),
            Route(IMG2IMG_PATH, self.draw_picture, methods=["POST"]),
            Route(f"{_BASE}/progress", self.progress),
            Route(f"{_BASE}/interrupt", self.interrupt, methods=["POST"]),
            Route(f"{_BASE}/options", self.show_options, methods=["GET"]),
            Route(f"{_BASE}/options", self.set_options, methods=["POST"]),
            Route(f"{_BASE}/sd-models", self.show_models),
            Route(f"{_BASE}/samplers", self.show_samplers),
            Route(f"{_BASE}/schedulers", self.show_schedulers),
            *(Route(f"{_BASE}/{name}", self.show_nothing) for name in answers.NOTHING),
        ]

    @described("Pictures of a prompt, as AUTOMATIC1111's front ends ask for them.", body=TextToImageBody)
    async def draw_text(self, request: Request) -> Response:
        return await self._draw(request, await read_body(request, TextToImageBody, self.lenient))

    @described("Pictures made from one and a prompt, as they ask for them.", body=ImageToImageBody)
    async def draw_picture(self, request: Request) -> Response:
        return await self._draw(request, await read_body(request, ImageToImageBody, self.lenient))

    async def _draw(self, request: Request, body: DrawBody) -> Response:
        request.state.names = NAMES
        owner, asked = owner_of(request), body.override_settings.sd_model_checkpoint
        served = self._served(f"override_settings.{MODEL}", asked) if asked else self.find(self._model(owner))
        body.check()
        sampler = body.sampler(served.model)

        async def drawn() -> Response:
            with self.jobs.running(owner, job := Job(body.n_iter)):
                drawing = await self._drawing(body, served, body.options(sampler))
                results = await job.draw(served.client, _batches(body, drawing), request.state.request_id)
            made = answers.Drawn(
                body=body,
                model=served.id,
                sampler=sampler,
                steps=body.steps or served.model.steps,
                job=job,
                results=results,
                warnings=[*body.warnings(), *drawing.warnings],
            )
            return JSONResponse(await asyncio.to_thread(made.answer))

        async with served.places.taking(body.batch_size):
            answer = await until_gone(request, drawn())
        if asked and not body.override_settings_restore_afterwards:
            self.set_by[owner] = served.id
        return answer

    async def _drawing(self, body: DrawBody, served: ServedImages, options: dict[str, Any]) -> Drawing:
        """What all pictures have in common."""
        if not isinstance(body, ImageToImageBody):
            return Drawing(prompt=body.prompt, options=options)
        sent, fit = body.init_images[0], body.fit

        def made(most_pixels: int) -> Drawing:
            picture = on_white(decoded(from_base64(sent, PICTURE), PICTURE, most_pixels))
            return from_picture(body.prompt, options, picture, served.model, "", fit)

        return await self.decoding.drawn(made)

    def _model(self, owner: str) -> str:
        """The one that a front end has set, where it is still served, else the first."""
        if not (models := self.models()):
            raise ApiError(404, "model: no image model is served here", param="model", code="model_not_found")
        wanted = self.set_by.get(owner, models[0])
        return wanted if wanted in models else models[0]

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

    @described("The settings of a front end.")
    async def show_options(self, request: Request) -> Response:
        return JSONResponse(answers.options(self._model(owner_of(request))))

    @described("Sets the model.", body=Settings)
    async def set_options(self, request: Request) -> Response:
        body = await read_body(request, Settings, self.lenient)
        if body.sd_model_checkpoint:
            self.set_by[owner_of(request)] = self._served(MODEL, body.sd_model_checkpoint).id
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

    @described("What the server has none of.")
    async def show_nothing(self, request: Request) -> Response:
        return JSONResponse(answers.NOTHING[request.url.path.removeprefix(f"{_BASE}/")])


def _batches(body: DrawBody, drawing: Drawing) -> list[list[Drawing]]:
    seeds = body.seeds()
    drawings = [Drawing(prompt=drawing.prompt, options={**drawing.options, "seed": seed}) for seed in seeds]
    return [drawings[start : start + body.batch_size] for start in range(0, len(drawings), body.batch_size)]
