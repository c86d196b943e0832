"""Throw-away PostgreSQL servers, and a fresh database on one of them for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg

from pgcontext.embedded.cluster import Cluster
from tests.support import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

TEMPLATE: Final = "pgcontext_template"
PREFIX: Final = "pgcontext-tests-"
MEMORY: Final = Path("/dev/shm")  # noqa: S108  (each server gets a private folder in it)
MEMORY_BYTES_MIN: Final = 4 * 1024**3
# Nothing here survives the run, so nothing waits for a disk; and nothing but a test acts.
SETTINGS: Final = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "synchronous_commit": "off",
}


class Server:
    """A server of one version for one test run.

    If the run is killed, the server still ends, as the embedded PostgreSQL does.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self._folder = memory_folder()
        self._cluster = Cluster(self._folder, version=version, settings=SETTINGS)
        self._numbers = itertools.count(1)
        # A loop of its own that runs only while one statement does: tests have theirs.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        try:
            with self._cluster.exclusive():
                self._cluster.ensure_running()
            self._admin = self._do(asyncpg.connect(self._cluster.url()))
        except BaseException:
            self.stop()
            raise
        self._template_made = False

    def create_database(self, *, migrated: bool = True) -> str:
        """Make a database, migrated or empty, and return its URL."""
        name = f"test_{next(self._numbers)}"
        if migrated:
            self._make_template()
            # Measured on a file system in memory: 7 ms, with WAL_LOG 9 ms.
            self._sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
        else:
            self._sql(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
        return self._cluster.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made, whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        if not self._runner.get_loop().is_closed():
            if hasattr(self, "_admin"):
                self._do(self._admin.close())
            self._runner.close()
        self._cluster.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_template(self) -> None:
        if self._template_made:
            return
        self._sql(f"CREATE DATABASE {TEMPLATE} STRATEGY FILE_COPY")
        migrate(self._cluster.url(TEMPLATE))
        self._template_made = True

    def _sql(self, statement: str) -> None:
        self._do(self._admin.execute(statement))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        # In another thread, since in this one a test's loop may be running.
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(self._runner.run, work).result()


def migrate(url: str, *, dimensions: int = DIMENSIONS) -> None:
    """Migrate a database as a user does, in a process of its own."""
    variables = {"DATABASE_URL_UNPOOLED": url, "PGCONTEXT_DIMENSIONS": str(dimensions)}
    done = subprocess.run(
        [sys.executable, "-m", "pgcontext.migrate"],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def memory_folder() -> Path:
    """Make a folder for a server, in memory where there is enough, and clear those left over.

    Whoever asks for it removes it at the end.
    """
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    base = MEMORY if roomy else Path(tempfile.gettempdir())
    for left in base.glob(f"{PREFIX}*"):
        if not _is_running(int(left.name.removeprefix(PREFIX).partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
