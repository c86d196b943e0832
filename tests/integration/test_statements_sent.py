"""What the store sends, and what it leaves behind in a database session."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import pytest

from pgcontext import ContextStore
from tests.support import DIMENSIONS
from tests.support.embedders import owe_and_embed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

HELLO: Final = {"role": "user", "content": "hello amber", "token_count": 2}
VECTOR: Final = [1.0] * DIMENSIONS
SAID: Final = [{**HELLO, "embedding": VECTOR}] * 4

# What a client can leave in a session, for whoever gets the server's connection next.
SESSION: Final = """
SELECT
    (SELECT json_object_agg(name, setting ORDER BY name) FROM pg_settings
     WHERE source = 'session' OR name IN ('jit', 'search_path', 'plan_cache_mode')) AS settings,
    (SELECT count(*) FROM pg_prepared_statements WHERE name <> '') AS prepared,
    (SELECT count(*) FROM pg_cursors WHERE name <> '') AS cursors,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
    (SELECT pg_my_temp_schema()) AS temporary,
    (SELECT count(*) FROM pg_listening_channels()) AS channels
"""


class Family(NamedTuple):
    """A store and two contexts of it, the second a fork of the first."""

    store: ContextStore
    parent: UUID
    child: UUID


async def _read_all(store: ContextStore, context_id: UUID) -> list[Any]:
    return [message async for message in store.iter_history(context_id)]


Call = tuple[str, "Callable[[Family], Awaitable[Any]]"]

# Every method that talks to the database, in an order in which each has something to do.
ONE_STATEMENT: Final[list[Call]] = [
    ("create", lambda my: my.store.create(name="another")),
    ("get", lambda my: my.store.get(my.parent)),
    ("list", lambda my: my.store.list()),
    ("update", lambda my: my.store.update(my.parent, name="the same")),
    ("append", lambda my: my.store.append(my.child, SAID, idempotency_key="k")),
    ("history", lambda my: my.store.history(my.child)),
    ("history_after", lambda my: my.store.history(my.child, after=0)),
    ("history", lambda my: my.store.history(my.child, include_deleted=True)),
    ("history_after", lambda my: _read_all(my.store, my.child)),
    ("window", lambda my: my.store.window(my.child, max_tokens=7)),
    ("fork", lambda my: my.store.fork(my.child)),
    ("fork", lambda my: my.store.fork(my.child, at_version=3)),
    ("lineage", lambda my: my.store.lineage(my.child)),
    ("forks", lambda my: my.store.forks(my.parent, recursive=True)),
    ("diff", lambda my: my.store.diff(my.parent, my.child)),
    ("merge", lambda my: my.store.merge(my.child, into=my.parent)),
    ("delete_messages", lambda my: my.store.delete_messages(my.child, [1, 5])),
    ("restore_messages", lambda my: my.store.restore_messages(my.child, [1, 5])),
    ("search_context_text", lambda my: my.store.search("amber", context_id=my.child, neighbors=1)),
    ("search_context_vector", lambda my: my.store.search(VECTOR, context_id=my.child)),
    ("search_tenant_text", lambda my: my.store.search("amber")),
    ("search_tenant_vector", lambda my: my.store.search(VECTOR, diversity=0.5)),
    ("delete", lambda my: my.store.delete(my.child)),
    ("restore", lambda my: my.store.restore(my.child)),
]
# ... and those whose docstrings say that they send several.
SEVERAL: Final[list[Call]] = [
    ("erase", lambda my: my.store.erase(my.child, 2)),
    ("embed_pending", lambda my: owe_and_embed(my.store, my.parent)),
    ("purge", lambda my: my.store.purge(older_than=timedelta(0))),
]
METHODS: Final = {
    name
    for name, method in inspect.getmembers(ContextStore, inspect.isfunction)
    if not name.startswith("_")
    and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
} - {"aclose"}


@pytest.fixture
async def family(
    make_store: Callable[..., ContextStore], monkeypatch: pytest.MonkeyPatch
) -> tuple[Family, list[str]]:
    """Contexts to work on over a single connection, and the list of what is sent from now on."""
    sent: list[str] = []

    connect = asyncpg.connect

    async def connect_and_listen(*where: Any, **how: Any) -> asyncpg.Connection:
        connection: asyncpg.Connection = await connect(*where, **how)
        connection.add_query_logger(lambda query: sent.append(query.query))
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect_and_listen)
    store = make_store(pool_size=1, statement_cache="off")
    parent = await store.create()
    await store.append(parent.id, SAID)
    child = await store.fork(parent.id)
    await asyncio.sleep(0)
    sent.clear()
    return Family(store, parent.id, child.id), sent


def test_every_method_is_among_the_calls() -> None:
    """A method that is added to the store has to say here what it sends."""
    named = {name.removesuffix("_after") for name, _ in ONE_STATEMENT + SEVERAL}
    named = {"search" if name.startswith("search_") else name for name in named}
    assert named | {"iter_history"} == METHODS


async def test_one_method_is_one_statement(family: tuple[Family, list[str]]) -> None:
    """Each method sends one statement, which begins with its name; no BEGIN, no introspection."""
    mine, sent = family
    for name, call in ONE_STATEMENT:
        await call(mine)
        await asyncio.sleep(0)  # the driver reports in the loop's next turn
        assert [text.partition("\n")[0] for text in sent] == [f"-- pgcontext.{name}"]
        sent.clear()


async def test_nothing_stays_behind_in_a_session(
    family: tuple[Family, list[str]], database_url: str
) -> None:
    """After every method, the server's session is like a fresh one."""
    mine, _ = family
    fresh = await asyncpg.connect(database_url, statement_cache_size=0)
    expected = await fresh.fetchrow(SESSION)
    for _, call in ONE_STATEMENT + SEVERAL:
        await call(mine)
    [connections] = mine.store._pool._by_loop.values()
    connection = await connections.acquire(1)
    assert await connection.fetchrow(SESSION) == expected
    for trace in (
        "SET jit = off",
        "PREPARE one AS SELECT 1",
        "SELECT pg_advisory_lock(1)",
        "CREATE TEMPORARY TABLE one (id integer)",
        "LISTEN one",
    ):
        # It would be seen.
        before = await connection.fetchrow(SESSION)
        await connection.execute(trace)
        assert await connection.fetchrow(SESSION) != before
    await connection.execute("DISCARD ALL")
    connections.release(connection, usable=True)
    await fresh.close()
