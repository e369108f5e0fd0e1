"""Errors that were foreseen as answers, wherever a route has raised them; knows no route."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from nereid.serving.gateway.errors import ApiError, from_nereid
from nereid.serving.gateway.guard import asked_by
from nereid_client.errors import NereidError

log = logging.getLogger("nereid.gateway")


async def refuse(request: Request, error: Exception) -> Response:
    """In OpenAI's form."""
    if isinstance(error, NereidError):
        said = from_nereid(error, getattr(request.state, "names", {}))
        if said.status == 500:
            log.warning("request %s: %s", asked_by(request.scope["state"]), error)
    elif isinstance(error, HTTPException):
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else {}
        sentence = f"{request.method} {request.scope['path']}: {str(error.detail).lower()}"
        said = ApiError(error.status_code, sentence, headers=headers)
    else:
        assert isinstance(error, ApiError)
        said = error
    return said.response()


def _allowed(request: Request) -> str:
    """The methods of a path, which several routes may have among them (RFC 9110, 15.5.6)."""
    routes = [
        route for route in request.app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))
