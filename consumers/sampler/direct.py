"""The shortest way to a small model: the framework's routing and dependencies take longer than such a model does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi import Request, Response
from fastapi.routing import APIRoute

from consumers.sampler.service import service_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = re.compile("/models/([^/]+)/([^/]+)")


class Direct:
    """ASGI middleware: calls functions of (model, request, service) at once where a request asks for nothing else.

    All other requests, such as those with `?after=`, go the framework's way. The answer is the same.

    Args:
        routes: to `/models/{model}/NAME`, by POST.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (found := self._found(scope)) is None:
            await self._app(scope, receive, send)
            return
        model, route = found
        scope["route"] = route
        request = Request(scope, receive)
        response = await _answered(route, model, request)
        await response(scope, receive, send)

    def _found(self, scope: Scope) -> tuple[str, APIRoute] | None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            return None
        asked = PATH.fullmatch(scope["path"])
        route = asked and self._routes.get(f"/models/{{model}}/{asked[2]}")
        return (asked[1], route) if asked and route else None


async def _answered(route: APIRoute, model: str, request: Request) -> Response:
    """What the route answers, or says of an error."""
    try:
        answer = await route.endpoint(model, request, await service_of(request))
    except Exception as error:
        tells = request.app.exception_handlers
        kind = next((kind for kind in type(error).__mro__ if kind in tells), Exception)
        if kind is Exception:  # which is told outside of everything
            raise
        refused: Response = await tells[kind](request, error)
        return refused
    return Response(answer.model_dump_json(), media_type="application/json")
