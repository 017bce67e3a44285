"""Before any route: whose requests are let in, how large they are, who may write, and how errors are reported."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import re
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from consumers.sampler.connections import presence
from consumers.workers import Ending
from pipeline.errors import ConfigError, Corrupt, LogError, NotFound, RecordError, StoreError, TooLarge, TopicMissing

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pipeline.config import SamplerConfig
    from pipeline.metrics import SamplerMetrics

RETRY_AFTER = {"Retry-After": "1"}
HEALTH = "/healthz"
TOPICS, SHOWING = "/topics/", ("/nearest", "/find")  # what tells what was published
OPERATIONS = (HEALTH, "/readyz", "/metrics")  # for what watches the sampler: read without a token
BODY_S = 30.0  # how long a client may take to send its body
REQUESTS = 1024  # at one time; half of them of one client
GONE = 499  # in the metrics: the client went away before it was answered
BODIES = 32  # of the largest size, that are in memory at one time; half of them of one client
#: on every answer that does not say otherwise: its type is as declared, and no page of another site shows or reads it
SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
)


class Problem(BaseModel):
    """What is wrong."""

    error: str = Field(description="a constant slug, for programs")
    detail: str = Field(description="a sentence or two, for people")
    watermark: dict[str, dict[int, int]] | None = Field(None, description="of not-yet: up to where it has read")


def described(**headers: str) -> dict[str, Any]:
    """OpenAPI: headers, by what they say."""
    return {
        name.replace("_", "-"): {"description": said, "schema": {"type": "string"}} for name, said in headers.items()
    }


HEADERS = {
    401: described(WWW_Authenticate="how to send the token"),
    405: described(Allow="the methods that the route has"),
    429: described(Retry_After="seconds"),
    503: described(Retry_After="seconds; not where to ask again is of no use"),
}
#: OpenAPI: where any route is asked for with a slash at its end
MOVED: dict[int | str, dict[str, Any]] = {
    307: {"description": "It is at another address.", "headers": described(Location="the same without the slash")}
}


def _problem_answer(status: int, slug: str, description: str) -> dict[str, Any]:
    """OpenAPI: an answer that is a `Problem`."""
    return {
        "model": Problem,
        "description": description,
        "headers": HEADERS.get(status, {}),
        "content": {"application/json": {"example": {"error": slug, "detail": description}}},
    }


#: OpenAPI: of the route that publishes
PUSHED_BACK = _problem_answer(429, "busy", "The log takes no more at the moment.")
#: OpenAPI: what any route may answer beside what it is asked for
ERRORS: dict[int | str, dict[str, Any]] = {
    status: _problem_answer(status, slug, description)
    for status, (slug, description) in {
        400: ("disconnected", "The body is no form, or the client went away."),
        401: ("unauthorized", "The token is missing or wrong."),
        403: ("closed", "Nobody may, or a page of another site asks."),
        404: ("not-found", "No such model, version or alias."),
        405: ("method-not-allowed", "The route has another method."),
        408: ("timeout", "The body did not come in time."),
        409: ("wrong-kind", "The model does something else."),
        413: ("too-large", "The body or the picture is too large."),
        421: ("host", "The sampler is not asked by this name."),
        422: ("invalid", "What was sent cannot be read, or a value does not fit."),
        500: ("internal", "The model failed."),
        502: ("corrupt", "What is stored is damaged."),
        503: ("busy", "Busy, ending, without a version, the store is away, or a model does not come to an end."),
        504: ("timeout", "It took too long."),
    }.items()
}


def refusal(status: int, error: str, detail: str, **headers: str) -> HTTPException:
    """An answer that says in one sentence what is wrong; `error` is a constant slug for programs."""
    return HTTPException(status, {"error": error, "detail": detail}, headers or None)


@lru_cache(256)  # it is asked at each request
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Who may ask what.

    On loopback everybody reads, and writes where no token is configured. Beyond it whoever has the token does either;
    `open_reading` lets everybody read. A browser is asked for the token as a password, so that the page works.
    """

    def __init__(self, config: SamplerConfig) -> None:
        self._token = config.token
        self._local = is_loopback(config.host)
        self._reading_open = self._local or config.open_reading
        self._hosts = {host.lower() for host in config.hosts}

    @property
    def closed(self) -> str | None:
        """What nobody may do because the sampler is bound beyond loopback without a token."""
        if self._token is not None or self._local:
            return None
        return "the routes that write are closed" if self._reading_open else "all but its health is closed"

    @property
    def records_open(self) -> bool:
        """Whether who reads the page reads records, too, without being asked for the token first."""
        return self._token is None or not self._reading_open

    def check(self, method: str, path: str, headers: Headers) -> None:
        """
        Raises:
            HTTPException: 421 for a name that is not ours, 403 for a page of another site or where nobody may, 401
                without the right token.
        """
        host = ", ".join(headers.getlist("host"))  # of two, nothing says which one counts: together they are no name
        self._check_host(re.sub(r":\d*$", "", host).strip("[]").lower())
        shows_records = path.startswith(TOPICS) or path.endswith(SHOWING)  # which not everybody reads
        writes = method in ("PUT", "DELETE", "PATCH") or shows_records
        origin = headers.get("origin")
        if (writes or method == "POST") and origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise refusal(403, "origin", "A page of another site asks for this. Ask from the sampler's own.")
        if path in OPERATIONS or (self._reading_open and not writes) or (self._local and self._token is None):
            return
        if self._token is None:
            detail = "Without sampler.token nothing is {} from beyond loopback. Configure one."
            raise refusal(403, "closed", detail.format("written" if writes else "read"))
        if not hmac.compare_digest(_given(headers.get("authorization", "")), self._token.encode()):
            detail = "This needs the sampler's token. Send Authorization: Bearer TOKEN."
            raise refusal(401, "unauthorized", detail, **{"WWW-Authenticate": 'Bearer, Basic realm="headrace"'})

    def _check_host(self, host: str) -> None:
        """Refuses foreign names: a hostile site may let its own name point here (DNS rebinding)."""
        if host in self._hosts or is_loopback(host) or (not self._local and _is_address(host)):
            return
        detail = f"This sampler is not asked by the name {host[:80]!r}. Ask by its address, or set sampler.hosts."
        raise refusal(421, "host", detail)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _given(authorization: str) -> bytes:
    """The token of a request, or the password that a browser sends in its place."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    with suppress(ValueError):
        if scheme.lower() == "basic":
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
    return b""


class Gate:
    """ASGI middleware: who asks, how much at one time, how large and how slow a body and its answer may be.

    A body is read before its request is admitted anywhere, so that a slow one keeps nobody out; what all of them
    hold in memory is bounded. What a client asked that has gone is worked on no more. `/healthz` is always answered.
    """

    def __init__(self, app: ASGIApp, config: SamplerConfig, access: Access, metrics: SamplerMetrics) -> None:
        self._app = app
        self._access = access
        self._max_bytes = config.max_upload_bytes
        self._metrics = metrics
        self._held: Counter[str] = Counter()  # bytes of bodies, by client
        self._requests: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What is answered to GET is answered to HEAD: the server itself leaves the body out.
        inner = {**scope, "method": "GET", "is_head": True} if scope["method"] == "HEAD" else scope
        started, status, started_sending = time.perf_counter(), 500, False

        async def guarded(message: Message) -> None:
            nonlocal status, started_sending
            started_sending = True
            if message["type"] == "http.response.start":
                status = message["status"]
                said = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in SAFETY if pair[0] not in said)]
            await send(message)

        try:
            with presence(scope).working():
                await self._admitted(inner, receive, guarded)
        except ClientDisconnect:
            status = GONE
        except asyncio.CancelledError:  # the sampler ends, and this took longer than it waits
            if not started_sending:
                answer = _problem(503, "ending", str(Ending()), RETRY_AFTER)
                await answer(inner, receive, guarded)
        finally:
            route = getattr(inner.get("route"), "path", "other")
            self._metrics.answered(route, status, time.perf_counter() - started)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = (scope.get("client") or ("", 0))[0]
        self._requests[client] += 1
        try:
            self._access.check(scope["method"], scope["path"], Headers(scope=scope))
            crowded = self._requests.total() > REQUESTS or self._requests[client] > REQUESTS // 2
            if crowded and scope["path"] != HEALTH:
                raise refusal(503, "busy", "Too many requests at one time. Try again in a second.", **RETRY_AFTER)
            await self._bounded(scope, receive, send, client)
        except AnyHTTPException as error:
            await _response(error, Request(scope))(scope, receive, send)
        finally:
            self._requests[client] -= 1
            self._requests += Counter()  # without those that are gone

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, client: str) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        read, whole = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_S

        async def counting() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()  # which tells when the client goes away
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"The body did not come within {BODY_S:.0f} s. Send it again."
                raise refusal(408, "timeout", detail, Connection="close") from None
            size = len(message.get("body", b""))
            whole = not message.get("more_body")
            read += size
            self._held[client] += size
            if read > self._max_bytes:
                raise self._too_large()
            if self._held.total() > BODIES * self._max_bytes or self._held[client] > BODIES // 2 * self._max_bytes:
                raise refusal(503, "busy", "Too many large bodies at one time. Try again in a second.", **RETRY_AFTER)
            return message

        try:
            await self._app(scope, counting, send)
        finally:
            self._held[client] -= read
            self._held += Counter()

    def _too_large(self) -> HTTPException:
        detail = f"The body is larger than {self._max_bytes} bytes. Send less, or raise sampler.max_upload_bytes."
        return refusal(413, "too-large", detail, Connection="close")


def _problem(status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error, "detail": detail}, status, headers)


def _response(error: AnyHTTPException, request: Request) -> JSONResponse:
    if isinstance(error.detail, dict):
        return JSONResponse(error.detail, error.status_code, error.headers)
    # The framework's own: no such route, no such method, a body that is no form.
    slug = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    detail = f"{request.method} {request.url.path}: {error.detail}. /openapi.json lists what is answered."
    return _problem(error.status_code, slug, detail, dict(error.headers or {}))


def tell_errors(app: FastAPI) -> None:
    """Every error becomes JSON: {"error": slug, "detail": sentence}."""

    @app.exception_handler(AnyHTTPException)
    async def _(request: Request, error: AnyHTTPException) -> JSONResponse:
        return _response(error, request)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}." for item in error.errors()]
        return _problem(422, "invalid", " ".join(lines))

    @app.exception_handler(RecordError)
    async def _(request: Request, error: RecordError) -> JSONResponse:
        return _problem(
            413 if error.reason == "too-large" else 422, error.reason, f"The record cannot be read: {error.detail}"
        )

    @app.exception_handler(ConfigError)  # an alias that no alias can have
    async def _(request: Request, error: ConfigError) -> JSONResponse:
        return _problem(422, "invalid", str(error))

    @app.exception_handler(StoreError)
    async def _(request: Request, error: StoreError) -> JSONResponse:
        if isinstance(error, NotFound):
            return _problem(404, "not-found", str(error))
        if isinstance(error, Corrupt):
            return _problem(502, "corrupt", str(error))
        return _problem(503, "store", str(error), RETRY_AFTER)

    @app.exception_handler(LogError)
    async def _(request: Request, error: LogError) -> JSONResponse:
        if isinstance(error, TooLarge):
            return _problem(413, "too-large", str(error))
        if isinstance(error, TopicMissing):
            return _problem(404, "not-found", str(error))
        return _problem(503, "log", str(error), RETRY_AFTER)

    @app.exception_handler(ClientDisconnect)
    async def _(request: Request, error: ClientDisconnect) -> JSONResponse:
        return _problem(400, "disconnected", "The client went away before its body was read.")

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        headers = {name.decode(): value.decode() for name, value in SAFETY}  # it is answered outside of the gate
        return _problem(500, "internal", "The sampler failed at this request. Its log says more.", headers)
