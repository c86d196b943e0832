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
import re
import ssl
import time
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

import asyncpg

from pgcontext import limits, tracing
from pgcontext.connections import AllInUseError, Connections
from pgcontext.errors import (
    QUERY_CANCELED_SQLSTATE,
    ConfigError,
    ContextStoreError,
    InvalidInputError,
    PoolTimeoutError,
    UnavailableError,
    from_sqlstate,
)
from pgcontext.tls import tls_context
from pgcontext.url import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from pgcontext.connections import Connection
    from pgcontext.settings import Settings
    from pgcontext.url import DatabaseUrl

T = TypeVar("T")

logger: Final = logging.getLogger("pgcontext")
statement_logger: Final = logging.getLogger("pgcontext.statement")

CACHED_STATEMENTS_MAX: Final = 100
_UNSENT: Final = re.compile(
    r"invalid input for query argument (\$\d+): .*?"
    r"(?: \((value out of \w+ range|expected \w+, got \w+)\))?",
    re.DOTALL,
)


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
        self._of_parents: list[object] = []

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
        self._leave_the_parents()
        connections = self._by_loop.pop(asyncio.get_running_loop(), None)
        self._abandon_dead_loops()
        if connections is not None:
            await connections.aclose()

    async def _attempt(
        self, once: Callable[[Connection], Awaitable[T]], statement: str
    ) -> tuple[T, bool]:
        name = statement_name(statement)
        with tracing.span(name) as span:
            outcome = await self._tries(once, name, span)
        if isinstance(outcome, UniqueViolationError):
            raise outcome  # no error yet: the store knows what it means
        return outcome

    async def _tries(
        self,
        once: Callable[[Connection], Awaitable[T]],
        name: str,
        span: Any,  # noqa: ANN401 (OpenTelemetry's, or None)
    ) -> tuple[T, bool] | UniqueViolationError:
        for attempt in range(1, limits.ATTEMPTS_MAX + 1):
            try:
                return await self._once(once, name), attempt > 1
            except UniqueViolationError as error:
                # The reply of an earlier try may have been lost after the commit.
                error.retried = attempt > 1
                return error
            except UnavailableError as error:
                if _is_final(error) or attempt == limits.ATTEMPTS_MAX:
                    raise
                await self._pause(name, error, attempt)
                tracing.retried(span, attempt + 1)
        raise AssertionError  # pragma: no cover (the loop returns or raises)

    async def _pause(self, name: str, error: UnavailableError, attempt: int) -> None:
        pause = _left(_backoff_seconds(attempt))
        logger.info(
            "%s failed (SQLSTATE %s), trying again in %.2f s",
            name,
            error.sqlstate,
            pause,
            extra={
                "event": "retry",
                "statement": name,
                "sqlstate": error.sqlstate,
                "attempt": attempt,
            },
        )
        await asyncio.sleep(pause)
        if self._settings.url is None:
            await self._start_embedded()  # it may have crashed, and nobody else starts it

    async def _once(self, once: Callable[[Connection], Awaitable[T]], name: str) -> T:
        connections = await self._current()
        connection = await self._acquire(connections, name)
        started = time.perf_counter()
        usable = False
        try:
            work = once(connection)
            if _deadline.get() is not None:  # otherwise no timer is needed
                work = _in_time(work)
            result = await work
            usable = True
        except TimeoutError as error:
            # Not tried again: the time the caller gave for it is used up.
            msg = (
                "The database did not answer in time (PGCONTEXT_STATEMENT_SECONDS, or what the "
                "caller left for it); whether it did the work is not known."
            )
            raise _OverdueError(msg) from error
        except asyncpg.PostgresError as error:
            usable = True  # a statement was refused, which changes nothing about its connection
            if isinstance(error, asyncpg.UniqueViolationError):
                raise UniqueViolationError(error.constraint_name or "") from None
            raise _refusal(name, error) from _speechless(error)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise translate(error) from _speechless(error)
        finally:
            connections.release(connection, usable=usable)
        _log_duration(name, (time.perf_counter() - started) * 1_000)
        return result

    async def _current(self) -> Connections:
        """Return this loop's connections."""
        self._leave_the_parents()
        return self._by_loop.get(asyncio.get_running_loop()) or await self._make()

    def _leave_the_parents(self) -> None:
        """After a fork the sockets are the parent's too: keep them, and never touch them."""
        if self._process_id != os.getpid():
            self._of_parents.append(dict(self._by_loop))
            self._by_loop = WeakKeyDictionary()
            self._process_id = os.getpid()

    async def _make(self) -> Connections:
        loop = asyncio.get_running_loop()
        self._abandon_dead_loops()
        settings = self._settings
        url = settings.url
        if url is None:
            url = await self._start_embedded()
        arguments: dict[str, Any] = {
            **url.connect_kwargs(),
            "ssl": tls_context(url),
            "command_timeout": settings.statement_seconds,
            "statement_cache_size": CACHED_STATEMENTS_MAX if settings.caches_statements else 0,
        }
        if url.application_name:
            arguments["server_settings"] = {"application_name": url.application_name}
        made = Connections(
            functools.partial(_connect, arguments, url.connect_seconds or settings.connect_seconds),
            most=settings.pool_size,
            idle_seconds=limits.POOL_IDLE_SECONDS_MAX,
            close_seconds=settings.acquire_seconds,
        )
        return self._by_loop.setdefault(loop, made)

    async def _start_embedded(self) -> DatabaseUrl:
        from pgcontext import embedded  # noqa: PLC0415 (only who has no URL needs it)

        directory = Path(self._settings.data_dir) if self._settings.data_dir else None
        return parse(await embedded.start(directory, dimensions=self._settings.dimensions))

    async def _acquire(self, connections: Connections, name: str) -> Connection:
        seconds = _left(self._settings.acquire_seconds)
        try:
            return await connections.acquire(seconds)
        except AllInUseError as error:
            logger.info(
                "%s got no connection within %.2f s",
                name,
                seconds,
                extra={"event": "refuse", "statement": name, "sqlstate": None},
            )
            msg = (
                f"No database connection became free within {seconds:g} s "
                f"({self._settings.pool_size} in use)."
            )
            raise PoolTimeoutError(msg) from error
        except TimeoutError as error:
            msg = "The database could not be reached in time."
            raise _OverdueError(msg) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _refusal(name, error) from _speechless(error)

    def _abandon_dead_loops(self) -> None:
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            self._by_loop.pop(loop).terminate()


class _OverdueError(UnavailableError):
    """The time for it is used up, so there is none left for another try."""


def _is_final(error: UnavailableError) -> bool:
    """Tell what another try at once would only make worse: a time that was used up."""
    return isinstance(error, _OverdueError) or error.sqlstate == QUERY_CANCELED_SQLSTATE


_deadline: Final[ContextVar[float | None]] = ContextVar("pgcontext_deadline", default=None)


@contextmanager
def within(seconds: float) -> Generator[None]:
    """Let every wait of the calls made inside end before so many seconds are over.

    For what stops at a moment of its own, as a function does. A call whose time is used up raises
    `UnavailableError`, or `PoolTimeoutError` if it had no connection yet. Of several the nearest
    counts; the waits that the settings bound stay bounded by them too.
    """
    moment, outer = time.monotonic() + seconds, _deadline.get()
    token = _deadline.set(moment if outer is None else min(moment, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float | None:
    """Return how long the time lasts that the caller left with `within`; None for no end."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _left(seconds: float) -> float:
    """Return how long may be waited: so long, or less where the caller's time ends before."""
    deadline = _deadline.get()
    if deadline is None:
        return seconds
    left = deadline - time.monotonic()
    if left <= 0:
        msg = "The time that the caller left for this is used up."
        raise _OverdueError(msg)
    return min(seconds, left)


async def _in_time(work: Awaitable[T]) -> T:
    """Wait for what has its own bounds, and no longer than the caller's time lasts."""
    deadline = _deadline.get()
    async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
        return await work


async def _connect(arguments: dict[str, Any], seconds: float) -> Connection:
    started = time.perf_counter()
    connection: Connection = await asyncpg.connect(**arguments, timeout=_left(seconds))
    milliseconds = (time.perf_counter() - started) * 1_000
    logger.info(
        "connected in %.0f ms",
        milliseconds,
        extra={"event": "connect", "milliseconds": milliseconds},
    )
    return connection


def _refusal(name: str, error: Exception) -> ContextStoreError:
    translated = translate(error)
    if not isinstance(translated, UnavailableError):  # which is tried again, and says so
        logger.info(
            "%s was refused (SQLSTATE %s)",
            name,
            translated.sqlstate,
            extra={"event": "refuse", "statement": name, "sqlstate": translated.sqlstate},
        )
    return translated


def _log_duration(name: str, milliseconds: float) -> None:
    slow = milliseconds > limits.SLOW_STATEMENT_SECONDS * 1_000
    if not (slow or statement_logger.isEnabledFor(logging.DEBUG)):
        return
    extra = {"event": "statement", "statement": name, "milliseconds": milliseconds}
    statement_logger.debug("%s took %.2f ms", name, milliseconds, extra=extra)
    if slow:
        logger.warning("%s took %.0f ms", name, milliseconds, extra={**extra, "event": "slow"})


@functools.lru_cache(maxsize=256)
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
    if isinstance(error, asyncpg.DataError) and error.severity is None:
        # The driver's own, of an argument that it can't encode; a severity has what a server said.
        return InvalidInputError(_unsent(str(error)))
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


def _unsent(words: str) -> str:
    """Say which argument the driver can't encode, and why where its words don't quote the value."""
    known = _UNSENT.fullmatch(words)
    place = f"Argument {known[1]}" if known else "An argument"
    why = f" ({known[2]})" if known and known[2] else ""
    return (
        f"{place} of the statement cannot be encoded{why}; nothing was sent: give a value of the "
        "type that PostgreSQL has there, within its range."
    )


def _speechless(error: Exception) -> Exception | None:
    """Return the cause that may be shown: some quote the row or the argument that was refused."""
    return None if isinstance(error, (asyncpg.PostgresError, asyncpg.DataError)) else error
