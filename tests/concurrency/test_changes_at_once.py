"""Forks, deletes, erasures and purges that race with appends and with each other."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgcontext import (
    Context,
    ContextNotFoundError,
    ContextStore,
    ContextStoreError,
    MessageNotFoundError,
)
from tests.support.promises import (
    assert_counters_match_views,
    assert_versions_are_gapless,
    dump,
    query,
    view,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from pgcontext import Message

STORES = 6


def said(content: str, tokens: int = 1) -> dict[str, Any]:
    return {"role": "user", "content": content, "token_count": tokens}


async def several_stores(stack: AsyncExitStack, database_url: str) -> list[ContextStore]:
    return [await stack.enter_async_context(ContextStore(database_url)) for _ in range(STORES)]


async def tolerate(call: Awaitable[Any], *kinds: type[ContextStoreError]) -> Any:
    """Wait for a call that may also lose its race in one of the ways named."""
    try:
        return await call
    except kinds:
        return None


def unseen(messages: list[Message]) -> list[Any]:
    """What of a view must never change."""
    return [(m.id, m.version, m.context_id, m.content, m.token_count) for m in messages]


async def test_forks_and_deletes_racing_with_appends_keep_every_counter(database_url: str) -> None:
    """Whatever interleaves, each fork stays as it was made and every counter tells the truth."""
    async with AsyncExitStack() as stack:
        stores = await several_stores(stack, database_url)
        trunk = await stores[0].create()
        await stores[0].append(trunk.id, [said(f"start {i}", i) for i in range(10)])
        forks: list[tuple[Context, list[Message]]] = []

        async def append(store: ContextStore, chance: random.Random) -> None:
            for i in range(15):
                await store.append(trunk.id, [said(f"{i}", chance.randint(0, 9))] * 2)

        async def fork(store: ContextStore, chance: random.Random) -> None:
            for _ in range(10):
                at = chance.choice([None, chance.randint(0, 10)])
                made = await store.fork(trunk.id, at_version=at)
                forks.append((made, await view(store, made.id)))
                assert made.latest_version == made.fork_version
                assert at is None or at == made.fork_version

        async def hide(store: ContextStore, chance: random.Random) -> None:
            for _ in range(15):
                versions = chance.sample(range(1, 11), 3)
                await store.delete_messages(trunk.id, versions)
                await store.restore_messages(trunk.id, chance.sample(range(1, 11), 3))

        await asyncio.gather(
            *(
                what(store, random.Random(seed))
                for seed, (what, store) in enumerate(
                    zip((append, append, fork, fork, hide, hide), stores, strict=True)
                )
            )
        )
        await assert_counters_match_views(stores[0])
        for made, before in forks:
            assert unseen(await view(stores[0], made.id)) == unseen(before)
            assert made.message_count == len(before)
            assert made.total_tokens == sum(message.token_count for message in before)
        after = await stores[0].get(trunk.id)
        assert after.latest_version == 10 + 2 * 15 * 2
        await assert_versions_are_gapless(database_url, after)


async def test_hiding_and_restoring_the_same_messages_at_once_counts_them_once(
    database_url: str,
) -> None:
    """Many callers hide the same versions at once, then restore them: each counts once."""
    async with AsyncExitStack() as stack:
        stores = await several_stores(stack, database_url)
        trunk = await stores[0].create()
        await stores[0].append(trunk.id, [said(f"{i}", i) for i in range(1, 7)])
        fork = await stores[0].fork(trunk.id)
        for context in (trunk, fork):
            await asyncio.gather(*(s.delete_messages(context.id, [2, 3, 4]) for s in stores))
            hidden = await stores[0].get(context.id)
            assert (hidden.message_count, hidden.total_tokens) == (3, 1 + 5 + 6)
            await asyncio.gather(*(s.restore_messages(context.id, [3, 4]) for s in stores))
            restored = await stores[0].get(context.id)
            assert (restored.message_count, restored.total_tokens) == (5, 1 + 3 + 4 + 5 + 6)
            await asyncio.gather(
                *(
                    getattr(store, name)(context.id, [1, 5, 6])
                    for store in stores
                    for name in ("delete_messages", "restore_messages")
                )
            )
        await assert_counters_match_views(stores[0])


async def test_erase_racing_with_appends_and_forks_leaves_no_trace(database_url: str) -> None:
    """What is erased while others append, fork and hide is gone from every view and every row."""
    async with AsyncExitStack() as stack:
        stores = await several_stores(stack, database_url)
        trunk = await stores[0].create()
        secrets = [said(f"secret-{i}", 5) for i in range(6)]
        await stores[0].append(trunk.id, [said("hello"), *secrets, said("bye")])
        early = await stores[0].fork(trunk.id)

        async def append(store: ContextStore) -> None:
            for i in range(12):
                await store.append(trunk.id, said(f"later {i}"))
                await store.append(early.id, said(f"aside {i}"))

        async def fork(store: ContextStore) -> None:
            for _ in range(8):
                made = await store.fork(trunk.id)
                await store.append(made.id, said("in the fork"))
                await store.fork(early.id, at_version=7)

        async def hide(store: ContextStore) -> None:
            for version in (2, 4, 6, 7, 5):
                lost = MessageNotFoundError
                await tolerate(store.delete_messages(trunk.id, [version]), lost)
                await tolerate(store.delete_messages(early.id, [version]), lost)
                await tolerate(store.restore_messages(early.id, [version]), lost)

        async def erase(store: ContextStore) -> None:
            await store.erase(trunk.id, [2, 3])
            await store.erase(early.id, [4])  # inherited: erased at its origin
            await store.erase(trunk.id, [5, 6, 7])

        await asyncio.gather(
            append(stores[0]), fork(stores[1]), fork(stores[2]), hide(stores[3]), erase(stores[4])
        )
        assert "secret" not in str(await dump(database_url))
        await assert_counters_match_views(stores[0])
        versions = [message.version for message in await view(stores[0], early.id)]
        assert versions == [1, 8, *range(9, 21)]
        await assert_versions_are_gapless(database_url, await stores[0].get(trunk.id))


async def test_erasing_a_whole_context_racing_with_its_forks(database_url: str) -> None:
    """A context erased while it is appended to and forked leaves nothing of itself anywhere."""
    async with AsyncExitStack() as stack:
        stores = await several_stores(stack, database_url)
        for _ in range(5):
            trunk = await stores[0].create(name="secret name", metadata={"secret": True})
            await stores[0].append(trunk.id, [said(f"secret {i}", 3) for i in range(4)])
            gone = ContextNotFoundError
            await asyncio.gather(
                stores[0].erase(trunk.id),
                *(tolerate(store.append(trunk.id, said("secret")), gone) for store in stores),
                *(tolerate(store.fork(trunk.id), gone) for store in stores),
            )
            await assert_counters_match_views(stores[0])
            rows = await query(
                database_url,
                "SELECT content FROM messages WHERE context_id = $1 AND content IS NOT NULL",
                trunk.id,
            )
            assert rows == []
        assert "secret" not in str(await dump(database_url))


async def racing_rounds(
    database_url: str, rounds: int, race: Callable[[list[ContextStore], UUID], Awaitable[Any]]
) -> AsyncIterator[tuple[ContextStore, UUID, Any]]:
    """Make a context with hidden and shown messages and let calls race about it, round by round."""
    async with AsyncExitStack() as stack:
        stores = await several_stores(stack, database_url)
        for _ in range(rounds):
            parent = await stores[0].create()
            await stores[0].append(parent.id, [said(f"{i}", i) for i in range(1, 9)])
            await stores[0].delete_messages(parent.id, [2, 5])
            yield stores[0], parent.id, await race(stores, parent.id)
            await assert_counters_match_views(stores[0])
        assert await stores[0].purge(older_than=timedelta(0)) is not None
        await assert_counters_match_views(stores[0])


async def test_purge_racing_with_forks_never_takes_what_a_fork_sees(database_url: str) -> None:
    """A fork that succeeds keeps its view for ever, though its parent is deleted and purged."""

    async def race(stores: list[ContextStore], parent: UUID) -> Any:
        gone = ContextNotFoundError
        return await asyncio.gather(
            stores[0].delete(parent),
            stores[1].purge(older_than=timedelta(0)),
            tolerate(stores[2].fork(parent), gone),
            tolerate(stores[3].fork(parent, at_version=4), gone),
            tolerate(stores[4].restore(parent), gone),
            stores[5].purge(older_than=timedelta(0)),
        )

    made = 0
    async for store, _, results in racing_rounds(database_url, 15, race):
        for fork, versions in zip(results[2:4], ([1, 3, 4, 6, 7, 8], [1, 3, 4]), strict=True):
            if fork is not None:
                made += 1
                await store.purge(older_than=timedelta(0))
                messages = await view(store, fork.id)
                assert [message.content for message in messages] == [
                    str(m.version) for m in messages
                ]
                # All of it, or nothing: of a parent that was purged and restored before it.
                assert [m.version for m in messages] == versions[: fork.message_count]
                assert fork.message_count in {len(versions), 0}
                assert fork.id == (await store.lineage(fork.id))[-1].id
    assert made


async def test_purge_racing_with_restored_messages_is_all_or_nothing(database_url: str) -> None:
    """A hidden message is either restored or purged, and what was restored stays."""

    async def race(stores: list[ContextStore], parent: UUID) -> Any:
        return await asyncio.gather(
            stores[0].purge(older_than=timedelta(0)),
            tolerate(stores[1].restore_messages(parent, [2]), MessageNotFoundError),
            tolerate(stores[2].restore_messages(parent, [5]), MessageNotFoundError),
            stores[3].append(parent, said("more")),
            stores[4].fork(parent),
        )

    async for store, parent, results in racing_rounds(database_url, 15, race):
        shown = {message.version for message in await view(store, parent)}
        assert {1, 3, 4, 6, 7, 8, 9} <= shown
        assert (results[1] is not None) == (2 in shown)
        assert (results[2] is not None) == (5 in shown)
        fork = {message.version for message in await view(store, results[4].id)}
        assert fork - {9} <= shown


async def test_deleting_racing_with_everything_else_ends_in_one_state(database_url: str) -> None:
    """A context that is deleted meanwhile either takes a change whole or is not found."""

    async def race(stores: list[ContextStore], parent: UUID) -> Any:
        gone = ContextNotFoundError
        return await asyncio.gather(
            stores[0].delete(parent),
            tolerate(stores[1].append(parent, [said("a"), said("b")]), gone),
            tolerate(stores[2].delete_messages(parent, [1]), gone),
            tolerate(stores[3].update(parent, name="renamed"), gone),
            tolerate(stores[4].merge(parent, into=parent), gone),
        )

    async for store, parent, results in racing_rounds(database_url, 12, race):
        restored = await store.restore(parent)
        versions = [message.version for message in await view(store, parent)]
        assert restored.message_count == len(versions)
        assert (results[1] is not None) == (versions[-2:] == [9, 10])
        assert (results[2] is not None) == (1 not in versions)
        assert (results[3] is not None) == (restored.name == "renamed")
