"""Many writers and readers of one context, each with a pool of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgcontext import (
    ContextStore,
    ContextStoreError,
    IdempotencyConflictError,
    VersionConflictError,
)
from tests.support.promises import (
    assert_counters_match_views,
    assert_versions_are_gapless,
    query,
    view,
)

if TYPE_CHECKING:
    from uuid import UUID

    from pgcontext import Message

WRITERS: Final = 8
BATCHES: Final = 8
WRITER: Final = Path(__file__).parents[1] / "support" / "writer.py"


def batch_of(name: str, number: int) -> list[dict[str, Any]]:
    """Two or three messages that say which batch they are of, and where in it."""
    size = 2 + number % 2
    return [
        {"role": "user", "content": f"{name}/{number}/{i}/{size}", "token_count": i + 1}
        for i in range(size)
    ]


def assert_batches_are_unbroken(messages: list[Message]) -> None:
    """Batches are whole and in one piece, and those of one writer in the order it wrote them."""
    contents = [(message.content or "").split("/") for message in messages]
    last: dict[str, int] = {}
    place = 0
    while place < len(contents):
        name, number, _, size = contents[place]
        batch = contents[place : place + int(size)]
        assert batch == [[name, number, str(i), size] for i in range(int(size))]
        assert last.get(name, -1) < int(number)
        last[name] = int(number)
        place += int(size)


async def read_until(
    done: asyncio.Event,
    store: ContextStore,
    context_id: UUID,
    *,
    paged: bool,
    begun: asyncio.Event | None = None,
) -> int:
    """Read again and again: what an earlier read has shown is how every later one begins."""
    reads = 0
    earlier: list[Message] = []
    while not done.is_set() or not reads:
        if paged:
            pages = store.iter_history(context_id, page_size=7)
            later = [message async for message in pages]
        else:
            later = await store.history(context_id, limit=1_000)
        assert later[: len(earlier)] == earlier
        assert [message.version for message in later] == list(range(1, len(later) + 1))
        if not paged:  # pages are read one after the other: the last batch may be under way
            assert_batches_are_unbroken(later)
        earlier = later
        reads += 1
        if begun is not None:
            begun.set()
    return reads


async def test_writers_never_interleave_and_readers_never_look_back(database_url: str) -> None:
    """Versions are 1..n without a gap, batches whole, every read a prefix of the later one."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(ContextStore(database_url)) for _ in range(WRITERS + 3)
        ]
        *writers, reader, pager, last = stores
        context = await last.create()
        done, begun, paged_begun = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def write(store: ContextStore, name: str) -> None:
            for number in range(BATCHES):
                if number == BATCHES // 2:  # so that each reader reads before and after
                    await begun.wait()
                    await paged_begun.wait()
                batch = batch_of(name, number)
                written = await store.append(context.id, batch)
                first = written[0].version
                assert [m.version for m in written] == list(range(first, first + len(batch)))
                assert [m.as_dict()["content"] for m in written] == [m["content"] for m in batch]

        async def write_all() -> None:
            try:
                await asyncio.gather(*(write(store, f"w{i}") for i, store in enumerate(writers)))
            finally:
                done.set()

        _, reads, paged_reads = await asyncio.gather(
            write_all(),
            read_until(done, reader, context.id, paged=False, begun=begun),
            read_until(done, pager, context.id, paged=True, begun=paged_begun),
        )
        assert min(reads, paged_reads) > 1
        messages = await view(last, context.id)
        total = WRITERS * sum(2 + number % 2 for number in range(BATCHES))
        assert [message.version for message in messages] == list(range(1, total + 1))
        assert_batches_are_unbroken(messages)
        await assert_counters_match_views(last)
        after = await last.get(context.id)
        assert (after.latest_version, after.message_count) == (total, total)
        await assert_versions_are_gapless(database_url, after)


async def test_processes_write_to_one_context(database_url: str, store: ContextStore) -> None:
    """Processes share nothing but the database, and still nothing is lost, split or doubled."""
    context = await store.create()
    env = os.environ | {"DATABASE_URL": database_url}

    async def process(name: str) -> list[tuple[int, str]]:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, str(WRITER), str(context.id), name, "12"),
            env=env,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await started.communicate()
        assert started.returncode == 0
        return [tuple(message) for line in out.splitlines() for message in json.loads(line)]

    done = asyncio.Event()

    async def processes() -> list[list[tuple[int, str]]]:
        try:
            return await asyncio.gather(*(process(f"p{i}") for i in range(3)))
        finally:
            done.set()

    acknowledged, _ = await asyncio.gather(
        processes(), read_until(done, store, context.id, paged=False)
    )
    messages = await view(store, context.id)
    assert_batches_are_unbroken(messages)
    everything = sorted(message for one in acknowledged for message in one)
    assert [(message.version, message.content) for message in messages] == everything
    await assert_counters_match_views(store)
    await assert_versions_are_gapless(database_url, await store.get(context.id))


async def test_one_idempotency_key_writes_once(database_url: str) -> None:
    """16 callers with one key: one batch is written, and all of them get it."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(ContextStore(database_url)) for _ in range(6)]
        context = await stores[0].create()
        batch = batch_of("once", 1)
        noise = [stores[i % 6].append(context.id, batch_of(f"noise{i}", 0)) for i in range(6)]
        calls = [
            stores[i % 6].append(context.id, batch, idempotency_key="the key") for i in range(16)
        ]
        results = (await asyncio.gather(*noise, *calls))[6:]
        ids = {tuple((m.id, m.version, m.content) for m in result) for result in results}
        assert len(ids) == 1
        written = [result for result in results if not any(m.replayed for m in result)]
        assert len(written) == 1
        assert sum(all(m.replayed for m in result) for result in results) == 15
        rows = await query(
            database_url,
            "SELECT id FROM messages WHERE context_id = $1 AND idempotency_key = 'the key'",
            context.id,
        )
        assert {row["id"] for row in rows} == {m.id for m in results[0]}
        assert_batches_are_unbroken(await view(stores[0], context.id))
        await assert_counters_match_views(stores[0])
        await assert_versions_are_gapless(database_url, await stores[0].get(context.id))


async def test_one_idempotency_key_for_different_messages_has_one_winner(
    database_url: str,
) -> None:
    """Callers who use one key for different messages: one writes, the others get a conflict."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(ContextStore(database_url)) for _ in range(4)]
        context = await stores[0].create()
        calls = [
            stores[i % 4].append(context.id, batch_of(f"w{i}", i), idempotency_key="k")
            for i in range(12)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        written = [result for result in results if not isinstance(result, BaseException)]
        refused = [result for result in results if isinstance(result, BaseException)]
        assert len(written) == 1
        assert {type(error) for error in refused} == {IdempotencyConflictError}
        assert await view(stores[0], context.id) == written[0]
        await assert_counters_match_views(stores[0])


async def test_compare_and_set_has_one_winner_and_tells_the_truth(database_url: str) -> None:
    """Of N callers who expect one version exactly one wins; the others learn the true one."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(ContextStore(database_url)) for _ in range(4)]
        context = await stores[0].create()
        expected = 0
        for turn in range(5):
            calls = [
                stores[i % 4].append(
                    context.id, batch_of(f"t{turn}w{i}", i), expected_version=expected
                )
                for i in range(10)
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
            won = [result for result in results if isinstance(result, list)]
            lost = [result for result in results if isinstance(result, VersionConflictError)]
            assert (len(won), len(lost)) == (1, 9)
            actual = won[0][-1].version
            assert {(error.expected, error.actual) for error in lost} == {(expected, actual)}
            expected = actual
        assert (await stores[0].get(context.id)).latest_version == expected
        await assert_counters_match_views(stores[0])


async def test_two_merges_at_once_have_one_winner(database_url: str) -> None:
    """Without rebase one of two merges finds that the other was first; with it both come whole."""
    async with ContextStore(database_url) as one, ContextStore(database_url) as two:
        for rebase in (False, True):
            trunk = await one.create()
            await one.append(trunk.id, batch_of("trunk", 0))
            forks = [await one.fork(trunk.id) for _ in range(2)]
            for i, fork in enumerate(forks):
                await one.append(fork.id, batch_of(f"fork{i}", 1))
            results = await asyncio.gather(
                one.merge(forks[0].id, into=trunk.id, rebase=rebase),
                two.merge(forks[1].id, into=trunk.id, rebase=rebase),
                return_exceptions=True,
            )
            merged = [result for result in results if isinstance(result, list)]
            lost = [result for result in results if isinstance(result, VersionConflictError)]
            assert (len(merged), len(lost)) == ((2, 0) if rebase else (1, 1))
            assert [(e.expected, e.actual) for e in lost] == ([] if rebase else [(2, 5)])
            messages = await view(one, trunk.id)
            assert len(messages) == 2 + 3 * len(merged)
            assert_batches_are_unbroken(messages)
        await assert_counters_match_views(one)


async def test_merges_in_both_directions_at_once_do_not_deadlock(database_url: str) -> None:
    """Two contexts that merge each other again and again go on, whoever is first."""
    async with ContextStore(database_url) as one, ContextStore(database_url) as two:
        trunk = await one.create()
        await one.append(trunk.id, batch_of("trunk", 0))
        fork = await one.fork(trunk.id)
        for turn in range(4):
            await one.append(trunk.id, batch_of(f"a{turn}", 0)[:1])
            await two.append(fork.id, batch_of(f"b{turn}", 0)[:1])
            before = len(await view(one, trunk.id)), len(await view(one, fork.id))
            own = before[0] - 2, before[1] - 2
            merged = await asyncio.gather(
                one.merge(fork.id, into=trunk.id, rebase=True),
                two.merge(trunk.id, into=fork.id, rebase=True),
            )
            # Each sees the other as it was before, or as it is after, but never half of it.
            assert len(merged[0]) in {own[1], own[1] + own[0]}
            assert len(merged[1]) in {own[0], own[0] + own[1]}
            await assert_counters_match_views(one)


async def test_one_id_is_created_once(database_url: str) -> None:
    """Callers who create or fork with one id at once: one context, whole, or a clear refusal."""
    async with ContextStore(database_url) as one, ContextStore(database_url) as two:
        parent = await one.create()
        await one.append(parent.id, batch_of("parent", 0))
        new = (await one.create()).id
        results = await asyncio.gather(
            *(store.create(name=f"{i}", id=new) for i, store in enumerate((one, two))),
            *(store.fork(parent.id, id=new) for store in (one, two)),
            return_exceptions=True,
        )
        assert all(isinstance(result, ContextStoreError) for result in results)
        assert (await one.get(new)).message_count == 0
        await assert_counters_match_views(one)
