"""The store's connections: few, lazy, and with nothing left behind in a session.

One set of connections per process and running event loop, made at the first statement. Behind a
transaction pooler another client may have the server connection a moment later, so nothing here
sets session state: no settings, no named statements unless they are safe, no introspection
(statements take and return built-in scalars, `jsonb` and `text[]` only). So nothing needs a reset.
"""

from __future__ import annotations

import asyncio
import functools
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
from pgcontext.connections import AllInUseError, Connections
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

    from pgcontext.connections import Connection
    from pgcontext.settings import Settings
    from pgcontext.url import DatabaseUrl

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
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Connections] = (
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
        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        self._abandon_dead_loops()
        if connections is not None:
            await connections.aclose()

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
        connections = await self._current()
        connection = await self._acquire(connections)
        started = time.perf_counter()
        usable = False
        try:
            result = await once(connection)
            usable = True
        except TimeoutError as error:
            # Not tried again: the time the caller gave for it is used up.
            msg = (
                f"The database did not answer within {self._settings.statement_seconds:g} s; "
                "whether it did the work is not known."
            )
            raise _OverdueError(msg) from error
        except asyncpg.PostgresError as error:
            usable = True  # a statement was refused, which changes nothing about its connection
            if isinstance(error, asyncpg.UniqueViolationError):
                raise UniqueViolationError(error.constraint_name or "") from None
            raise translate(error) from _speechless(error)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise translate(error) from error
        finally:
            connections.release(connection, usable=usable)
        if statement_logger.isEnabledFor(logging.DEBUG):
            milliseconds = (time.perf_counter() - started) * 1_000
            statement_logger.debug(
                "%s took %.2f ms",
                statement_name(statement),
                milliseconds,
                extra={"statement": statement_name(statement), "milliseconds": milliseconds},
            )
        return result

    async def _current(self) -> Connections:
        """Return this loop's connections, without those that sat idle too long."""
        if self._process_id != os.getpid():
            # After a fork the sockets are the parent's: forget them, never talk on them.
            self._by_loop = WeakKeyDictionary()
            self._process_id = os.getpid()
        now = time.time()
        connections = self._by_loop.get(asyncio.get_running_loop())
        if connections is None:
            connections = await self._make()
        # By the wall clock, since a frozen function's timers do not run.
        elif now - self._used_at > limits.POOL_IDLE_SECONDS_MAX:
            connections.expire()
        self._used_at = now
        return connections

    async def _make(self) -> Connections:
        loop = asyncio.get_running_loop()
        self._abandon_dead_loops()
        settings = self._settings
        url = settings.url
        if url is None:
            url = await self._start_embedded()
        connect = functools.partial(
            asyncpg.connect,
            **url.connect_kwargs(),
            ssl=tls_context(url),
            timeout=url.connect_seconds or settings.connect_seconds,
            command_timeout=settings.statement_seconds,
            statement_cache_size=CACHED_STATEMENTS_MAX if settings.caches_statements else 0,
            server_settings=(
                {"application_name": url.application_name} if url.application_name else None
            ),
        )
        made = Connections(connect, most=settings.pool_size, close_seconds=settings.acquire_seconds)
        return self._by_loop.setdefault(loop, made)

    async def _start_embedded(self) -> DatabaseUrl:
        from pgcontext import embedded  # noqa: PLC0415 (only who has no URL needs it)

        directory = Path(self._settings.data_dir) if self._settings.data_dir else None
        return parse(await embedded.start(directory))

    async def _acquire(self, connections: Connections) -> Connection:
        settings = self._settings
        try:
            return await connections.acquire(settings.acquire_seconds)
        except AllInUseError as error:
            msg = (
                f"No database connection became free within {settings.acquire_seconds:g} s "
                f"({settings.pool_size} in use)."
            )
            raise PoolTimeoutError(msg) from error
        except TimeoutError as error:
            msg = "The database could not be reached in time."
            raise _OverdueError(msg) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise translate(error) from _speechless(error)

    def _abandon_dead_loops(self) -> None:
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            self._by_loop.pop(loop).terminate()


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
