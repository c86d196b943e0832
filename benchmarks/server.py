"""A PostgreSQL 18 of its own for one run, with the settings it comes with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgcontext.embedded.cluster import Cluster
from pgcontext.settings import POOLED_NAMES, UNPOOLED_NAMES

if TYPE_CHECKING:
    from collections.abc import Generator

REMOVALS_MAX: Final = 50


@contextmanager
def running(directory: Path | None, **settings: str) -> Generator[str]:
    """Run a migrated server and give its URL.

    Nothing else is set: a commit waits for the disk (`fsync`), and autovacuum runs, as in a
    database that somebody uses.

    Args:
        directory: keeps the database for the next run; None removes it afterwards.
        settings: of the server.
    """
    where = directory or Path(tempfile.mkdtemp(prefix="pgcontext-bench-"))
    cluster = Cluster(where.absolute(), settings=settings)
    try:
        with cluster.exclusive():
            cluster.ensure_running()
        run([sys.executable, "-m", "pgcontext.migrate"], DATABASE_URL=cluster.url())
        yield cluster.url()
    finally:
        cluster.stop()
        if directory is None:
            _remove(where)


def _remove(folder: Path) -> None:
    """Remove a folder in which the server's keeper may still be closing up."""
    for _ in range(REMOVALS_MAX):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def run(command: list[str], **variables: str) -> str:
    """Run a program to its end, with these variables instead of the user's, and return its output.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        command,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        msg = f"{command[0]} failed: {done.stdout.strip()}"
        raise RuntimeError(msg)
    return done.stdout


def environment(**variables: str) -> dict[str, str]:
    """Return the environment without what would lead a run to somebody's database.

    And without what changes Python: an import should not compile its source each time.
    """
    foreign = ("PG", "PYTHON", *POOLED_NAMES, *UNPOOLED_NAMES)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | variables
