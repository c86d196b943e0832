"""Fixtures of every test: a real PostgreSQL server for the run, a fresh database for each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from pgcontext.settings import POOLED_NAMES, UNPOOLED_NAMES
from tests.support import DIMENSIONS
from tests.support.postgres import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pgcontext import ContextStore

VERSION_NAME: Final = "PGCONTEXT_TEST_POSTGRES"
VERSION: Final = int(os.environ.get(VERSION_NAME, "18"))
# Variables that would lead a test to somebody's database, or change what it sees there.
FOREIGN: Final = ("PG", "AWS_LAMBDA_", "VERCEL", *POOLED_NAMES, *UNPOOLED_NAMES)


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep whatever the machine is set to away from the tests, and from what they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(FOREIGN) and name != VERSION_NAME:
                patch.delenv(name)
        patch.setenv("PGCONTEXT_DIMENSIONS", str(DIMENSIONS))
        patch.setenv("PGCONTEXT_DATA_DIR", str(tmp_path_factory.mktemp("embedded")))
        yield


@pytest.fixture(scope="session")
def server(environment: None) -> Iterator[Callable[[int], Server]]:
    """Give the run's server of a version, 16 or 18; started when it is first asked for."""
    servers: dict[int, Server] = {}

    def get(version: int = VERSION) -> Server:
        if version not in servers:
            servers[version] = Server(version)
        return servers[version]

    try:
        yield get
    finally:
        for running in servers.values():
            running.stop()


@pytest.fixture
def make_database(server: Callable[[int], Server]) -> Iterator[Callable[..., str]]:
    """Make databases: `make_database(version=16, migrated=False)` returns a URL."""
    made: list[tuple[Server, str]] = []

    def make(*, version: int = VERSION, migrated: bool = True) -> str:
        running = server(version)
        url = running.create_database(migrated=migrated)
        made.append((running, url))
        return url

    yield make
    for running, url in made:
        running.drop_database(url)


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    """A migrated database without rows, for this test alone."""
    return make_database()


@pytest.fixture
def empty_database_url(make_database: Callable[..., str]) -> str:
    """A database with nothing in it, not even the extension."""
    return make_database(migrated=False)


@pytest.fixture
def postgres16_url(make_database: Callable[..., str]) -> str:
    """A database with nothing in it, on PostgreSQL 16."""
    return make_database(version=16, migrated=False)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the driver to the test's database, past the store."""
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


@pytest.fixture
async def make_store(database_url: str) -> AsyncIterator[Callable[..., ContextStore]]:
    """Make stores on the test's database; arguments are those of `ContextStore.from_env`."""
    from pgcontext import ContextStore

    made: list[ContextStore] = []

    def make(**overrides: object) -> ContextStore:
        made.append(ContextStore.from_env(**{"url": database_url, **overrides}))
        return made[-1]

    yield make
    for store in made:
        await store.aclose()


@pytest.fixture
def store(make_store: Callable[..., ContextStore]) -> ContextStore:
    """A store on the test's database, for the default tenant."""
    return make_store()
