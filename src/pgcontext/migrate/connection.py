"""The connection of a migration: direct, in one transaction, with our errors."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import asyncpg
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from pgcontext.errors import (
    ConfigError,
    ContextStoreError,
    UnavailableError,
    is_retryable_sqlstate,
)
from pgcontext.pool import translate
from pgcontext.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sqlalchemy import Connection

    from pgcontext.settings import Settings
    from pgcontext.url import DatabaseUrl

T = TypeVar("T")

logger: Final = logging.getLogger("pgcontext.migrate")

INSUFFICIENT_PRIVILEGE: Final = "42501"
LOCK_NOT_AVAILABLE: Final = "55P03"
DEPENDENT_OBJECTS: Final = "2BP01"
FEATURE_NOT_SUPPORTED: Final = "0A000"
# Such as another type for a column that a view shows, or a policy names.
_OTHER_TYPE: Final = re.compile(r"\s*ALTER TABLE\b.*\bTYPE\b", re.DOTALL)
WATCH_SECONDS: Final = 0.5
ALONE: Final = "hashtextextended('pgcontext indexes', 0)"


class _Refusal(NamedTuple):
    kind: type[ContextStoreError]
    sentence: str


_DEPENDENTS: Final = _Refusal(
    ConfigError,
    "Foreign keys, views or other objects of your own depend on pgcontext's tables; nothing was "
    "changed: remove those first",
)
REFUSALS: Final = {
    LOCK_NOT_AVAILABLE: _Refusal(
        UnavailableError,
        "Other sessions held pgcontext's tables, or another migration ran, for too long; nothing "
        "was changed: run this again when there is less traffic",
    ),
    INSUFFICIENT_PRIVILEGE: _Refusal(
        ConfigError,
        "This role may not change pgcontext's tables; nothing was changed: migrate as the role "
        "that owns them",
    ),
    DEPENDENT_OBJECTS: _DEPENDENTS,
}
EXTENSION_REFUSAL: Final = _Refusal(
    ConfigError,
    "This role could not create the extension pgvector; nothing was changed: have a superuser, or "
    "your provider's administrator role, run CREATE EXTENSION vector; in this database, then run "
    "this again",
)
PASSING_REFUSAL: Final = _Refusal(
    UnavailableError, "The database gave up; nothing was changed: run this again"
)
OTHER_REFUSAL: Final = _Refusal(ContextStoreError, "The database refused; nothing was changed")

_one_at_a_time = threading.Lock()  # Alembic keeps what it runs in module globals.


def direct_url(settings: Settings) -> DatabaseUrl:
    """Return the URL to migrate over.

    Raises:
        ConfigError: there is none, or it names a transaction pooler.
    """
    url = settings.direct_url
    if url is None:
        raise ConfigError(
            "No database is named: set DATABASE_URL_UNPOOLED (or a direct DATABASE_URL) to "
            "postgresql://user:password@host:port/database."
        )
    return url


def run(work: Callable[[Connection], T], settings: Settings, *, keep: bool = True) -> T:
    """Run `work` in one transaction over the direct URL; `keep=False` rolls it back.

    Raises:
        ContextStoreError: whatever went wrong, in one sentence; nothing was changed.
    """
    url = direct_url(settings)
    with _one_at_a_time:
        return _run_to_end(_transact(work, url, settings, keep=keep))


def _run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    if not _is_loop_running():
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:  # a notebook or another application runs a loop here
        return thread.submit(asyncio.run, coroutine).result()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_alone(
    statements: list[str],
    settings: Settings,
    *,
    watch: Callable[[float], None] = lambda _part: None,
) -> None:
    """Run statements over the direct URL one by one, each its own transaction or beyond one.

    For what PostgreSQL does beside the traffic (`CONCURRENTLY`). Only one at a time may do so; the
    turn of a migration can't be taken for it, since who waits for that would be waited for.

    Args:
        statements: what to run.
        settings: of the database.
        watch: told now and then which part of an index's table has been read, 0 to 1.

    Raises:
        ContextStoreError: whatever went wrong, in one sentence.
    """
    _run_to_end(_alone(statements, direct_url(settings), settings, watch))


async def _alone(
    statements: list[str], url: DatabaseUrl, settings: Settings, watch: Callable[[float], None]
) -> None:
    connection = await _connect(url, settings)
    watching = asyncio.create_task(_watch(connection.get_server_pid(), url, settings, watch))
    try:
        await connection.execute("SET statement_timeout = 0")
        if not await connection.fetchval(f"SELECT pg_try_advisory_lock({ALONE})"):
            raise UnavailableError(
                "Another run of this builds the indexes at this moment; look again later."
            )
        for statement in statements:
            await connection.execute(statement)
        # The session's end would give it back too, but a moment after this returns.
        await connection.execute(f"SELECT pg_advisory_unlock({ALONE})")
    except ContextStoreError:
        raise
    except asyncpg.PostgresError as error:
        # Without its cause: the server's DETAIL may quote rows.
        raise translate(error) from None
    except (asyncpg.InterfaceError, OSError) as error:
        raise UnavailableError(
            "The connection to the database was lost; run this again."
        ) from error
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        # Not closed in peace: what is interrupted has to end there, too.
        connection.terminate()


async def _watch(
    process: int, url: DatabaseUrl, settings: Settings, watch: Callable[[float], None]
) -> None:
    """Ask the server how far another session is with its index, until cancelled."""
    connection = await _connect(url, settings)
    try:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            part = await connection.fetchval(
                "SELECT blocks_done / greatest(blocks_total, 1)::float8"
                " FROM pg_stat_progress_create_index WHERE pid = $1",
                process,
            )
            watch(part or 0.0)
    finally:
        connection.terminate()


async def _connect(url: DatabaseUrl, settings: Settings) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await asyncpg.connect(
            **url.connect_kwargs(),
            ssl=tls_context(url),
            timeout=url.connect_seconds or settings.connect_seconds,
            statement_cache_size=0,
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error) from error


async def _transact(
    work: Callable[[Connection], T], url: DatabaseUrl, settings: Settings, *, keep: bool
) -> T:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(_connect, url, settings),
        poolclass=NullPool,
        # After waiting for another migration, what it did must be seen.
        isolation_level="READ COMMITTED",
    )
    try:
        with _translated():
            async with engine.connect() as connection:
                result = await connection.run_sync(work)
                await (connection.commit() if keep else connection.rollback())
                return result
    finally:
        await engine.dispose()


@contextmanager
def _translated() -> Generator[None]:
    """Turn what the driver, SQLAlchemy and Alembic raise into our errors."""
    try:
        yield
    except DBAPIError as error:
        logger.debug("refused: %s", error.statement)
        # Without its cause: the server's DETAIL may quote rows.
        raise _refusal(error) from None
    except CommandError as error:
        raise ContextStoreError(f"Alembic refused: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error) from None


def _refusal(error: DBAPIError) -> ContextStoreError:
    """Say what a failed statement means. The server's own words may quote values: left out."""
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    if sqlstate is None or error.connection_invalidated:
        return UnavailableError("The connection to the database was lost; run this again.")
    if (error.statement or "").lstrip().startswith("CREATE EXTENSION"):
        refusal = EXTENSION_REFUSAL
    elif sqlstate == FEATURE_NOT_SUPPORTED and _OTHER_TYPE.match(error.statement or ""):
        refusal = _DEPENDENTS
    elif sqlstate in REFUSALS:
        refusal = REFUSALS[sqlstate]
    else:
        refusal = PASSING_REFUSAL if is_retryable_sqlstate(sqlstate) else OTHER_REFUSAL
    return refusal.kind(f"{refusal.sentence}. (SQLSTATE {sqlstate})", sqlstate=sqlstate)
