"""The operations: each is declared once, and both routing and OpenAPI come from that.

A function here takes the store of the caller's tenant and what the request gave, and returns what
the answer holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET

from pgcontext import limits
from pgcontext.errors import (
    ContextNotFoundError,
    DimensionMismatchError,
    EmbeddingError,
    IdempotencyConflictError,
    MessageNotFoundError,
    VersionConflictError,
)
from pgcontext.http import bodies
from pgcontext.http.bodies import Items, Nothing
from pgcontext.http.problems import NotReadyError
from pgcontext.keys import Keys
from pgcontext.models import Context, Diff, EraseReport, Hit, Message, Page, PurgeReport, Window
from pgcontext.settings import Scope
from pgcontext.store import ContextStore

Q = TypeVar("Q")
B = TypeVar("B")
R = TypeVar("R")

CONTEXT: Final = "/v1/contexts/{context_id}"


class Request(msgspec.Struct, Generic[Q, B], frozen=True):
    """What a request gave, decoded.

    Attributes:
        query: its query parameters.
        body: its body.
        path_id: the id in its path; the nil UUID where the path has none.
        idempotency_key: the header of this name.
    """

    query: Q
    body: B
    path_id: UUID
    idempotency_key: str | None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route: what it takes, what it gives, who may.

    Attributes:
        method: of HTTP.
        path: with `{context_id}` where it has an id.
        call: does it.
        query: the type of its query parameters.
        body: the type of its body.
        reply: the type of what it returns.
        scope: what the caller must be allowed; None lets everybody in.
        status: when it went well.
        errors: what it raises besides what every operation may.
        takes_key: it heeds the header Idempotency-Key.
    """

    method: str
    path: str
    call: Callable[[ContextStore, Request[Any, Any]], Awaitable[Any]]
    query: type[Any]
    body: type[Any]
    reply: Any
    scope: Scope | None
    status: int
    errors: tuple[type[Exception], ...]
    takes_key: bool

    @property
    def name(self) -> str:
        """The store's method, and the operation's id."""
        return self.call.__name__


OPERATIONS: Final[list[Operation]] = []


def operation(
    method: str,
    path: str,
    reply: type[R],
    *errors: type[Exception],
    scope: Scope | None,
    query: type[Q] = Nothing,  # type: ignore[assignment] # a TypeVar's default is not in 3.11
    body: type[B] = Nothing,  # type: ignore[assignment]
    status: int = 200,
    takes_key: bool = False,
) -> Callable[
    [Callable[[ContextStore, Request[Q, B]], Awaitable[R]]],
    Callable[[ContextStore, Request[Q, B]], Awaitable[R]],
]:
    """Declare the operation that the decorated function does; its docstring describes it."""

    def declare(
        call: Callable[[ContextStore, Request[Q, B]], Awaitable[R]],
    ) -> Callable[[ContextStore, Request[Q, B]], Awaitable[R]]:
        OPERATIONS.append(
            Operation(
                method=method,
                path=path,
                call=call,
                query=query,
                body=body,
                reply=reply,
                scope=scope,
                status=status,
                errors=errors,
                takes_key=takes_key,
            )
        )
        return call

    return declare


@operation("POST", "/v1/contexts", Context, scope="write", body=bodies.NewContext, status=201)
async def create(store: ContextStore, given: Request[Nothing, bodies.NewContext]) -> Context:
    """Create an empty context."""
    body = given.body
    return await store.create(
        name=body.name, metadata=body.metadata, expires_at=body.expires_at, id=body.id
    )


@operation("GET", "/v1/contexts", Page[Context], scope="read", query=bodies.Listing)
async def list_contexts(
    store: ContextStore, given: Request[bodies.Listing, Nothing]
) -> Page[Context]:
    """List contexts, newest first."""
    query = given.query
    return await store.list(
        limit=query.limit,
        cursor=query.cursor,
        metadata=query.metadata,
        include_deleted=query.include_deleted,
    )


@operation("GET", CONTEXT, Context, ContextNotFoundError, scope="read", query=bodies.Deleted)
async def get(store: ContextStore, given: Request[bodies.Deleted, Nothing]) -> Context:
    """Get a context."""
    return await store.get(given.path_id, include_deleted=given.query.include_deleted)


@operation(
    "PATCH", CONTEXT, Context, ContextNotFoundError, scope="write", body=bodies.ContextChange
)
async def update(store: ContextStore, given: Request[Nothing, bodies.ContextChange]) -> Context:
    """Change what is given of a context and leave the rest."""
    changes: dict[str, Any] = {
        name: value
        for name in given.body.__struct_fields__
        if (value := getattr(given.body, name)) is not UNSET
    }
    return await store.update(given.path_id, **changes)


@operation("DELETE", CONTEXT, Context, ContextNotFoundError, scope="write")
async def delete(store: ContextStore, given: Request[Nothing, Nothing]) -> Context:
    """Delete a context softly; its forks live on."""
    return await store.delete(given.path_id)


@operation("POST", f"{CONTEXT}/restore", Context, ContextNotFoundError, scope="write")
async def restore(store: ContextStore, given: Request[Nothing, Nothing]) -> Context:
    """Bring a deleted context back; one that lives stays as it is."""
    return await store.restore(given.path_id)


@operation(
    "POST",
    f"{CONTEXT}/messages",
    Items[Message],
    ContextNotFoundError,
    VersionConflictError,
    IdempotencyConflictError,
    DimensionMismatchError,
    scope="write",
    body=bodies.NewMessages,
    status=201,
    takes_key=True,
)
async def append(
    store: ContextStore, given: Request[Nothing, bodies.NewMessages]
) -> Items[Message]:
    """Append messages, all or none, in one piece."""
    body = given.body
    return Items(
        await store.append(
            given.path_id,
            body.messages,
            idempotency_key=given.idempotency_key,
            expected_version=body.expected_version,
            embed=body.embed,
        )
    )


@operation(
    "GET",
    f"{CONTEXT}/messages",
    Items[Message],
    ContextNotFoundError,
    scope="read",
    query=bodies.Reading,
)
async def history(store: ContextStore, given: Request[bodies.Reading, Nothing]) -> Items[Message]:
    """Read messages, oldest first: the newest ones, or those that follow a version."""
    query = given.query
    return Items(
        await store.history(
            given.path_id,
            at_version=query.at_version,
            before=query.before,
            after=query.after,
            limit=query.limit,
            roles=query.roles,
            include_deleted=query.include_deleted,
        )
    )


@operation(
    "POST",
    f"{CONTEXT}/messages/delete",
    Items[Message],
    ContextNotFoundError,
    MessageNotFoundError,
    scope="write",
    body=bodies.SomeVersions,
)
async def delete_messages(
    store: ContextStore, given: Request[Nothing, bodies.SomeVersions]
) -> Items[Message]:
    """Hide messages in this context's view; twice is once."""
    return Items(await store.delete_messages(given.path_id, given.body.versions))


@operation(
    "POST",
    f"{CONTEXT}/messages/restore",
    Items[Message],
    ContextNotFoundError,
    MessageNotFoundError,
    scope="write",
    body=bodies.SomeVersions,
)
async def restore_messages(
    store: ContextStore, given: Request[Nothing, bodies.SomeVersions]
) -> Items[Message]:
    """Show again what this context hid itself; twice is once."""
    return Items(await store.restore_messages(given.path_id, given.body.versions))


@operation(
    "GET", f"{CONTEXT}/window", Window, ContextNotFoundError, scope="read", query=bodies.Budget
)
async def window(store: ContextStore, given: Request[bodies.Budget, Nothing]) -> Window:
    """Get the newest messages that fit a token budget, oldest first."""
    return await store.window(
        given.path_id, max_tokens=given.query.max_tokens, at_version=given.query.at_version
    )


@operation(
    "POST",
    f"{CONTEXT}/fork",
    Context,
    ContextNotFoundError,
    scope="write",
    body=bodies.NewFork,
    status=201,
)
async def fork(store: ContextStore, given: Request[Nothing, bodies.NewFork]) -> Context:
    """Continue from a version of a context, copying nothing."""
    body = given.body
    return await store.fork(
        given.path_id,
        at_version=body.at_version,
        name=body.name,
        metadata=body.metadata,
        id=body.id,
    )


@operation("GET", f"{CONTEXT}/lineage", Items[Context], ContextNotFoundError, scope="read")
async def lineage(store: ContextStore, given: Request[Nothing, Nothing]) -> Items[Context]:
    """Get the path from the root to this context, deleted ancestors too."""
    return Items(await store.lineage(given.path_id))


@operation(
    "GET",
    f"{CONTEXT}/forks",
    Items[Context],
    ContextNotFoundError,
    scope="read",
    query=bodies.Depth,
)
async def forks(store: ContextStore, given: Request[bodies.Depth, Nothing]) -> Items[Context]:
    """Get the live forks of a context, oldest first."""
    return Items(await store.forks(given.path_id, recursive=given.query.recursive))


@operation("GET", f"{CONTEXT}/diff", Diff, ContextNotFoundError, scope="read", query=bodies.Other)
async def diff(store: ContextStore, given: Request[bodies.Other, Nothing]) -> Diff:
    """Compare what this context shows with what another one does."""
    return await store.diff(given.path_id, given.query.other)


@operation(
    "POST",
    f"{CONTEXT}/merge",
    Items[Message],
    ContextNotFoundError,
    VersionConflictError,
    scope="write",
    body=bodies.Merge,
)
async def merge(store: ContextStore, given: Request[Nothing, bodies.Merge]) -> Items[Message]:
    """Append to another context what only this one has; gives the new messages."""
    return Items(await store.merge(given.path_id, into=given.body.into, rebase=given.body.rebase))


@operation(
    "POST",
    "/v1/search",
    Items[Hit],
    ContextNotFoundError,
    DimensionMismatchError,
    EmbeddingError,
    scope="read",
    body=bodies.Search,
)
async def search(store: ContextStore, given: Request[Nothing, bodies.Search]) -> Items[Hit]:
    """Find messages, best first."""
    body = given.body
    filters: dict[str, Any] = {
        name: getattr(body, name) for name in body.__struct_fields__ if name != "query"
    }
    return Items(await store.search(body.query, **filters))


@operation(
    "POST",
    f"{CONTEXT}/erase",
    EraseReport,
    ContextNotFoundError,
    MessageNotFoundError,
    scope="admin",
    body=bodies.Erasure,
)
async def erase(store: ContextStore, given: Request[Nothing, bodies.Erasure]) -> EraseReport:
    """Remove content for good, everywhere, forks included: the right to be forgotten."""
    return await store.erase(given.path_id, given.body.versions)


@operation(
    "POST",
    "/v1/embed",
    bodies.Embedded,
    DimensionMismatchError,
    EmbeddingError,
    scope="write",
    body=bodies.Embedding,
)
async def embed_pending(
    store: ContextStore, given: Request[Nothing, bodies.Embedding]
) -> bodies.Embedded:
    """Embed messages whose embedding was left for later, or failed."""
    return bodies.Embedded(await store.embed_pending(limit=given.body.limit))


@operation("POST", "/v1/purge", PurgeReport, scope="admin", body=bodies.Purge)
async def purge(store: ContextStore, given: Request[Nothing, bodies.Purge]) -> PurgeReport:
    """Remove for good what was deleted or had expired long ago."""
    return await store.purge(older_than=timedelta(seconds=given.body.older_than_seconds))


@operation("GET", "/healthz", bodies.Health, scope=None)
async def healthz(_store: ContextStore, _given: Request[Nothing, Nothing]) -> bodies.Health:
    """Tell that the process answers; asks no database."""
    return bodies.Health()


@operation("GET", "/readyz", bodies.Readiness, NotReadyError, scope=None)
async def readyz(store: ContextStore, _given: Request[Nothing, Nothing]) -> bodies.Readiness:
    """Tell that the database answers and is migrated to what this version needs, or beyond."""
    revision = await Keys.of(store).revision()
    if revision is None or revision < limits.SCHEMA_REVISION:
        msg = "The database is not migrated to what this version needs."
        raise NotReadyError(msg)
    return bodies.Readiness(revision)
