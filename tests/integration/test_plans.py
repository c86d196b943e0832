"""What PostgreSQL makes of the statements in a database that has been used for a while.

The store's methods are called; what they send is listened to, with its arguments, and explained.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncpg
import msgspec
import pytest

from pgcontext import ContextStore, limits, statements
from pgcontext.moving import Moving
from tests.conftest import VERSION
from tests.support.embedders import owe_and_embed, with_embedder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.postgres import Server

    Store = ContextStore
    Sent = tuple[str, tuple[Any, ...]]  # a statement and its arguments

# Twenty thousand conversations of two tenants, one of them long, and two lineages a thousand
# forks deep: in the one each fork wrote a message, in the other only the root did. A quarter of
# the contexts hide a message; a few were deleted.
FILL: Final = """
CREATE FUNCTION pg_temp.context_id(name text) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN md5('context ' || name)::uuid;
CREATE FUNCTION pg_temp.tenant(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN ('00000000-0000-0000-0000-00000000000' || CASE WHEN n % 10 = 0 THEN 1 ELSE 0 END)::uuid;

CREATE TEMPORARY TABLE made AS
SELECT pg_temp.tenant(n) AS tenant_id, pg_temp.context_id(n::text) AS id, n, 0 AS first,
       CASE n WHEN 1 THEN 20000 ELSE 10 END AS last, NULL::uuid AS parent_id
FROM generate_series(1, 20000) AS n
UNION ALL
SELECT pg_temp.tenant(1), pg_temp.context_id(kind || ' ' || level), level + 1,
       CASE WHEN level = 0 THEN 0 WHEN kind = 'silent' THEN 100 ELSE 99 + level END,
       CASE WHEN kind = 'silent' THEN 100 ELSE 100 + level END,
       CASE WHEN level > 0 THEN pg_temp.context_id(kind || ' ' || level - 1) END
FROM unnest('{silent,speaking}'::text[]) AS kind CROSS JOIN generate_series(0, 1000) AS level;

INSERT INTO contexts (
    tenant_id, id, name, metadata, created_at, latest_version, message_count, total_tokens,
    revision, parent_id, fork_version, fork_revision, deleted_at
)
SELECT tenant_id, id, 'conversation', jsonb_build_object('user', n), now() - n * interval '1 s',
       last, last, last * 100, last, parent_id, CASE WHEN parent_id IS NOT NULL THEN first END,
       CASE WHEN parent_id IS NOT NULL THEN first END,
       CASE WHEN parent_id IS NULL AND n % 500 = 499 THEN now() - interval '1 year' END
FROM made;

INSERT INTO messages (
    tenant_id, id, context_id, version, role, content, token_count, embedding
)
SELECT tenant_id, md5(id::text || version)::uuid, id, version,
       (ARRAY['system', 'user', 'assistant'])[CASE version WHEN 1 THEN 1 ELSE 2 + version % 2 END],
       'order ' || version || CASE WHEN n % 1000 = 7 THEN ' of amber' ELSE ' of wood' END, 100,
       CASE WHEN n % 100 = 1 AND version < 10
            THEN ARRAY[n % 7, version, 1, 1, 1, 1, 1, 1]::real[]::vector END
FROM made CROSS JOIN generate_series(first + 1, last) AS version;

WITH hidden AS (
    INSERT INTO tombstones (tenant_id, context_id, version, revision)
    SELECT tenant_id, id, 3, last + 1 FROM made WHERE n % 4 = 1 AND parent_id IS NULL
    RETURNING tenant_id, context_id
)
UPDATE contexts AS c
SET message_count = message_count - 1, total_tokens = total_tokens - 100, revision = revision + 1
FROM hidden
WHERE c.tenant_id = hidden.tenant_id AND c.id = hidden.context_id;
"""
SETTLE: Final = "VACUUM (ANALYZE)"


def context_id(name: str) -> UUID:
    return UUID(hashlib.md5(f"context {name}".encode(), usedforsecurity=False).hexdigest())


LONG: Final = context_id("1")  # 20,000 messages
PLAIN: Final = context_id("5")  # ten, and the third of them hidden
SILENT: Final = context_id("silent 1000")
SPEAKING: Final = context_id("speaking 1000")
MIDDLE: Final = context_id("speaking 500")
HELLO: Final = {"role": "user", "content": "hello", "token_count": 1}
VECTOR: Final = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


async def _move(store: Store) -> None:
    moving = Moving.of(with_embedder(store))
    await moving.run()
    await moving._fetch(
        statements.EMBED_REPLACE, json.dumps([{"id": str(PLAIN), "embedding": "[]"}]), "m"
    )


async def _second_page(store: Store) -> None:
    await store.list(cursor=(await store.list()).next_cursor)


async def _merge(store: Store) -> None:
    await store.merge(SPEAKING, into=(await store.fork(MIDDLE)).id)


async def _delete_and_restore(store: Store) -> None:
    await store.delete(PLAIN)
    await store.restore(PLAIN)


async def _append_twice(store: Store) -> None:
    for _ in range(2):
        await store.append(LONG, HELLO, idempotency_key="a key")


CALLS: Final[dict[str, Callable[[Store], Awaitable[object]]]] = {
    "create": lambda store: store.create(),
    "get": lambda store: store.get(LONG),
    "list": lambda store: store.list(),
    "list, the next page": _second_page,
    "list with metadata": lambda store: store.list(metadata={"user": 7}),
    "update": lambda store: store.update(PLAIN, name="other"),
    "append": lambda store: store.append(LONG, HELLO),
    "append again": _append_twice,
    "history": lambda store: store.history(LONG, limit=50),
    "history of roles": lambda store: store.history(LONG, roles=["user"]),
    "history with hidden": lambda store: store.history(LONG, include_deleted=True),
    "history after": lambda store: store.history(LONG, after=10_000, limit=50),
    "history after, with hidden": lambda store: store.history(LONG, after=1, include_deleted=True),
    "history, each fork wrote": lambda store: store.history(SPEAKING, limit=50),
    "history, only the root wrote": lambda store: store.history(SILENT, limit=50),
    "window": lambda store: store.window(LONG, max_tokens=8_000),
    "window, each fork wrote": lambda store: store.window(SPEAKING, max_tokens=8_000),
    "fork": lambda store: store.fork(LONG),
    "fork near the end": lambda store: store.fork(LONG, at_version=19_990),
    "lineage": lambda store: store.lineage(SPEAKING),
    "forks": lambda store: store.forks(MIDDLE, recursive=True),
    "diff": lambda store: store.diff(SPEAKING, MIDDLE),
    "merge": _merge,
    "delete messages": lambda store: store.delete_messages(LONG, [7, 20_000]),
    "restore messages": lambda store: store.restore_messages(LONG, [7, 20_000]),
    "search a context for words": lambda store: store.search("order", context_id=PLAIN),
    "search a context by vector": lambda store: store.search(VECTOR, context_id=PLAIN),
    "search the tenant for words": lambda store: store.search("amber", neighbors=1),
    "search the tenant by vector": lambda store: store.search(VECTOR, neighbors=1),
    "delete and restore": _delete_and_restore,
    "erase": lambda store: store.erase(MIDDLE, [2]),
    "purge": lambda store: store.purge(older_than=timedelta(days=300)),
    "embed what is owed": lambda store: owe_and_embed(store, PLAIN),
    "move embeddings": _move,
}
# What functions do all day.
HOT: Final = ("append", "get", "history", "history after", "window", "fork")
# Blocks of 8 KB: two or three for a key, and two for a message that might be hidden.
BLOCKS_MAX: Final = {
    "get": 5,
    "history": 200,
    "history after": 200,
    "history with hidden": 800,
    "history, each fork wrote": 1_000,
    "history, only the root wrote": 4_000,
    "window": 1_000,
    "window, each fork wrote": 10_000,
    "lineage": 8_000,
}
JIT_ABOVE_COST: Final = 100_000.0  # the server's default
SELDOM: Final = {"purge_contexts"}  # jobs may take the time
# Reads that go along an index of the tenant's until they have enough, or that are about all of it.
ALONG_THE_TENANT: Final = {
    ("list", "contexts_metadata_idx"),
    ("list", "contexts_newest_idx"),
    ("purge_owners", "messages_deleted_idx"),
    ("search_tenant_text", "messages_text_idx"),
}


@pytest.fixture(scope="session")
def used_url(server: Callable[[int], Server]) -> Iterator[str]:
    """A database as it is after a while."""
    running = server(VERSION)
    url = running.create_database()

    async def fill() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(FILL)
        await connection.execute(SETTLE)
        await connection.close()

    with ThreadPoolExecutor(1) as threads:  # in this one a test's loop may be running
        threads.submit(asyncio.run, fill()).result()
    yield url
    running.drop_database(url)


class Node(msgspec.Struct):
    """A node of a plan.

    Attributes:
        statement: `history`.
        kind: `Index Scan`.
        relation: the table that it reads, if it reads one.
        index: the index that it goes along.
        condition: what it looks for in that index.
        cost: of the whole plan, at its topmost node; 0 elsewhere.
    """

    statement: str
    kind: str
    relation: str | None
    index: str | None
    condition: str
    cost: float


@pytest.fixture
async def connection(used_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the driver to the used database, past the store."""
    opened = await asyncpg.connect(used_url)
    yield opened
    await opened.close()


@pytest.fixture
async def store(used_url: str) -> AsyncIterator[Store]:
    """A store on the used database, over a single connection."""
    async with ContextStore.from_env(url=used_url, pool_size=1) as made:
        yield made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """What a store that connects from now on sends to the server."""
    heard: list[Sent] = []
    connect = asyncpg.connect

    def listen(query: Any) -> None:
        if query.query.startswith("-- pgcontext."):  # and not BEGIN or COMMIT
            heard.append((query.query, query.args))

    async def connect_and_listen(*where: Any, **how: Any) -> asyncpg.Connection:
        opened: asyncpg.Connection = await connect(*where, **how)
        opened.add_query_logger(listen)
        return opened

    monkeypatch.setattr(asyncpg, "connect", connect_and_listen)
    return heard


async def explained(
    connection: asyncpg.Connection, sent: list[Sent], *, options: str = ""
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Give the name and the plan of each statement, for its own arguments and for any."""
    await asyncio.sleep(0)  # the driver reports in the loop's next turn
    assert sent
    for number, (text, arguments) in enumerate(sent):
        await connection.execute(f"PREPARE explained_{number} AS {text}")
        values = f"({', '.join(map(literal, arguments))})" if arguments else ""
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            plan = await connection.fetchval(
                f"EXPLAIN ({options} FORMAT JSON) EXECUTE explained_{number}{values}"
            )
            yield text.split()[1].removeprefix("pgcontext."), json.loads(plan)[0]["Plan"]


def walk(statement: str, plan: dict[str, Any], cost: float) -> Iterator[Node]:
    yield Node(
        statement,
        plan["Node Type"],
        plan.get("Relation Name"),
        plan.get("Index Name"),
        plan.get("Index Cond", ""),
        cost,
    )
    for below in plan.get("Plans", ()):
        yield from walk(statement, below, 0)


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return literal("{" + ",".join(json.dumps(item) for item in value) + "}")
    return "'" + str(value).replace("'", "''") + "'"


async def nodes_of(connection: asyncpg.Connection, sent: list[Sent]) -> list[Node]:
    return [
        node
        async for statement, plan in explained(connection, sent)
        for node in walk(statement, plan, plan["Total Cost"])
    ]


def whole_tables(nodes: list[Node]) -> set[tuple[str, str | None]]:
    return {(node.statement, node.relation) for node in nodes if node.kind == "Seq Scan"}


def whole_tenants(nodes: list[Node]) -> set[tuple[str, str]]:
    return {
        (node.statement, node.index)
        for node in nodes
        if node.index and not re.search(r"tenant_id = .*AND", node.condition)
    }


@pytest.mark.parametrize("call", CALLS)
async def test_every_row_is_found_by_its_key(
    sent: list[Sent], store: Store, connection: asyncpg.Connection, call: str
) -> None:
    """No statement reads a whole table, or all that an index has of a tenant."""
    await CALLS[call](store)
    nodes = await nodes_of(connection, sent)
    assert not whole_tables(nodes)
    assert whole_tenants(nodes) <= ALONG_THE_TENANT
    # Above it PostgreSQL compiles a plan before it runs it, which takes longer than the rest.
    assert max(node.cost for node in nodes if node.statement not in SELDOM) < JIT_ABOVE_COST


async def test_a_scan_would_be_seen(
    sent: list[Sent], store: Store, connection: asyncpg.Connection
) -> None:
    """The same search finds a statement that hashes all contexts, and one without a key."""
    await store._fetch(
        "-- pgcontext.hashing\n"
        "SELECT FROM @contexts AS a JOIN @contexts AS b ON b.id = a.parent_id"
        " WHERE a.tenant_id = $1"
    )
    await store._fetch(
        "-- pgcontext.keyless\n"
        "SELECT FROM @messages AS m WHERE m.tenant_id = $1 ORDER BY m.id LIMIT 1"
    )
    nodes = await nodes_of(connection, sent)
    assert ("hashing", "contexts") in whole_tables(nodes)
    assert ("keyless", "messages_pkey") in whole_tenants(nodes)


@pytest.mark.parametrize("call", BLOCKS_MAX)
async def test_a_read_touches_what_it_returns(
    sent: list[Sent], store: Store, connection: asyncpg.Connection, call: str
) -> None:
    """The blocks that are read depend on the messages returned and the depth, not on the length."""
    await CALLS[call](store)
    async for _, plan in explained(connection, sent, options="ANALYZE, BUFFERS,"):
        blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        assert 0 < blocks <= BLOCKS_MAX[call]


@pytest.fixture(params=["as it is", "few and long"])
async def contexts(
    request: pytest.FixtureRequest, connection: asyncpg.Connection
) -> AsyncIterator[None]:
    """Statistics as they are, or as of two million messages in three contexts."""
    if request.param == "few and long":
        await connection.execute("ALTER TABLE messages ALTER context_id SET (n_distinct = 3)")
        await connection.execute("ANALYZE messages (context_id)")
        await connection.execute(
            "UPDATE pg_class SET reltuples = reltuples * 10 WHERE oid = 'messages'::regclass"
        )
    yield
    if request.param == "few and long":
        await connection.execute("ALTER TABLE messages ALTER context_id RESET (n_distinct)")
        await connection.execute("VACUUM (ANALYZE) messages")


@pytest.mark.parametrize("call", HOT)
async def test_the_sixth_call_is_planned_no_more(
    contexts: None, store: Store, connection: asyncpg.Connection, call: str
) -> None:
    """PostgreSQL takes one plan for all calls, whatever its statistics say."""
    for _ in range(7):
        await CALLS[call](store)
    (connections,) = store._pool._by_loop.values()
    used = await connections.acquire(1)
    plans = await used.fetch(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements"
        " WHERE statement LIKE '-- pgcontext.%'"
    )
    connections.release(used, usable=True)
    assert [tuple(row) for row in plans] == [(2, 5)]


@pytest.mark.parametrize("contexts", ["few and long"], indirect=True)
@pytest.mark.parametrize("call", HOT)
async def test_few_long_contexts_are_read_by_key_too(
    contexts: None, sent: list[Sent], store: Store, connection: asyncpg.Connection, call: str
) -> None:
    """Where a context seems to have a third of all messages, the plans stay what they are."""
    await CALLS[call](store)
    nodes = await nodes_of(connection, sent)
    assert not whole_tables(nodes)
    assert not whole_tenants(nodes)
    assert max(node.cost for node in nodes) < JIT_ABOVE_COST


def test_the_planner_is_told_how_long_a_history_is() -> None:
    """The bound in the statement's text is the one that callers are held to."""
    bound = f"LIMIT {limits.HISTORY_MESSAGES_MAX}\n"
    for text in (statements.HISTORY, statements.HISTORY_AFTER):
        assert bound in text
