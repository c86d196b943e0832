from __future__ import annotations

from typing import Final

from tests.support.modules import HEAVY, loaded_by

# What a function does with a store between its first and its last line.
REQUEST: Final = """
import asyncio
from pgcontext import ContextStore

async def request():
    async with ContextStore.from_env() as store:
        context = await store.create(name="a request", metadata={"channel": "web"})
        for role, content in (("system", "Be brief."), ("user", "Where is my order?")):
            await store.append(context.id, {"role": role, "content": content, TOKENS})
        fork = await store.fork(context.id, at_version=1)
        await store.history(fork.id)
        await store.window(context.id, max_tokens=100)
        await store.search("order", mode="text")
        await store.delete_messages(context.id, [2])
        await store.list()
        return await store.history(context.id)

assert len(asyncio.run(request())) == 1
"""


def test_a_request_loads_nothing_heavy(database_url: str) -> None:
    """A request that knows its token counts runs on asyncpg and msgspec alone."""
    code = REQUEST.replace("TOKENS", '"token_count": 3')
    assert not loaded_by(code, DATABASE_URL=database_url) & HEAVY


def test_counting_tokens_loads_tiktoken_alone(database_url: str) -> None:
    """A request that leaves the counting to the store loads the tokenizer, and nothing else."""
    code = REQUEST.replace("TOKENS", "")
    assert loaded_by(code, DATABASE_URL=database_url) & HEAVY == {"tiktoken"}
