"""Callers who give up in the middle of a call: the store and the database stay whole."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.support.promises import assert_counters_match_views, assert_versions_are_gapless, view

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pgcontext import ContextStore


async def give_up_after(seconds: float, call: Awaitable[Any]) -> bool:
    """Tell whether the call was done before its caller lost patience."""
    try:
        async with asyncio.timeout(seconds):
            await call
    except TimeoutError:
        return False
    return True


def batch_of(name: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{name}/{i}", "token_count": 1} for i in range(3)]


async def test_calls_that_are_given_up_happen_wholly_or_not_at_all(
    store: ContextStore, database_url: str
) -> None:
    """Whenever their callers leave: batches are whole, counters right, and the pool goes on."""
    chance = random.Random(7)
    context = await store.create()
    fork = await store.fork(context.id)

    async def call(number: int) -> bool:
        batch = batch_of(f"{number}")
        calls: list[Awaitable[Any]] = [
            store.append(context.id, batch),
            store.merge(context.id, into=fork.id, rebase=True),
            store.history(context.id, limit=1_000),
        ]
        which = number % 8 if number % 8 < len(calls) else 0
        for other in calls[:which] + calls[which + 1 :]:
            other.close()  # type: ignore[attr-defined]
        return await give_up_after(chance.uniform(0, 0.05), calls[which])

    done = [await asyncio.gather(*(call(10 * i + j) for j in range(10))) for i in range(25)]
    assert not all(all(group) for group in done)
    await asyncio.gather(*(store.append(context.id, batch_of(f"last {i}")) for i in range(9)))
    contents = [(message.content or "").split("/") for message in await view(store, context.id)]
    assert len(contents) % 3 == 0
    for place in range(0, len(contents), 3):
        number = contents[place][0]
        assert contents[place : place + 3] == [[number, str(i)] for i in range(3)]
    assert len({number for number, _ in contents}) * 3 == len(contents)
    await assert_counters_match_views(store)
    for context_id in (context.id, fork.id):
        await assert_versions_are_gapless(database_url, await store.get(context_id))
