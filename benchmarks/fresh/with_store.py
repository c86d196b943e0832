"""Writes one message and reads fifty with the store: `with_store.py CONTEXT`."""

import asyncio
import sys

from pgcontext import ContextStore

MESSAGE = {"role": "user", "content": "Where is my order?", "token_count": 5}
MESSAGES_READ = 50


async def main(context_id: str) -> None:
    """Connect, write, read, close."""
    async with ContextStore.from_env() as store:
        await store.append(context_id, MESSAGE)
        read = await store.history(context_id, limit=MESSAGES_READ)
    assert len(read) == MESSAGES_READ


asyncio.run(main(sys.argv[1]))
