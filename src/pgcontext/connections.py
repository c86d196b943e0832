"""The few connections of one event loop, each in the hands of one caller at a time.

Instead of asyncpg's own pool: for each use that makes a task, a future and two timers, which took
as long as the rest of a warm statement (docs/adr/0005). Nothing of it is needed where a connection
is given back as it was taken, and one of which that isn't known is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pgcontext import limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]


class AllInUseError(Exception):
    """No connection became free in time."""


class Connections:
    """Opens connections when they are asked for, and keeps them for the next caller.

    Args:
        connect: opens one.
        most: how many there may be at once.
        idle_seconds: for how long one that nobody used is still trusted. By the wall clock, since
            while a function is frozen no other goes on; one that was set back is not trusted.
        close_seconds: how long those in use have to come back when all are closed.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        most: int,
        idle_seconds: float,
        close_seconds: float,
    ) -> None:
        self._connect = connect
        self._most = most
        self._idle_seconds = idle_seconds
        self._close_seconds = close_seconds
        self._turns = asyncio.Semaphore(most)  # first come, first served
        # Each with the moment it came back; the last used at the end.
        self._idle: deque[tuple[Connection, float]] = deque()
        self._opened: set[Connection] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def acquire(self, wait_seconds: float) -> Connection:
        """Take a connection; whoever does gives it back with `release`.

        Raises:
            AllInUseError: none became free. And whatever `connect` raises.
        """
        if self._turns.locked():
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._turns.acquire()
            except TimeoutError:
                raise AllInUseError from None
        else:
            await self._turns.acquire()  # at once, so no timer is needed
        try:
            self._drop_stale()
            while self._idle:
                connection, _ = self._idle.pop()
                if not connection.is_closed():
                    return connection
                self._opened.discard(connection)
            connection = await self._connect()
        except BaseException:
            self._turns.release()
            raise
        self._opened.add(connection)
        return connection

    def release(self, connection: Connection, *, usable: bool) -> None:
        """Give a connection back.

        Args:
            connection: that was acquired.
            usable: it is known to be as it was taken. Otherwise it is closed, and what still runs
                on it is cancelled; until that is done it counts as one of those in use.
        """
        if usable and not connection.is_closed():
            self._idle.append((connection, time.time()))
            self._turns.release()
        else:
            task = asyncio.get_running_loop().create_task(self._discard(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close all; those in use have `close_seconds` to come back."""
        try:
            async with asyncio.timeout(self._close_seconds):
                for _ in range(self._most):
                    await self._turns.acquire()
                while self._idle:
                    await self._discard(self._idle.pop()[0])
        except TimeoutError:
            pass  # what did not come back is cut off
        finally:
            self.terminate()

    def terminate(self) -> None:
        """Cut all of them off; also when their event loop is closed."""
        self._idle.clear()
        while self._opened:
            _cut(self._opened.pop())

    def _drop_stale(self) -> None:
        now = time.time()
        while self._idle and not 0 <= now - self._idle[0][1] <= self._idle_seconds:
            connection, _ = self._idle.popleft()
            self._opened.discard(connection)
            _cut(connection)

    async def _discard(self, connection: Connection) -> None:
        try:
            with suppress(Exception):  # it was broken, and now it is gone
                await connection.close(timeout=min(self._close_seconds, limits.CLOSE_SECONDS_MAX))
        finally:
            self._opened.discard(connection)
            self._turns.release()


def _cut(connection: Connection) -> None:
    """End a connection without a word to the server."""
    transport: Any = getattr(connection, "_transport", None)
    try:
        connection.terminate()
    except RuntimeError:
        # Its event loop is closed, which would have closed the socket in its next turn.
        secured = getattr(transport, "_ssl_protocol", None)
        transport = transport if secured is None else secured._transport  # noqa: SLF001
        lose = getattr(transport, "_call_connection_lost", None)
        if lose is not None:  # other loops than asyncio's close their sockets themselves
            with suppress(RuntimeError):
                lose(None)
