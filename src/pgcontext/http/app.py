"""The ASGI application: from a request to an operation, and from its result to a response."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from pgcontext import inputs, limits
from pgcontext.errors import InvalidInputError, LimitExceededError
from pgcontext.http.access import gate
from pgcontext.http.bodies import AS_JSON, IDEMPOTENCY_KEY, REPEATED, Nothing
from pgcontext.http.operations import OPERATIONS, Operation, Request
from pgcontext.http.problems import (
    MethodNotAllowedError,
    RequestTimeoutError,
    RouteNotFoundError,
    UnsupportedMediaTypeError,
    answer,
    refusal,
)
from pgcontext.store import ContextStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.middleware import Middleware
    from starlette.types import Receive, Scope, Send

    from pgcontext.http.access import Gate
    from pgcontext.settings import Settings

logger: Final = logging.getLogger("pgcontext.http")

DOCUMENT: Final = Path(__file__).with_name("openapi.json")
NO_ID: Final = UUID(int=0)


class _DisconnectedError(Exception):
    """The client went away while it sent its request; nobody waits for an answer."""


def create_app(store: ContextStore | None = None, settings: Settings | None = None) -> Starlette:
    """Make the application. No I/O: the first request connects.

    Args:
        store: whose pool is used, and whose tenant where callers have none of their own; closed by
            whoever made it. None makes one, closed when the application shuts down.
        settings: None takes the store's, or the environment's.

    Returns:
        The application, with the store in `app.state.store`.

    Raises:
        ConfigError: a setting cannot be used; PGCONTEXT_AUTH=none in a function.
    """
    owned = store is None
    if store is None:
        store = ContextStore(settings=settings)
    settings = settings or store.settings
    entrance = gate(store, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        if owned:
            await store.aclose()

    app = Starlette(
        routes=[*_routes(store, entrance), Route("/openapi.json", _document)],
        middleware=_middleware(settings),
        exception_handlers={HTTPException: _http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.store = store
    return app


def _routes(store: ContextStore, entrance: Gate) -> list[Route]:
    """Return a route for each path; what its methods do is looked up in there."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    return [
        Route(path, Endpoint(store, entrance, by_method)) for path, by_method in by_path.items()
    ]


def _middleware(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    from starlette.middleware import Middleware  # noqa: PLC0415 (only who sets origins needs it)
    from starlette.middleware.cors import CORSMiddleware  # noqa: PLC0415

    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=sorted({operation.method for operation in OPERATIONS}),
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=["Retry-After"],
        )
    ]


class Endpoint:
    """All that happens at one path.

    Args:
        store: of the application.
        entrance: decides who comes in.
        by_method: the operations at this path.
    """

    def __init__(
        self, store: ContextStore, entrance: Gate, by_method: dict[str, Operation]
    ) -> None:
        self._store = store
        self._gate = entrance
        self._by_method = {
            method: (operation, _decoder(operation.body)) for method, operation in by_method.items()
        }
        self._allowed = ", ".join(sorted(by_method))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        started = time.perf_counter()
        try:
            response = await self._respond(scope, receive)
        except _DisconnectedError:
            return
        except Exception as error:  # noqa: BLE001 (the last resort; what it was is logged)
            response = refusal(error)
        if logger.isEnabledFor(logging.INFO):
            _log(scope, response.status_code, (time.perf_counter() - started) * 1_000)
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        found = self._by_method.get(scope["method"])
        if found is None:
            raise MethodNotAllowedError(self._allowed)
        operation, decoder = found
        store = self._store
        if operation.scope is not None:
            caller = await self._gate.admit(scope)
            caller.must_be_allowed(operation.scope)
            if caller.tenant_id is not None and caller.tenant_id != store.tenant_id:
                store = store.for_tenant(caller.tenant_id)
        path_id = scope["path_params"].get("context_id")
        headers = dict(scope["headers"])
        given = Request(
            # Whoever looks whether we live may add what keeps caches away.
            query=_query(scope["query_string"] if operation.scope else b"", operation.query),
            body=Nothing() if decoder is None else await _body(headers, receive, decoder),
            path_id=NO_ID if path_id is None else inputs.uuid(path_id, "context_id"),
            idempotency_key=_key(headers) if operation.takes_key else None,
        )
        return answer(await operation.call(store, given), status=operation.status)


def _decoder(body: type[Any]) -> msgspec.json.Decoder[Any] | None:
    return None if body is Nothing else msgspec.json.Decoder(body)


def _key(headers: dict[bytes, bytes]) -> str | None:
    if b"idempotency-key" not in headers:
        return None
    key = headers[b"idempotency-key"].decode("latin-1")
    if IDEMPOTENCY_KEY.fullmatch(key):
        return key
    msg = "Idempotency-Key must be one visible character of ASCII or more."
    raise InvalidInputError(msg)


def _query(text: bytes, kind: type[Any]) -> Any:  # noqa: ANN401 (a struct of query parameters)
    """Decode query parameters; each may stand once, unless there can be several."""
    if not text:
        pairs: list[tuple[str, str]] = []
    elif len(text) > limits.REQUEST_QUERY_BYTES_MAX:
        msg = f"The query must have at most {limits.REQUEST_QUERY_BYTES_MAX:,} bytes."
        raise LimitExceededError(msg)
    else:
        pairs = parse_qsl(text.decode("latin-1"), keep_blank_values=True)
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in REPEATED:
            values.setdefault(name, []).append(value)
        elif name in values or value.strip().lower() == "null":
            msg = "A query parameter is given once, or left out where it is to be nothing."
            raise InvalidInputError(msg)
        else:
            values[name] = _json(value.encode()) if name in AS_JSON else value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        msg = f"The query is not acceptable: {error}."
        raise InvalidInputError(msg) from None


def _json(text: bytes) -> Any:  # noqa: ANN401 (JSON)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        msg = "A query parameter that is JSON is malformed."
        raise InvalidInputError(msg) from None


async def _body(
    headers: dict[bytes, bytes],
    receive: Receive,
    decoder: msgspec.json.Decoder[Any],
) -> Any:  # noqa: ANN401 (a body)
    """Read and decode the body, never more of it than is accepted."""
    try:
        async with asyncio.timeout(limits.REQUEST_BODY_SECONDS_MAX):
            content = await _content(headers, receive)
    except TimeoutError:
        msg = f"The body must arrive within {limits.REQUEST_BODY_SECONDS_MAX:g} s."
        raise RequestTimeoutError(msg) from None
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" or headers.get(b"content-encoding", b"identity") != b"identity":
        msg = "The body must be JSON: Content-Type: application/json, without Content-Encoding."
        raise UnsupportedMediaTypeError(msg)
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as error:
        msg = f"The body is not acceptable: {error}."
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        msg = "The body is not well-formed JSON in UTF-8."
    raise InvalidInputError(msg)


async def _content(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    most = limits.REQUEST_BODY_BYTES_MAX
    declared = headers.get(b"content-length", b"0")
    size = int(declared) if declared.isdigit() and len(declared) < 20 else 0  # noqa: PLR2004
    parts: list[bytes] = []
    read, more = 0, True
    while more and max(size, read) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        part = message.get("body", b"")
        parts.append(part)
        read += len(part)
        more = message.get("more_body", False)
    if max(size, read) > most:
        msg = f"The body must have at most {most:,} bytes."
        raise LimitExceededError(msg)
    return b"".join(parts)


async def _document(_: object) -> Response:
    """Serve the description of all this."""
    return Response(DOCUMENT.read_bytes(), media_type="application/json")


async def _http_exception(_: object, error: Exception) -> Response:
    """Answer what the router refuses: a path that is not there, a method of the description."""
    headers = error.headers if isinstance(error, HTTPException) else None
    if headers is not None and "Allow" in headers:
        return refusal(MethodNotAllowedError(headers["Allow"]))
    return refusal(RouteNotFoundError("Nothing is here; /openapi.json says what is where."))


def _log(scope: Scope, status: int, milliseconds: float) -> None:
    """Log a request by its route: ids, queries and bodies stay out."""
    path = getattr(scope.get("route"), "path", "")
    logger.info(
        "%s %s %d in %.1f ms",
        scope["method"],
        path,
        status,
        milliseconds,
        extra={
            "method": scope["method"],
            "route": path,
            "status": status,
            "milliseconds": milliseconds,
        },
    )
