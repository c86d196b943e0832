"""Fills a database in bulk with what the store would have written one append at a time."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from benchmarks.conversations import MESSAGES_PER_TURN, conversation
from pgcontext.ids import uuid7
from pgcontext.messages import drafts, encode
from pgcontext.settings import Settings
from pgcontext.tokens import get_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

TURNS: Final = 2_500
BATCH_TURNS: Final = 100
ROWS_PER_STATEMENT: Final = 50_000

LINES: Final = """
CREATE TEMP TABLE lines (
    ordinal bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (START 0 MINVALUE 0), role text,
    content text, tool_call_id text, tool_name text, token_count integer, payload jsonb
)
"""
ADD_LINES: Final = """
INSERT INTO lines (role, content, tool_call_id, tool_name, token_count, payload)
SELECT role, content, tool_call_id, tool_name, coalesce(token_count, 0), payload
FROM json_to_recordset($1::json) AS b (
    role text, content text, tool_call_id text, tool_name text, token_count integer, payload jsonb
)
"""
CREATE: Final = """
INSERT INTO contexts (tenant_id, id, name, metadata)
SELECT $1, id, 'conversation ' || id, '{"channel": "web", "shop": "books"}'
FROM unnest($2::uuid[]) AS id
"""
# Each context starts with the system message and goes on somewhere else in the conversation.
FILL: Final = """
WITH line AS (
    SELECT c.id AS context_id, v AS version, l.*
    FROM unnest($2::uuid[]) WITH ORDINALITY AS c (id, place)
    CROSS JOIN generate_series($3::bigint, $4::bigint) AS v
    CROSS JOIN (SELECT count(*) - 1 AS count FROM lines) AS n
    JOIN lines AS l
        ON l.ordinal = CASE WHEN v = 1 THEN 0 ELSE 1 + (v - 2 + c.place * 4 * 37) % n.count END
    ORDER BY c.place, v
),
written AS (
    INSERT INTO messages AS m (
        tenant_id, id, context_id, version, role, content, tool_call_id, tool_name, token_count,
        payload
    )
    SELECT $1, uuidv7(), context_id, version, role, content, tool_call_id, tool_name, token_count,
           payload
    FROM line
    RETURNING m.context_id, m.token_count
)
UPDATE contexts AS c
SET latest_version = c.latest_version + w.messages,
    message_count = c.message_count + w.messages,
    total_tokens = c.total_tokens + w.tokens,
    revision = c.revision + w.messages,
    updated_at = now()
FROM (
    SELECT context_id, count(*) AS messages, sum(token_count) AS tokens FROM written GROUP BY 1
) AS w
WHERE c.tenant_id = $1 AND c.id = w.context_id
"""


class Loader:
    """Makes contexts with messages, many rows a statement."""

    def __init__(self, connection: asyncpg.Connection, tenant_id: UUID) -> None:
        self._connection = connection
        self._tenant_id = tenant_id

    async def contexts(self, count: int, *, messages: int) -> list[UUID]:
        """Make contexts of so many messages each, counters and all."""
        ids = [uuid7() for _ in range(count)]
        await self._connection.execute(CREATE, self._tenant_id, ids)
        rows = min(messages, ROWS_PER_STATEMENT)
        at_once = max(1, ROWS_PER_STATEMENT // max(1, rows))
        for start in range(0, count, at_once):
            for first in range(1, messages + 1, rows):
                last = min(first + rows - 1, messages)
                some = ids[start : start + at_once]
                await self._connection.execute(FILL, self._tenant_id, some, first, last)
        return ids

    async def settle(self) -> None:
        """Do what autovacuum has done by then in a database that was filled in its own time."""
        await self._connection.execute("VACUUM (ANALYZE)")


@asynccontextmanager
async def loader(url: str, tenant_id: UUID) -> AsyncGenerator[Loader]:
    """Connect, and bring what messages say into the database once."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(LINES)
        messages = list(conversation(TURNS))
        tokenizer = get_tokenizer(Settings().tokenizer)
        size = BATCH_TURNS * MESSAGES_PER_TURN
        for start in range(0, len(messages), size):
            batch = drafts(
                messages[start : start + size],
                dimensions=1,
                embedding_model=None,
                tokenizer=lambda: tokenizer,
            )
            await connection.execute(ADD_LINES, encode(batch))
        await connection.execute("ANALYZE lines")
        yield Loader(connection, tenant_id)
    finally:
        await connection.close()
