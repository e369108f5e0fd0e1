"""Which other origins' pages may ask the gateway, as browsers ask about it; knows no route and no key."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from nereid.serving.gateway.observing import IGNORED_HEADER, REQUEST_ID_HEADER


def cors(origins: Sequence[str]) -> list[Middleware]:
    """For pages of other origins; before the guard, for a browser asks first, without a key. Cookies are not read.

    Pages that are named may ask a gateway of their reader's own network, which Chrome asks for, too; any page may not.
    """
    if not origins:
        return []
    told = [REQUEST_ID_HEADER, IGNORED_HEADER, "retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=told,
            allow_private_network="*" not in origins,
        )
    ]
