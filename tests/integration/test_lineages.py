"""Families of contexts at their edges: deep, hidden, erased, purged, and while others wait."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    IdempotencyConflictError,
    InvalidInputError,
    MessageNotFoundError,
)
from pgcontext.limits import PURGE_ROWS_PER_STATEMENT_MAX
from tests.support.promises import assert_counters_match_views, dump, query, view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEPTH: Final = 1_000
NOW: Final = timedelta(0)


def said(*contents: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, "token_count": 2} for content in contents]


async def shown(store: ContextStore, context_id: UUID) -> str:
    """What a context shows, as the contents in a row."""
    return " ".join(message.content or "?" for message in await view(store, context_id))


async def talk(store: ContextStore, *contents: str) -> UUID:
    context = await store.create()
    await store.append(context.id, said(*contents))
    return context.id


async def test_a_lineage_of_a_thousand_is_whole_and_quick(store: ContextStore) -> None:
    """Each of a thousand forks adds a word; the last shows them all, in a bounded time."""
    context_id = await talk(store, "0")
    ids = [context_id]
    for depth in range(1, DEPTH + 1):
        context_id = (await store.fork(context_id)).id
        await store.append(context_id, said(f"{depth}"))
        ids.append(context_id)
    assert [m.content for m in await view(store, context_id)] == [str(i) for i in range(DEPTH + 1)]
    started = time.perf_counter()
    newest = await store.history(context_id, limit=50)
    assert [message.context_id for message in newest] == ids[-50:]
    first = await store.history(context_id, after=0, limit=3)
    assert [message.context_id for message in first] == ids[:3]
    window = await store.window(context_id, max_tokens=100)
    assert [message.context_id for message in window.messages] == ids[-50:]
    middle = await store.fork(context_id, at_version=DEPTH // 2)
    assert (middle.message_count, middle.latest_version) == (DEPTH // 2, DEPTH // 2)
    assert [context.id for context in await store.lineage(context_id)] == ids
    assert len(await store.forks(ids[0], recursive=True)) == DEPTH + 1
    diff = await store.diff(ids[500], context_id)
    assert (diff.ancestor_id, diff.version, diff.only_a) == (ids[500], 501, [])
    assert [message.context_id for message in diff.only_b] == ids[501:]
    assert time.perf_counter() - started < 5
    hidden = await store.delete_messages(context_id, [1, DEPTH])
    assert [message.context_id for message in hidden] == [ids[0], ids[DEPTH - 1]]
    report = await store.erase(context_id, [2])
    assert (report.messages, report.contexts) == (1, DEPTH + 1)
    last = await store.get(context_id)
    assert (last.message_count, last.total_tokens) == (DEPTH - 2, 2 * (DEPTH - 2))
    hits = await store.search("7", context_id=context_id, mode="text")
    assert [hit.message.context_id for hit in hits] == [ids[7]]
    for context_id in ids[:-1:100]:
        context, messages = await store.get(context_id), await view(store, context_id)
        assert context.message_count == len(messages) == max(context.latest_version - 1, 1)
        assert context.total_tokens == 2 * len(messages)


async def test_forks_at_zero_inherit_nothing_but_are_family(store: ContextStore) -> None:
    """A fork of a fork at 0 is empty, writes from version 1 and knows its ancestors."""
    root = await talk(store, "a", "b")
    empty = await store.fork(root, at_version=0)
    below = await store.fork(empty.id)
    assert (below.latest_version, below.fork_version, below.message_count) == (0, 0, 0)
    await store.append(below.id, said("x"))
    await store.append(empty.id, said("y"))
    assert [await shown(store, id) for id in (root, empty.id, below.id)] == ["a b", "y", "x"]
    assert [context.id for context in await store.lineage(below.id)] == [root, empty.id, below.id]
    diff = await store.diff(root, below.id)
    assert (diff.ancestor_id, diff.version) == (root, 0)
    assert (len(diff.only_a), len(diff.only_b)) == (2, 1)
    merged = await store.merge(below.id, into=empty.id, rebase=True)
    assert [(message.version, message.content) for message in merged] == [(2, "x")]
    await assert_counters_match_views(store)


async def test_a_version_is_cut_by_the_lowest_fork_on_the_way(store: ContextStore) -> None:
    """A fork of a fork below the fork's own beginning shows the grandparent's messages only."""
    root = await talk(store, "a", "b", "c", "d")
    fork = await store.fork(root, at_version=3)
    await store.append(fork.id, said("e", "f"))
    below = await store.fork(fork.id, at_version=2)
    await store.append(below.id, said("g"))
    assert await shown(store, below.id) == "a b g"
    diff = await store.diff(below.id, root)
    assert (diff.ancestor_id, diff.version) == (root, 2)
    assert [m.content for m in diff.only_a + diff.only_b] == ["g", "c", "d"]
    diff = await store.diff(below.id, fork.id)
    assert (diff.ancestor_id, diff.version) == (fork.id, 2)
    assert [m.content for m in diff.only_a + diff.only_b] == ["g", "c", "e", "f"]


async def test_what_an_ancestor_hid_before_the_fork_is_not_the_forks_to_restore(
    store: ContextStore,
) -> None:
    """It isn't in the view: neither deleting nor restoring finds it, and nothing changes."""
    root = await talk(store, "a", "b", "c")
    await store.delete_messages(root, [2])
    fork = await store.fork(root)
    for change in (store.delete_messages, store.restore_messages):
        with pytest.raises(MessageNotFoundError) as raised:
            await change(fork.id, [1, 2])
        assert 2 in raised.value.versions
    assert await store.get(fork.id) == fork
    await store.restore_messages(root, [2])
    assert (await shown(store, root), await shown(store, fork.id)) == ("a b c", "a c")
    history = await store.history(fork.id, include_deleted=True)
    assert [message.version for message in history] == [1, 3]
    late = await store.fork(root)
    assert await shown(store, late.id) == "a b c"


async def test_what_the_parent_hides_later_stays_in_the_fork(store: ContextStore) -> None:
    """And the fork may hide and restore it on its own, whatever the parent does meanwhile."""
    root = await talk(store, "a", "b", "c")
    fork = await store.fork(root)
    await store.delete_messages(root, [1, 2])
    assert await shown(store, fork.id) == "a b c"
    await store.delete_messages(fork.id, [2])
    await store.restore_messages(root, [1, 2])
    assert (await shown(store, root), await shown(store, fork.id)) == ("a b c", "a c")
    await store.restore_messages(fork.id, [2])
    await store.delete(root)
    assert await shown(store, fork.id) == "a b c"
    await store.restore(root)
    await assert_counters_match_views(store)


async def test_every_fork_keeps_the_moment_it_was_made_at(store: ContextStore) -> None:
    """Hidden and restored a hundred times over, each fork shows what was shown when it was made."""
    root = await talk(store, "a", "b", "c")
    words = {1: "a", 2: "b", 3: "c"}
    hidden: set[int] = set()
    made: list[tuple[UUID, str]] = []
    for turn in range(100):
        version = turn % 3 + 1 if turn % 7 else 2
        if version in hidden:
            await store.restore_messages(root, [version])
        else:
            await store.delete_messages(root, [version])
        hidden ^= {version}
        if turn % 2:
            fork = await store.fork(root)
            made.append((fork.id, " ".join(words[v] for v in sorted(words.keys() - hidden))))
            assert fork.message_count == 3 - len(hidden)
    for context_id, expected in made:
        assert await shown(store, context_id) == expected
    grandchild = await store.fork(made[10][0])
    assert await shown(store, grandchild.id) == made[10][1]
    await assert_counters_match_views(store)


async def test_hiding_what_is_hidden_and_restoring_what_is_shown_change_nothing(
    store: ContextStore, database_url: str
) -> None:
    """Doing it twice is a no-op: not a row differs, and a mixed call changes what is left."""
    root = await talk(store, "a", "b", "c")
    await store.delete_messages(root, [1, 2])
    before = await dump(database_url)
    await store.delete_messages(root, [2, 1, 2])
    await store.restore_messages(root, [3])
    assert await dump(database_url) == before
    await store.delete_messages(root, [2, 3])
    assert (await store.get(root)).message_count == 0
    await store.restore_messages(root, [1, 2, 3])
    assert await shown(store, root) == "a b c"


async def test_one_missing_version_stops_the_whole_call(
    store: ContextStore, database_url: str
) -> None:
    """Deleting, restoring or erasing versions of which one isn't there changes nothing."""
    root = await talk(store, "a", "b")
    await store.delete_messages(root, [1])
    before = await dump(database_url)
    for change in (store.delete_messages, store.restore_messages, store.erase):
        with pytest.raises(MessageNotFoundError):
            await change(root, [1, 2, 3])
    assert await dump(database_url) == before


async def test_erasing_an_inherited_message_reaches_everyone(
    store: ContextStore, database_url: str
) -> None:
    """At its origin, in each fork, hidden or not, searched or not; nobody can bring it back."""
    root = await talk(store, "a", "secret", "c")
    hiding = await store.fork(root)
    await store.delete_messages(hiding.id, [2])
    below = await store.fork(hiding.id)
    plain = await store.fork(root)
    early = await store.fork(root, at_version=1)
    asleep = await store.fork(root)
    await store.delete(asleep.id)
    report = await store.erase(plain.id, [2])
    assert report.messages == 1
    await store.restore(asleep.id)
    for context_id, expected in (
        (root, "a c"),
        (hiding.id, "a c"),
        (below.id, "a c"),
        (plain.id, "a c"),
        (early.id, "a"),
        (asleep.id, "a c"),
    ):
        assert await shown(store, context_id) == expected
        assert await store.search("secret", context_id=context_id, mode="text") == []
        history = await store.history(context_id, include_deleted=True)
        assert 2 not in [message.version for message in history]
        for change in (store.restore_messages, store.delete_messages):
            with pytest.raises(MessageNotFoundError):
                await change(context_id, [2])
    assert "secret" not in str(await dump(database_url))
    await assert_counters_match_views(store)
    written = await store.append(root, said("d"))
    assert written[0].version == 4


async def test_erasing_what_is_erased_changes_nothing(
    store: ContextStore, database_url: str
) -> None:
    """Whoever is not sure that an erasure went through may repeat it."""
    root = await talk(store, "a", "secret")
    await store.erase(root, [2])
    before = await dump(database_url)
    report = await store.erase(root, [2])
    assert (report.messages, report.contexts) == (0, 0)
    assert await dump(database_url) == before
    await store.erase(root)
    before = await dump(database_url)
    report = await store.erase(root)
    assert (report.messages, report.contexts) == (0, 0)
    assert await dump(database_url) == before


async def test_erasing_everything_leaves_the_forks_their_own(
    store: ContextStore, database_url: str
) -> None:
    """What the context wrote is gone from its forks; what they wrote themselves goes on."""
    root = await store.create(name="secret name", metadata={"secret": 1})
    await store.append(root.id, said("secret", "secret"))
    fork = await store.fork(root.id)
    await store.append(fork.id, said("own"))
    await store.erase(root.id)
    assert await shown(store, fork.id) == "own"
    assert (await store.get(fork.id)).latest_version == 3
    with pytest.raises(ContextNotFoundError):
        await store.get(root.id)
    left = await store.get(root.id, include_deleted=True)
    assert (left.name, left.metadata, left.message_count) == (None, {}, 0)
    assert [context.id for context in await store.lineage(fork.id)] == [root.id, fork.id]
    restored = await store.restore(root.id)
    assert (restored.message_count, await shown(store, root.id)) == (0, "")
    assert (await store.append(root.id, said("new")))[0].version == 3
    assert "secret" not in str(await dump(database_url))
    await assert_counters_match_views(store)


async def test_copies_made_by_merge_are_messages_of_their_own(store: ContextStore) -> None:
    """Erasing the original leaves the copy, and the other way round."""
    root = await talk(store, "a")
    fork = await store.fork(root)
    await store.append(fork.id, said("b", "c"))
    await store.delete_messages(fork.id, [2])
    copied = await store.merge(fork.id, into=root)
    assert [(m.version, m.content, m.context_id) for m in copied] == [(2, "c", root)]
    await store.erase(fork.id, [3])
    assert (await shown(store, root), await shown(store, fork.id)) == ("a c", "a")
    await store.restore_messages(fork.id, [2])
    await store.erase(root, [2])
    assert (await shown(store, root), await shown(store, fork.id)) == ("a", "a b")
    await assert_counters_match_views(store)


async def test_merging_does_not_bring_back_what_into_hid(store: ContextStore) -> None:
    """What both inherit is not the source's alone, though only the source shows it."""
    root = await talk(store, "a", "b")
    fork = await store.fork(root)
    await store.delete_messages(root, [1])
    diff = await store.diff(fork.id, root)
    assert (diff.version, [m.content for m in diff.only_a], diff.only_b) == (2, ["a"], [])
    assert await store.merge(fork.id, into=root) == []
    await store.append(fork.id, said("c"))
    await store.merge(fork.id, into=root)
    assert await shown(store, root) == "b c"


async def test_contexts_that_are_no_family_cannot_be_merged(store: ContextStore) -> None:
    """Unrelated contexts have no common version: nothing says what only one of them has."""
    one, two = await talk(store, "a"), await talk(store, "b")
    diff = await store.diff(one, two)
    assert (diff.ancestor_id, diff.version) == (None, 0)
    assert [m.content for m in diff.only_a + diff.only_b] == ["a", "b"]
    for rebase in (False, True):
        with pytest.raises(InvalidInputError):
            await store.merge(one, into=two, rebase=rebase)
    assert await shown(store, two) == "b"


async def test_a_context_differs_from_itself_in_nothing(store: ContextStore) -> None:
    """Also when it hides some of what it inherits, and of what it wrote."""
    fork = await store.fork(await talk(store, "a", "b"))
    await store.append(fork.id, said("c", "d"))
    await store.delete_messages(fork.id, [1, 3])
    await store.restore_messages(fork.id, [3])
    diff = await store.diff(fork.id, fork.id)
    assert (diff.ancestor_id, diff.version, diff.only_a, diff.only_b) == (fork.id, 4, [], [])
    assert await store.merge(fork.id, into=fork.id) == []


async def test_purging_a_parent_leaves_its_living_forks_whole(store: ContextStore) -> None:
    """The fork keeps its view and its lineage; what nobody sees goes; the parent may come back."""
    root = await talk(store, "a", "b", "c", "d")
    await store.delete_messages(root, [1])
    fork = await store.fork(root, at_version=3)
    below = await store.fork(fork.id, at_version=2)
    await store.delete_messages(fork.id, [3])
    await store.delete(root)
    await store.delete(fork.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (0, 3)  # a, c and d: only b is seen by anyone
    assert await shown(store, below.id) == "b"
    lineage = await store.lineage(below.id)
    assert [context.id for context in lineage] == [root, fork.id, below.id]
    for context_id in (root, fork.id):
        restored = await store.restore(context_id)
        assert (restored.message_count, restored.total_tokens) == (1, 2)
        assert await shown(store, context_id) == "b"
    assert (await store.append(root, said("e")))[0].version == 5
    await assert_counters_match_views(store)
    for context_id in (root, fork.id, below.id):
        await store.delete(context_id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (3, 2)
    assert (await store.list(include_deleted=True)).items == []


async def test_purge_waits_for_as_long_as_it_is_told(
    store: ContextStore, database_url: str
) -> None:
    """What was deleted a day ago survives a purge of what is older than a month, and is whole."""
    root = await talk(store, "a", "b", "c")
    fork = await store.fork(root)
    await store.delete_messages(root, [2])
    await store.delete(fork.id)  # a day ago: it still shows b when it is restored
    await query(
        database_url,
        "UPDATE messages SET deleted_at = now() - interval '40 days' WHERE version = 2",
    )
    await query(database_url, "UPDATE tombstones SET created_at = now() - interval '40 days'")
    await query(
        database_url,
        "UPDATE contexts SET deleted_at = now() - interval '1 day' WHERE id = $1",
        fork.id,
    )
    report = await store.purge(older_than=timedelta(days=30))
    assert (report.contexts, report.messages) == (0, 0)
    await store.restore(fork.id)
    assert await shown(store, fork.id) == "a b c"
    await store.delete(fork.id)
    await store.purge(older_than=NOW)
    assert (await store.history(root, include_deleted=True))[-1].version == 3
    with pytest.raises(MessageNotFoundError):
        await store.restore_messages(root, [2])
    await assert_counters_match_views(store)


async def test_an_expired_context_is_purged_but_its_living_fork_is_not(
    store: ContextStore,
) -> None:
    """Until then it is read like any other; what the fork inherits stays the fork's."""
    past = datetime.now(UTC) - timedelta(minutes=1)
    alone = await store.create(expires_at=past)
    await store.append(alone.id, said("x"))
    root = await store.create(expires_at=past)
    await store.append(root.id, said("a", "b"))
    fork = await store.fork(root.id, at_version=1)
    assert fork.expires_at is None
    assert await shown(store, root.id) == "a b"
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (1, 2)
    assert await shown(store, fork.id) == "a"
    assert [context.id for context in (await store.list()).items] == [fork.id]
    for context_id in (root.id, alone.id):
        with pytest.raises(ContextNotFoundError):
            await store.append(context_id, said("y"))
    await assert_counters_match_views(store)


async def test_purge_goes_on_until_everything_is_gone(store: ContextStore) -> None:
    """More contexts, and more messages of one, than a purge takes at once; one fork lives on."""
    many = await store.create()
    for _ in range(PURGE_ROWS_PER_STATEMENT_MAX // 1_000):
        await store.append(many.id, said("x") * 1_000)
    kept = await store.append(many.id, said("kept"))
    await store.delete_messages(many.id, range(1, 10_001))
    living = await store.fork(many.id)
    await store.delete(many.id)

    async def a_family_that_is_gone() -> None:
        parent = await talk(store, "a")
        fork = await store.fork(parent)
        await store.append(fork.id, said("b"))
        await store.delete(fork.id)
        await store.delete(parent)

    await asyncio.gather(*(a_family_that_is_gone() for _ in range(550)))
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (1_100, PURGE_ROWS_PER_STATEMENT_MAX + 1_100)
    assert [message.id for message in await view(store, living.id)] == [kept[0].id]
    remaining = (await store.list(include_deleted=True)).items
    assert [context.id for context in remaining] == [living.id, many.id]
    restored = await store.restore(many.id)
    assert (restored.message_count, restored.latest_version) == (1, 10_001)
    await assert_counters_match_views(store)
    again = await store.purge(older_than=NOW)
    assert (again.contexts, again.messages) == (0, 0)


@pytest.mark.parametrize("gone", ["deleted", "erased"])
async def test_a_retry_does_not_bring_back_what_was_taken_away(
    store: ContextStore, database_url: str, gone: str
) -> None:
    """The key of a batch that was hidden or erased since still writes nothing new."""
    root = await talk(store, "a")
    await store.append(root, said("secret"), idempotency_key="k")
    if gone == "deleted":
        await store.delete_messages(root, [2])
    else:
        await store.erase(root, [2])
    before = await dump(database_url)
    try:
        again = await store.append(root, said("secret"), idempotency_key="k")
    except IdempotencyConflictError:
        assert gone == "erased"
    else:
        assert [(m.version, m.replayed) for m in again] == [(2, True)]
        assert gone == "deleted" or again[0].content is None
    assert await dump(database_url) == before


@asynccontextmanager
async def a_fork_under_way(
    database_url: str, store: ContextStore, parent: UUID
) -> AsyncIterator[asyncio.Task[Any]]:
    """Hold up a fork after it has read its parent, until the block is left.

    Somebody else has made a context with the fork's id and has not committed: the fork waits for
    the outcome, which is a rollback.
    """
    new = uuid4()
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("BEGIN")
        await other.execute("INSERT INTO contexts (id) VALUES ($1)", new)
        fork = asyncio.create_task(store.fork(parent, id=new))
        await waiting(database_url, 1)
        yield fork
        await other.execute("ROLLBACK")
    finally:
        await other.close()


async def waiting(database_url: str, backends: int) -> None:
    """Wait until so many backends wait for a lock, at most a second."""
    for _ in range(100):
        rows = await query(
            database_url,
            "SELECT FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        if len(rows) >= backends:
            return
        await asyncio.sleep(0.01)


async def test_an_erasure_reaches_a_fork_that_is_under_way(
    store: ContextStore, database_url: str
) -> None:
    """A fork of a fork that has read its parent but is not there yet does not keep the secret."""
    root = await talk(store, "a", "secret")
    fork = await store.fork(root)
    async with a_fork_under_way(database_url, store, fork.id) as under_way:
        erasure = asyncio.create_task(store.erase(root, [2]))
        await waiting(database_url, 2)
    made = await under_way
    await erasure
    assert await shown(store, made.id) == "a"
    await assert_counters_match_views(store)


async def test_an_erasure_reaches_forks_made_while_it_waited(
    store: ContextStore, database_url: str
) -> None:
    """Forks of forks that appear while the erasure waits for its locks are found too."""
    root = await talk(store, "a", "secret")
    one = await store.fork(root)
    blocker = await asyncpg.connect(database_url)
    await blocker.execute("BEGIN")
    # As an append would hold it: forks go on beside it, an erasure waits.
    await blocker.execute("SELECT FROM contexts WHERE id = $1 FOR NO KEY UPDATE", one.id)
    erasure = asyncio.create_task(store.erase(root, [2]))
    await waiting(database_url, 1)
    two = await store.fork(one.id)
    async with a_fork_under_way(database_url, store, two.id) as under_way:
        await blocker.execute("COMMIT")
        await waiting(database_url, 2)
    made = await under_way
    await erasure
    await blocker.close()
    for context_id in (root, one.id, two.id, made.id):
        assert await shown(store, context_id) == "a"
    await assert_counters_match_views(store)


async def test_a_purge_spares_what_a_fork_under_way_has_seen(
    store: ContextStore, database_url: str
) -> None:
    """The parent is deleted and purged while the fork is being made: the fork is whole."""
    root = await talk(store, "a", "b")
    async with a_fork_under_way(database_url, store, root) as under_way:
        await store.delete(root)
        purge = asyncio.create_task(store.purge(older_than=NOW))
        await waiting(database_url, 2)
    made = await under_way
    await purge
    assert await shown(store, made.id) == "a b"
    await assert_counters_match_views(store)


async def test_a_purge_of_hidden_messages_spares_what_a_fork_under_way_has_seen(
    store: ContextStore, database_url: str
) -> None:
    """A message hidden and purged while a fork is being made that still shows it: it stays."""
    root = await talk(store, "a", "b")
    async with a_fork_under_way(database_url, store, root) as under_way:
        await store.delete_messages(root, [2])
        purge = asyncio.create_task(store.purge(older_than=NOW))
        await waiting(database_url, 2)
    made = await under_way
    await purge
    assert await shown(store, made.id) == "a b"
    await assert_counters_match_views(store)
