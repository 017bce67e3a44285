"""Before any route: whose requests are let in, how large they are, who may write, and how errors are told."""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from pipeline.errors import ConfigError, Corrupt, NotFound, RecordError, StoreError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pipeline.config import SamplerConfig
    from pipeline.metrics import SamplerMetrics

RETRY_AFTER = {"Retry-After": "1"}


def refusal(status: int, error: str, detail: str, **headers: str) -> HTTPException:
    """An answer that says in one sentence what is wrong; `error` is a constant slug for programs."""
    return HTTPException(status, {"error": error, "detail": detail}, headers or None)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """ASGI middleware: the Host header, the size of the body, the time that an answer took.

    A sampler on loopback has no password, and any page that a browser on this machine opens could call it. Pages
    of other sites cannot send PUT or DELETE without a preflight that nobody answers here; a site that lets its own
    name point to 127.0.0.1 (DNS rebinding) is turned away by its Host header.
    """

    def __init__(self, app: ASGIApp, config: SamplerConfig, metrics: SamplerMetrics) -> None:
        self._app = app
        self._local_only = is_loopback(config.host) and config.token is None
        self._max_bytes = config.max_upload_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._bounded(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.perf_counter() - started)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]")
        if self._local_only and not is_loopback(host):
            answer = _told(421, "host", "This sampler answers on loopback only. Ask for it as localhost or 127.0.0.1.")
            await answer(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            await _response(self._too_large(), Request(scope))(scope, receive, send)
            return
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counting, send)

    def _too_large(self) -> HTTPException:
        detail = f"The body is larger than {self._max_bytes} bytes. Send less, or raise sampler.max_upload_bytes."
        return refusal(413, "too-large", detail, Connection="close")


class Writers:
    """Who may write: everybody on loopback; elsewhere, or if a token is configured, who has the token."""

    def __init__(self, config: SamplerConfig) -> None:
        self._token = config.token
        self._open = config.token is None and is_loopback(config.host)

    @property
    def closed(self) -> bool:
        """Bound beyond loopback without a token: then nobody may."""
        return self._token is None and not self._open

    def check(self, request: Request) -> None:
        """
        Raises:
            HTTPException: 401 without the right token, 403 where nobody may.
        """
        if self._open:
            return
        if self._token is None:
            raise refusal(
                403,
                "read-only",
                "Without sampler.token nothing is written from beyond loopback. Configure one.",
            )
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            detail = "This route writes and needs the sampler's token. Send Authorization: Bearer TOKEN."
            raise refusal(401, "unauthorized", detail, **{"WWW-Authenticate": "Bearer"})


def _told(status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "detail": detail}, status, headers)


def _response(error: AnyHTTPException, request: Request) -> JSONResponse:
    if isinstance(error.detail, dict):
        return JSONResponse(error.detail, error.status_code, error.headers)
    # The framework's own: no such route, no such method, a body that is no form.
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    detail = f"{request.method} {request.url.path}: {error.detail}. /openapi.json lists what is answered."
    return _told(error.status_code, slug, detail, dict(error.headers or {}))


def tell_errors(app: FastAPI) -> None:
    """Every error becomes JSON: {"error": slug, "detail": sentence}."""

    @app.exception_handler(AnyHTTPException)
    async def _(request: Request, error: AnyHTTPException) -> JSONResponse:
        return _response(error, request)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}." for item in error.errors()]
        return _told(422, "invalid", " ".join(lines))

    @app.exception_handler(RecordError)
    async def _(request: Request, error: RecordError) -> JSONResponse:
        return _told(
            413 if error.reason == "too-large" else 422, error.reason, f"The record cannot be read: {error.detail}"
        )

    @app.exception_handler(ConfigError)  # an alias that no alias can have
    async def _(request: Request, error: ConfigError) -> JSONResponse:
        return _told(422, "invalid", str(error))

    @app.exception_handler(StoreError)
    async def _(request: Request, error: StoreError) -> JSONResponse:
        if isinstance(error, NotFound):
            return _told(404, "not-found", str(error))
        if isinstance(error, Corrupt):
            return _told(502, "corrupt", str(error))
        return _told(503, "store", str(error), RETRY_AFTER)

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> JSONResponse:
        return _told(400, "disconnected", "The client went away before its body was read.")

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        return _told(500, "internal", "The sampler failed at this request. Its log says more.")
