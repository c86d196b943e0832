"""A server that keeps what it acknowledged through a crash, and can be made to crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from pgcontext.embedded.cluster import Cluster
from tests.support.postgres import memory_folder, migrate

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# The operating system survives, so what was handed to it is safe; the server's own memory isn't.
SETTINGS: Final = {"autovacuum": "off", "fsync": "off", "max_connections": "100"}
UP_SECONDS_MAX: Final = 30.0


class CrashingServer:
    """A migrated database on a server of its own.

    Args:
        folder: where; by default one in memory.

    Attributes:
        url: of the database.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = memory_folder() if folder is None else folder
        self._cluster = Cluster(self._folder, settings=SETTINGS)
        self.url = self._cluster.url()

    def __enter__(self) -> Self:
        """Start it and migrate the database."""
        try:
            self._start()
            migrate(self.url)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it and remove its folder."""
        self._cluster.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def crash(self) -> None:
        """Kill all its processes at once, start it again, and wait until it answers."""
        _kill(int(self._pid_file.read_text("ascii").split()[0]))
        await self.recover()

    async def recover(self) -> None:
        """Start it if it is down, and wait until it answers."""
        await asyncio.to_thread(self._start)
        async with asyncio.timeout(UP_SECONDS_MAX):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError):
                    connection = await asyncpg.connect(self.url)
                    await connection.close()
                    return
                await asyncio.sleep(0.02)

    @property
    def _pid_file(self) -> Path:
        return self._folder / f"postgresql-{self._cluster.version}" / "postmaster.pid"

    def _start(self) -> None:
        with self._cluster.exclusive():
            self._cluster.ensure_running()


def _kill(postmaster: int) -> None:
    # The first, so that it does not start anything anew.
    family = [postmaster, *_children(postmaster)]
    for process in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
            if int(after_name[1]) == parent:
                found.append(int(stat.parent.name))
    return found
