"""Fills databases with messages and their embeddings in bulk, and builds the indexes afterwards."""

from __future__ import annotations

import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from benchmarks.conversations import conversation
from benchmarks.search.corpus import CHUNK_ROWS, MESSAGES, context_id, message_id
from benchmarks.search.vectors import DIMENSIONS
from benchmarks.server import run
from pgcontext import ContextStore
from pgcontext.limits import SCHEMA_REVISION
from pgcontext.settings import Settings
from pgcontext.tokens import get_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from uuid import UUID

    from numpy.typing import NDArray

    from benchmarks.search.corpus import Corpus

TURNS: Final = 2_500
# A server of somebody who builds an index on a million embeddings has room for its graph.
BUILDING: Final = {"maintenance_work_mem": "3GB", "max_parallel_maintenance_workers": "2"}
DISTINCT_SECONDS: Final = 5  # between two messages of a context

MESSAGE_COLUMNS: Final = (
    *("tenant_id", "id", "context_id", "version", "created_at"),
    *("role", "content", "token_count", "model", "embedding"),
)
CONTEXT_COLUMNS: Final = (
    *("tenant_id", "id", "name", "metadata", "created_at", "updated_at"),
    *("message_count", "total_tokens", "latest_version", "revision"),
)
INDEXES: Final = """
SELECT i.relname AS name, pg_get_indexdef(i.oid) AS definition
FROM pg_index AS x
JOIN pg_class AS i ON i.oid = x.indexrelid
WHERE x.indrelid = 'messages'::regclass
  AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.oid)
ORDER BY i.relname
"""
# Every second message of each context is hidden, as `delete_messages` does it.
HIDE_HALF: Final = """
WITH hidden AS (
    UPDATE messages SET deleted_at = now() WHERE version % 2 = 0
    RETURNING tenant_id, context_id, version, token_count
),
marked AS (
    INSERT INTO tombstones (tenant_id, context_id, version, revision)
    SELECT h.tenant_id, h.context_id, h.version, c.revision + 1
    FROM hidden AS h
    JOIN contexts AS c ON c.tenant_id = h.tenant_id AND c.id = h.context_id
)
UPDATE contexts AS c
SET message_count = c.message_count - h.messages, total_tokens = c.total_tokens - h.tokens,
    revision = c.revision + 1, updated_at = now()
FROM (
    SELECT tenant_id, context_id, count(*) AS messages, sum(token_count) AS tokens
    FROM hidden GROUP BY 1, 2
) AS h
WHERE c.tenant_id = h.tenant_id AND c.id = h.context_id
"""


class Loaded(msgspec.Struct, frozen=True):
    """What is known of a database since it was filled.

    Attributes:
        url: of the database.
        load_seconds: writing the rows, without the indexes that are built afterwards.
        build_seconds: of each of these.
    """

    url: str
    load_seconds: float
    build_seconds: dict[str, float]


async def loaded(url: str, corpus: Corpus) -> Loaded:
    """Return the database of a corpus, filling it unless an earlier run has.

    Args:
        url: of the server.
        corpus: the messages.
    """
    admin = await asyncpg.connect(url)
    try:
        there = of_database(url, corpus.name)
        facts = await noted(admin, corpus.name)
        if facts is None:
            await admin.execute("DROP DATABASE IF EXISTS @ WITH (FORCE)".replace("@", corpus.name))
            await admin.execute("CREATE DATABASE @".replace("@", corpus.name))
            migrate(there)
            facts = await _fill(there, corpus)
            await note_on(admin, corpus.name, facts)
        return Loaded(there, **facts)
    finally:
        await admin.close()


async def noted(admin: asyncpg.Connection, database: str) -> dict[str, Any] | None:
    """Return what an earlier run noted of a database; None when it is not there, or half-way."""
    note = await admin.fetchval(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", database
    )
    facts: dict[str, Any] = msgspec.json.decode(note) if note else {}
    return facts if facts.pop("revision", None) == SCHEMA_REVISION else None


async def note_on(admin: asyncpg.Connection, database: str, facts: dict[str, Any]) -> None:
    """Note something of a database that is complete."""
    note = msgspec.json.encode(facts | {"revision": SCHEMA_REVISION}).decode()
    text = "COMMENT ON DATABASE @database IS '@note'"
    await admin.execute(text.replace("@database", database).replace("@note", note))


def of_database(url: str, name: str) -> str:
    """Return the address of another database of the server."""
    server, _, options = url.partition("?")
    return f"{server.rpartition('/')[0]}/{name}?{options}"


def migrate(url: str) -> None:
    """Make the tables."""
    run(
        [sys.executable, "-m", "pgcontext.migrate"],
        DATABASE_URL=url,
        PGCONTEXT_DIMENSIONS=str(DIMENSIONS),
    )


def store_on(url: str, tenant_id: UUID | None = None) -> ContextStore:
    """Return a store of these embeddings."""
    settings = Settings.from_env({}, url=url, dimensions=DIMENSIONS)
    return ContextStore(tenant_id=tenant_id, settings=settings)


@asynccontextmanager
async def fresh(url: str, name: str) -> AsyncGenerator[str]:
    """Give a migrated database without a row."""
    admin = await asyncpg.connect(url)
    try:
        await admin.execute("DROP DATABASE IF EXISTS @ WITH (FORCE)".replace("@", name))
        await admin.execute("CREATE DATABASE @".replace("@", name))
        migrate(of_database(url, name))
        yield of_database(url, name)
        await admin.execute("DROP DATABASE @ WITH (FORCE)".replace("@", name))
    finally:
        await admin.close()


@asynccontextmanager
async def copied(url: str, name: str) -> AsyncGenerator[str]:
    """Give a copy of a database, to do something to it."""
    admin = await asyncpg.connect(url)
    copy = f"{name}_copy"
    try:
        await admin.execute("DROP DATABASE IF EXISTS @ WITH (FORCE)".replace("@", copy))
        create = "CREATE DATABASE @copy TEMPLATE @of STRATEGY file_copy"
        await admin.execute(create.replace("@copy", copy).replace("@of", name))
        yield of_database(url, copy)
        await admin.execute("DROP DATABASE @ WITH (FORCE)".replace("@", copy))
    finally:
        await admin.close()


async def hide_half(url: str) -> None:
    """Delete the messages of even versions, and keep the vacuum away from what they leave."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("ALTER TABLE messages SET (autovacuum_enabled = false)")
        await connection.execute(HIDE_HALF)
        await connection.execute("ANALYZE messages")
    finally:
        await connection.close()


async def _fill(url: str, corpus: Corpus) -> dict[str, Any]:
    """Write the rows, build the indexes, and say how long it took."""
    connection = await asyncpg.connect(url)
    try:
        await connection.set_type_codec(
            "vector", encoder=bytes, decoder=bytes, format="binary", schema="public"
        )
        indexes = await connection.fetch(INDEXES)
        for index in indexes:
            await connection.execute("DROP INDEX @".replace("@", index["name"]))
        started = time.perf_counter()
        await _copy(connection, corpus)
        seconds = time.perf_counter() - started
        for name, value in BUILDING.items():
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
        built = {index["name"]: await timed(connection, index["definition"]) for index in indexes}
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
        return {"load_seconds": seconds, "build_seconds": built}
    finally:
        await connection.close()


async def timed(connection: asyncpg.Connection, statement: str) -> float:
    """Execute a statement and return its seconds."""
    started = time.perf_counter()
    await connection.execute(statement)
    return time.perf_counter() - started


async def _copy(connection: asyncpg.Connection, corpus: Corpus) -> None:
    """Write contexts and messages with the counters that appends would have left."""
    lines = texts()
    rows_max = CHUNK_ROWS
    for start in range(0, corpus.rows, rows_max):
        stop = min(start + rows_max, corpus.rows)
        contexts = range(start // MESSAGES, stop // MESSAGES)
        await connection.copy_records_to_table(
            "contexts", records=_contexts(corpus, contexts, lines), columns=CONTEXT_COLUMNS
        )
        await connection.copy_records_to_table(
            "messages", records=_messages(corpus, start, stop, lines), columns=MESSAGE_COLUMNS
        )


def texts() -> list[tuple[str, int]]:
    """Return contents of messages, each with its tokens."""
    tokenizer = get_tokenizer(Settings().tokenizer)
    contents = [message["content"] for message in conversation(TURNS) if message["content"]]
    return [(content, tokenizer.count(content)) for content in contents]


def _contexts(
    corpus: Corpus, contexts: range, lines: list[tuple[str, int]]
) -> Iterator[tuple[Any, ...]]:
    for context in contexts:
        first = context * MESSAGES
        tokens = sum(lines[row % len(lines)][1] for row in range(first, first + MESSAGES))
        moment = corpus.moment(context)
        yield (
            *(corpus.tenant(context), context_id(context), f"conversation {context}"),
            *(msgspec.json.encode(corpus.metadata(context)).decode(), moment, moment),
            *(MESSAGES, tokens, MESSAGES, 1),
        )


def _messages(
    corpus: Corpus, start: int, stop: int, lines: list[tuple[str, int]]
) -> Iterator[tuple[Any, ...]]:
    for row, embedding in zip(range(start, stop), binary(corpus.vectors(start, stop)), strict=True):
        context, place = divmod(row, MESSAGES)
        moment = corpus.moment(context) + timedelta(seconds=DISTINCT_SECONDS * place)
        content, tokens = lines[row % len(lines)]
        yield (
            *(corpus.tenant(context), message_id(row), context_id(context), place + 1, moment),
            *(corpus.role(context), content, tokens, corpus.model(context), embedding),
        )


def binary(vectors: NDArray[Any]) -> Iterator[bytes]:
    """Return vectors as pgvector reads them: two bytes of length, two unused, big-endian floats."""
    head = len(vectors[0]).to_bytes(2, "big") + bytes(2)
    big_endian = vectors.astype(">f4")
    return (head + row.tobytes() for row in big_endian)
