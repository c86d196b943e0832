"""What went wrong, as RFC 9457 problem details: one stable type and one status per class of error.

A client branches on `type`. The sentence in `detail` is for people and may change; it never holds
content, and of what is wrong with the server only that something is.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from starlette.responses import Response

from pgcontext import limits
from pgcontext.errors import (
    ConfigError,
    ContextNotFoundError,
    ContextStoreError,
    DimensionMismatchError,
    EmbeddingError,
    IdempotencyConflictError,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    PoolTimeoutError,
    SchemaMismatchError,
    UnavailableError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

logger: Final = logging.getLogger("pgcontext.http")

URN: Final = "urn:pgcontext:problem:"
MEDIA_TYPE: Final = "application/problem+json"


class UnauthorizedError(ContextStoreError):
    """Whoever this is may not come in; why stays with the server."""


class ForbiddenError(ContextStoreError):
    """The caller may come in, but not do this."""


class RouteNotFoundError(ContextStoreError):
    """There is nothing at this path."""


class MethodNotAllowedError(ContextStoreError):
    """The path takes other methods."""

    def __init__(self, allowed: str) -> None:
        super().__init__(f"This path takes: {allowed}.")
        self.allowed = allowed


class UnsupportedMediaTypeError(ContextStoreError):
    """The body is not JSON."""


class RequestTimeoutError(ContextStoreError):
    """The body did not arrive in time. Nothing was done."""

    retryable = True


class NotReadyError(ContextStoreError):
    """The database is not migrated to what this code needs."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What went wrong, as RFC 9457 describes it.

    Attributes:
        type: a URN; stable, one for each class of error.
        title: what the type means; the same for each occurrence.
        status: the HTTP status.
        detail: a sentence about this occurrence.
        retryable: whether the same request may succeed later without any change.
        expected: of a version conflict, the version that was expected.
        actual: of a version conflict, the context's version.
        versions: of missing messages, their versions.
    """

    type: str
    title: str
    status: int
    detail: str
    retryable: bool
    expected: int | None = None
    actual: int | None = None
    versions: list[int] | None = None


class Kind(NamedTuple):
    """How a class of errors is told.

    Attributes:
        name: the last part of the type.
        status: the HTTP status.
        title: what the type means.
        says: the sentence, where the error's own is not for the caller.
    """

    name: str
    status: int
    title: str
    says: str | None = None


_UNAVAILABLE: Final = "The database is busy or could not be reached; try again later."
_NOT_EMBEDDED: Final = (
    "No embedding could be made; try again later, or search with mode text, which needs none."
)
_BROKEN: Final = "The service failed; what is wrong stands in its log."

# The first that the error is, or is a kind of, decides.
KINDS: Final[tuple[tuple[type[Exception], Kind], ...]] = (
    (ContextNotFoundError, Kind("context-not-found", 404, "The context was not found.")),
    (MessageNotFoundError, Kind("message-not-found", 404, "A message was not found.")),
    (RouteNotFoundError, Kind("route-not-found", 404, "There is nothing at this path.")),
    (VersionConflictError, Kind("version-conflict", 409, "The context is at another version.")),
    (
        IdempotencyConflictError,
        Kind("idempotency-conflict", 409, "The idempotency key was used for other messages."),
    ),
    (LimitExceededError, Kind("limit-exceeded", 413, "Something is larger than its bound.")),
    (
        DimensionMismatchError,
        Kind("dimension-mismatch", 422, "An embedding has another length than the database's."),
    ),
    (InvalidInputError, Kind("invalid-input", 422, "The request is not acceptable.")),
    (UnauthorizedError, Kind("unauthorized", 401, "The caller is not known.")),
    (ForbiddenError, Kind("forbidden", 403, "The caller may not do this.")),
    (MethodNotAllowedError, Kind("method-not-allowed", 405, "The path takes other methods.")),
    (
        UnsupportedMediaTypeError,
        Kind("unsupported-media-type", 415, "The body is of another type than JSON."),
    ),
    (RequestTimeoutError, Kind("request-timeout", 408, "The body did not arrive in time.")),
    (
        EmbeddingError,
        Kind("embedding-failed", 503, "No embedding could be made.", _NOT_EMBEDDED),
    ),
    (PoolTimeoutError, Kind("busy", 503, "No connection became free in time.", _UNAVAILABLE)),
    (UnavailableError, Kind("unavailable", 503, "The database is not available.", _UNAVAILABLE)),
    (
        SchemaMismatchError,
        Kind("not-ready", 503, "The database is not migrated.", "The service is not ready."),
    ),
    (NotReadyError, Kind("not-ready", 503, "The database is not migrated.")),
    (ConfigError, Kind("internal", 500, "The service failed.", _BROKEN)),
    (Exception, Kind("internal", 500, "The service failed.", _BROKEN)),
)


def kind_of(error: type[Exception]) -> Kind:
    """Return how a class of errors is told."""
    return next(kind for told, kind in KINDS if told in error.__mro__)


def problem_of(error: Exception) -> Problem:
    """Return what a caller is told of an error."""
    kind = kind_of(type(error))
    return Problem(
        type=URN + kind.name,
        title=kind.title,
        status=kind.status,
        detail=kind.says or str(error),
        retryable=isinstance(error, ContextStoreError) and error.retryable,
        expected=getattr(error, "expected", None),
        actual=getattr(error, "actual", None),
        versions=list(error.versions) if isinstance(error, MessageNotFoundError) else None,
    )


def refusal(error: Exception) -> Response:
    """Return the response that tells a caller of an error, and log what is the server's fault."""
    problem = problem_of(error)
    headers: dict[str, str] = {}
    if problem.status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allowed
    elif problem.status == 503:  # noqa: PLR2004
        headers["Retry-After"] = str(limits.RETRY_AFTER_SECONDS)
    if problem.status >= 500:  # noqa: PLR2004
        _log(error)
    return answer(problem, status=problem.status, media_type=MEDIA_TYPE, headers=headers)


def answer(
    value: Any,  # noqa: ANN401 (anything that msgspec encodes)
    *,
    status: int = 200,
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a response with a value as JSON."""
    return Response(
        msgspec.json.encode(value), status_code=status, media_type=media_type, headers=headers
    )


def _log(error: Exception) -> None:
    """Log a failure of the server: our own errors' sentences hold no content, others' may."""
    if isinstance(error, ContextStoreError):
        logger.error("%s: %s", type(error).__name__, error)
        return
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("unexpected %s at %s", type(error).__name__, where)
