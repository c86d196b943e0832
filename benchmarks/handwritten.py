"""What somebody would write without the store: asyncpg, and one statement for the one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from pgcontext import limits
from pgcontext.ids import uuid7

if TYPE_CHECKING:
    from uuid import UUID

INSERT: Final = """
INSERT INTO messages (tenant_id, id, context_id, version, role, content, token_count)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
SELECT: Final = """
SELECT id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count,
       model, payload, idempotency_key, embedding_model, embed_after, deleted_at
FROM messages
WHERE tenant_id = $1 AND context_id = $2
ORDER BY version DESC
LIMIT $3
"""


class Handwritten:
    """Knows the next version by itself, and nothing of forks, hidden messages or other writers."""

    def __init__(self, driver: asyncpg.Pool | asyncpg.Connection, tenant_id: UUID) -> None:
        self._driver = driver
        self._tenant_id = tenant_id

    @classmethod
    async def over_a_pool(cls, url: str, tenant_id: UUID) -> Handwritten:
        """Use asyncpg's pool: as many connections as the store, no reset, the same timeout."""
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=limits.POOL_CONNECTIONS_MAX,
            command_timeout=limits.STATEMENT_SECONDS_MAX,
            reset=_leave_as_it_is,
        )
        return cls(pool, tenant_id)

    @classmethod
    async def over_a_connection(cls, url: str, tenant_id: UUID) -> Handwritten:
        """Use one connection, which only one caller at a time can do."""
        connection = await asyncpg.connect(url, command_timeout=limits.STATEMENT_SECONDS_MAX)
        return cls(connection, tenant_id)

    async def aclose(self) -> None:
        """Close what was opened."""
        await self._driver.close()

    async def insert(
        self, context_id: UUID, version: int, role: str, content: str, tokens: int
    ) -> None:
        """Write one message."""
        await self._driver.execute(
            INSERT, self._tenant_id, uuid7(), context_id, version, role, content, tokens
        )

    async def select(self, context_id: UUID, limit: int) -> list[asyncpg.Record]:
        """Read the newest messages, oldest first, as the driver's own records."""
        newest = await self._driver.fetch(SELECT, self._tenant_id, context_id, limit)
        newest.reverse()
        return newest


async def _leave_as_it_is(_connection: object) -> None: ...
