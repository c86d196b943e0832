"""The store's connections: few, lazy, and with nothing left behind in a session.

One asyncpg pool per process and running event loop, made at the first statement. Behind a
transaction pooler another client may have the server connection a moment later, so nothing here
sets session state: no settings, no named statements unless they are safe, no introspection
(statements take and return built-in scalars, `jsonb` and `text[]` only), a reset that does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakKeyDictionary

import asyncpg

from pgcontext import limits
from pgcontext.errors import (
    ConfigError,
    ContextStoreError,
    PoolTimeoutError,
    UnavailableError,
    from_sqlstate,
)
from pgcontext.tls import tls_context
from pgcontext.url import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgcontext.settings import Settings
    from pgcontext.url import DatabaseUrl

    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

T = TypeVar("T")

logger: Final = logging.getLogger("pgcontext")
statement_logger: Final = logging.getLogger("pgcontext.statement")

CACHED_STATEMENTS_MAX: Final = 100


class UniqueViolationError(Exception):
    """A unique key refused a row: somebody, perhaps an earlier try of ours, was first.

    Attributes:
        constraint: the key's name.
        retried: whether an earlier try of the same call may have written it.
    """

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint
        self.retried = False


class Pool:
    """Runs statements, each on whichever connection is free.

    Args:
        settings: where to connect, how many connections, how long to wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncpg.Pool[asyncpg.Record]] = (
            WeakKeyDictionary()
        )
        self._process_id = os.getpid()
        self._used_at = time.time()

    async def fetch(self, statement: str, *args: object) -> tuple[list[asyncpg.Record], bool]:
        """Send one statement.

        A failure that passes by itself is tried again, at most `ATTEMPTS_MAX` times in all, with
        full jitter. So a statement that writes must be recognisable by ids it was given.

        Returns:
            The rows, and whether an earlier try may have taken effect already.

        Raises:
            UniqueViolationError: for the store to interpret.
            PoolTimeoutError: no connection became free.
            UnavailableError: the database could not be reached, or gave up.
            ContextStoreError: any other refusal, by SQLSTATE.
        """

        async def once(connection: Connection) -> list[asyncpg.Record]:
            return await connection.fetch(statement, *args)

        return await self._attempt(once, statement)

    async def transact(
        self, work: Callable[[Connection], Awaitable[T]], statement: str
    ) -> tuple[T, bool]:
        """Run several statements in one transaction; `statement` names the work in the log."""

        async def once(connection: Connection) -> T:
            async with connection.transaction():
                return await work(connection)

        return await self._attempt(once, statement)

    async def aclose(self) -> None:
        """Close the connections of this event loop, and abandon those of loops that are gone."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        self._abandon_dead_loops()
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), self._settings.acquire_seconds)
            except TimeoutError:
                pool.terminate()

    async def _attempt(
        self, once: Callable[[Connection], Awaitable[T]], statement: str
    ) -> tuple[T, bool]:
        retried = False
        for attempt in range(1, limits.ATTEMPTS_MAX + 1):
            try:
                return await self._once(once, statement), retried
            except UniqueViolationError as error:
                error.retried = retried
                raise
            except UnavailableError as error:
                if isinstance(error, _OverdueError) or attempt == limits.ATTEMPTS_MAX:
                    raise
                # The reply may have been lost after the commit.
                retried = True
                pause = _backoff_seconds(attempt)
                logger.info(
                    "%s failed (SQLSTATE %s), trying again in %.2f s",
                    statement_name(statement),
                    error.sqlstate,
                    pause,
                )
                await asyncio.sleep(pause)
                if self._settings.url is None:
                    await self._start_embedded()  # it may have crashed, and nobody else starts it
        raise AssertionError  # pragma: no cover (the loop returns or raises)

    async def _once(self, once: Callable[[Connection], Awaitable[T]], statement: str) -> T:
        pool = await self._current()
        connection = await self._acquire(pool)
        started = time.perf_counter()
        try:
            result = await once(connection)
        except TimeoutError as error:
            # Not tried again: the time the caller gave for it is used up.
            msg = (
                f"The database did not answer within {self._settings.statement_seconds:g} s; "
                "whether it did the work is not known."
            )
            raise _OverdueError(msg) from error
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolationError(error.constraint_name or "") from None
        except asyncpg.InternalClientError as error:
            # asyncpg lost track of a connection that the server closed while it was idle.
            connection.terminate()
            raise translate(error) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translate(error) from _speechless(error)
        finally:
            await pool.release(connection)
        if statement_logger.isEnabledFor(logging.DEBUG):
            milliseconds = (time.perf_counter() - started) * 1_000
            statement_logger.debug(
                "%s took %.2f ms",
                statement_name(statement),
                milliseconds,
                extra={"statement": statement_name(statement), "milliseconds": milliseconds},
            )
        return result

    async def _current(self) -> asyncpg.Pool[asyncpg.Record]:
        """Return this loop's pool, with connections that sat idle too long marked for closing."""
        if self._process_id != os.getpid():
            # After a fork the sockets are the parent's: forget them, never talk on them.
            self._pools = WeakKeyDictionary()
            self._process_id = os.getpid()
        now = time.time()
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is None:
            pool = await self._make()
        # By the wall clock, since a frozen function's timers do not run.
        elif now - self._used_at > limits.POOL_IDLE_SECONDS_MAX:
            await pool.expire_connections()
        self._used_at = now
        return pool

    async def _make(self) -> asyncpg.Pool[asyncpg.Record]:
        loop = asyncio.get_running_loop()
        self._abandon_dead_loops()
        settings = self._settings
        url = settings.url
        if url is None:
            url = await self._start_embedded()
        pool = self._pools.get(loop)
        if pool is None:
            pool = asyncpg.create_pool(
                **url.connect_kwargs(),
                ssl=tls_context(url),
                min_size=0,
                max_size=settings.pool_size,
                timeout=url.connect_seconds or settings.connect_seconds,
                command_timeout=settings.statement_seconds,
                statement_cache_size=CACHED_STATEMENTS_MAX if settings.caches_statements else 0,
                reset=_leave_as_it_is,
                server_settings=(
                    {"application_name": url.application_name} if url.application_name else None
                ),
            )
            await pool  # makes it usable; with min_size=0 nothing is connected
            pool = self._pools.setdefault(loop, pool)
        return pool

    async def _start_embedded(self) -> DatabaseUrl:
        from pgcontext import embedded  # noqa: PLC0415 (only who has no URL needs it)

        directory = Path(self._settings.data_dir) if self._settings.data_dir else None
        return parse(await embedded.start(directory))

    async def _acquire(self, pool: asyncpg.Pool[asyncpg.Record]) -> Connection:
        try:
            if pool.get_idle_size():
                # A connection is there, so nothing is waited for and no timer is needed.
                return await pool.acquire()
            return await pool.acquire(timeout=self._settings.acquire_seconds)
        except TimeoutError as error:
            if pool.get_size() >= self._settings.pool_size:
                msg = (
                    f"No database connection became free within {self._settings.acquire_seconds:g} "
                    f"s ({self._settings.pool_size} in use)."
                )
                raise PoolTimeoutError(msg) from error
            msg = "The database could not be reached in time."
            raise _OverdueError(msg) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translate(error) from _speechless(error)

    def _abandon_dead_loops(self) -> None:
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            pool = self._pools.pop(loop)
            try:
                pool.terminate()
            except RuntimeError:
                # The loop that would close the sockets is gone; they go with their transports.
                logger.info("connections of a closed event loop were abandoned")


class _OverdueError(UnavailableError):
    """The time for it is used up, so there is none left for another try."""


def statement_name(statement: str) -> str:
    """Return the name in a statement's first line, `-- pgcontext.append`."""
    return statement.partition("\n")[0].removeprefix("-- ")


def _backoff_seconds(attempt: int) -> float:
    """Return a pause: exponential with full jitter, so that many callers do not come at once."""
    longest = min(limits.BACKOFF_SECONDS_MAX, limits.BACKOFF_SECONDS_BASE * 2**attempt)
    return random.uniform(0, longest)  # noqa: S311 (no secret)


def translate(error: Exception) -> ContextStoreError:
    """Turn a failure of the driver into ours. The server's own words may quote values: left out."""
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(error, asyncpg.PostgresError) and sqlstate:
        return from_sqlstate(sqlstate)
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(
            "The database server's certificate could not be verified. Name its authority with "
            "sslrootcert=<file> in the URL, or accept any certificate with PGCONTEXT_TLS=require."
        )
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return ConfigError(
            "The database server does not speak TLS. Use one that does, or accept a readable "
            "connection with PGCONTEXT_TLS=disable."
        )
    return UnavailableError("The connection to the database failed.")


def _speechless(error: Exception) -> Exception | None:
    """Return the cause that may be shown: the server's DETAIL quotes the row that it refused."""
    return None if isinstance(error, asyncpg.PostgresError) else error


async def _leave_as_it_is(_connection: object) -> None:
    """Reset nothing on release: nothing was set, and a reset would cost a turn."""
