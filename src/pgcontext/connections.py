"""The few connections of one event loop, each in the hands of one caller at a time.

Instead of asyncpg's own pool: for each use that makes a task, a future and two timers, which took
as long as the rest of a warm statement (docs/adr/0005). Nothing of it is needed where a connection
is given back as it was taken, and one of which that isn't known is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

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
        close_seconds: how long a graceful end may take.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], *, most: int, close_seconds: float
    ) -> None:
        self._connect = connect
        self._most = most
        self._close_seconds = close_seconds
        self._turns = asyncio.Semaphore(most)  # first come, first served
        self._idle: list[Connection] = []  # the last used at the end
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
            while self._idle:
                connection = self._idle.pop()
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
            self._idle.append(connection)
            self._turns.release()
        else:
            task = asyncio.get_running_loop().create_task(self._discard(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def expire(self) -> None:
        """Drop those that nobody uses right now."""
        while self._idle:
            connection = self._idle.pop()
            connection.terminate()
            self._opened.discard(connection)

    async def aclose(self) -> None:
        """Close all; those in use have `close_seconds` to come back."""
        try:
            async with asyncio.timeout(self._close_seconds):
                for _ in range(self._most):
                    await self._turns.acquire()
                while self._idle:
                    await self._discard(self._idle.pop())
        except TimeoutError:
            pass  # what did not come back is cut off
        finally:
            self.terminate()

    def terminate(self) -> None:
        """Cut all of them off; also when their event loop is closed."""
        while self._opened:
            # Without a loop that would close its socket, a connection ends when it is forgotten.
            with suppress(RuntimeError):
                self._opened.pop().terminate()

    async def _discard(self, connection: Connection) -> None:
        try:
            with suppress(Exception):  # it was broken, and now it is gone
                await connection.close(timeout=self._close_seconds)
        finally:
            self._opened.discard(connection)
            self._turns.release()
