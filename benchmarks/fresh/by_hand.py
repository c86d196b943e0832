"""Writes one message and reads fifty, with asyncpg alone: `by_hand.py CONTEXT VERSION SQL SQL`.

The statements are arguments so that nothing of pgcontext has to be imported for them.
"""

import asyncio
import os
import sys
from uuid import UUID, uuid4

import asyncpg

TENANT_ID = UUID(int=0)
MESSAGES_READ = 50


async def main(context_id: UUID, version: int, insert: str, select: str) -> None:
    """Connect, write, read, close."""
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute(
        insert, TENANT_ID, uuid4(), context_id, version, "user", "Where is my order?", 5
    )
    read = await connection.fetch(select, TENANT_ID, context_id, MESSAGES_READ)
    await connection.close()
    assert len(read) == MESSAGES_READ


asyncio.run(main(UUID(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
