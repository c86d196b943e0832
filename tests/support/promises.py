"""What must hold in any database, whatever was done to it: checks shared by several tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from uuid import UUID

    from pgcontext import Context, ContextStore, Message

TABLES = {
    "contexts": "SELECT to_jsonb(t)::text AS row FROM contexts AS t ORDER BY 1",
    "messages": "SELECT to_jsonb(t)::text AS row FROM messages AS t ORDER BY 1",
    "tombstones": "SELECT to_jsonb(t)::text AS row FROM tombstones AS t ORDER BY 1",
}


async def view(store: ContextStore, context_id: UUID) -> list[Message]:
    """Everything that a context shows."""
    return [message async for message in store.iter_history(context_id)]


async def living(store: ContextStore) -> list[Context]:
    """Every context of the tenant that is not deleted."""
    contexts: list[Context] = []
    cursor: str | None = None
    while True:
        page = await store.list(limit=200, cursor=cursor)
        contexts += page.items
        if (cursor := page.next_cursor) is None:
            return contexts


async def assert_counters_match_views(store: ContextStore) -> None:
    """Hold what every context says of itself against what it shows."""
    for context in await living(store):
        messages = await view(store, context.id)
        versions = [message.version for message in messages]
        assert versions == sorted(set(versions))
        assert not versions or 1 <= versions[0] <= versions[-1] <= context.latest_version
        assert context.message_count == len(messages)
        assert context.total_tokens == sum(message.token_count for message in messages)


async def assert_versions_are_gapless(database_url: str, context: Context) -> None:
    """Hold the rows that a context wrote itself against its version; none may be purged."""
    rows = await query(
        database_url,
        "SELECT version FROM messages WHERE tenant_id = $1 AND context_id = $2 ORDER BY version",
        context.tenant_id,
        context.id,
    )
    first = (context.fork_version or 0) + 1
    assert [row["version"] for row in rows] == list(range(first, context.latest_version + 1))


async def query(database_url: str, statement: str, *args: Any) -> list[asyncpg.Record]:
    """Ask the database directly, past the store."""
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetch(statement, *args)
    finally:
        await connection.close()


async def dump(database_url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of the store, to be compared with a later one."""
    return {
        table: [json.loads(row["row"]) for row in await query(database_url, statement)]
        for table, statement in TABLES.items()
    }
