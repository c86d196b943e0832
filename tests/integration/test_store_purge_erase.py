from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    limits,
)
from tests.support.chats import axis, contents, offline, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")
NOW = timedelta(0)
PAST = datetime.now(UTC) - timedelta(days=2)


async def rows(connection: Any) -> tuple[int, int, int]:
    """Count what is really there: contexts, messages and tombstones."""
    counted = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM contexts), (SELECT count(*) FROM messages),"
        " (SELECT count(*) FROM tombstones)"
    )
    return tuple(counted)


# ---------------------------------------------------------------------------------------------
# purge


async def test_purge_of_nothing_removes_nothing(store: ContextStore) -> None:
    """Live contexts and messages stay."""
    context = await store.create()
    await store.append(context.id, users(3))
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (0, 0)
    assert versions(await store.history(context.id)) == [1, 2, 3]


async def test_purge_removes_a_deleted_context_for_good(
    store: ContextStore, connection: Any
) -> None:
    """Rows, messages and tombstones go; restore doesn't find it."""
    context, other = await store.create(), await store.create()
    await store.append(context.id, users(3))
    await store.append(other.id, users(2))
    await store.delete_messages(context.id, [2])
    await store.delete(context.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (1, 3)
    with pytest.raises(ContextNotFoundError):
        await store.restore(context.id)
    assert await rows(connection) == (1, 2, 0)


async def test_purge_waits_as_long_as_it_is_told(store: ContextStore) -> None:
    """What was deleted more recently stays and can be restored."""
    context = await store.create()
    await store.append(context.id, users(2))
    await store.delete_messages(context.id, [1])
    await store.delete(context.id)
    report = await store.purge(older_than=timedelta(hours=1))
    assert (report.contexts, report.messages) == (0, 0)
    await store.restore(context.id)
    await store.restore_messages(context.id, [1])
    assert versions(await store.history(context.id)) == [1, 2]


async def test_purge_removes_hidden_messages_of_a_live_context(
    store: ContextStore, connection: Any
) -> None:
    """The version stays taken, the counters stay right, restore doesn't find it."""
    context = await store.create()
    await store.append(context.id, users(3))
    await store.delete_messages(context.id, [1, 3])
    before = await store.get(context.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (0, 2)
    after = await store.get(context.id)
    assert (after.message_count, after.latest_version) == (before.message_count, 3)
    assert (await rows(connection))[1] == 1
    for version in (1, 3):
        with pytest.raises(MessageNotFoundError):
            await store.restore_messages(context.id, [version])
    (message,) = await store.append(context.id, user())
    assert message.version == 4
    assert versions(await store.history(context.id, include_deleted=True)) == [2, 4]


async def test_purge_leaves_what_a_live_fork_can_see(store: ContextStore) -> None:
    """Of a deleted parent, and of a message that only the parent hid."""
    root = await store.create()
    await store.append(root.id, users(4))
    fork = await store.fork(root.id, at_version=3)
    await store.append(fork.id, user("mine"))
    before = await store.history(fork.id)
    await store.delete_messages(root.id, [1])
    await store.purge(older_than=NOW)
    assert await store.history(fork.id) == before
    await store.delete(root.id)
    await store.purge(older_than=NOW)
    assert await store.history(fork.id) == before
    assert (await store.get(fork.id)).message_count == 4
    assert [context.id for context in await store.lineage(fork.id)][-1] == fork.id
    await store.delete(fork.id)
    await store.purge(older_than=NOW)
    with pytest.raises(ContextNotFoundError):
        await store.restore(fork.id)
    with pytest.raises(ContextNotFoundError):
        await store.restore(root.id)


async def test_a_parent_restored_after_a_purge_counts_what_is_left(store: ContextStore) -> None:
    """Purge took what no live fork shows; the counters say so."""
    root = await store.create()
    await store.append(root.id, [user(token_count=count) for count in (1, 2, 4)])
    fork = await store.fork(root.id, at_version=2)
    await store.delete(root.id)
    assert (await store.purge(older_than=NOW)).messages == 1
    restored = await store.restore(root.id)
    assert versions(await store.history(root.id)) == [1, 2]
    assert (restored.message_count, restored.total_tokens, restored.latest_version) == (2, 3, 3)
    assert (await store.get(fork.id)).message_count == 2


async def test_purge_removes_a_whole_deleted_family(store: ContextStore, connection: Any) -> None:
    """Forks and their parents go in one call, whatever the order of deletion."""
    root = await store.create()
    await store.append(root.id, users(2))
    middle = await store.fork(root.id)
    leaf = await store.fork(middle.id)
    await store.append(leaf.id, users(1))
    for context in (middle, root, leaf):
        await store.delete(context.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (3, 3)
    assert await rows(connection) == (0, 0, 0)


async def test_purge_removes_what_expired(store: ContextStore) -> None:
    """An expired context is readable until then, and older_than counts from its expiry."""
    expired = await store.create(expires_at=PAST)
    await store.append(expired.id, users(2))
    future = await store.create(expires_at=datetime.now(UTC) + timedelta(days=1))
    assert len(await store.history(expired.id)) == 2
    assert (await store.purge(older_than=timedelta(days=3))).contexts == 0
    report = await store.purge(older_than=timedelta(days=1))
    assert (report.contexts, report.messages) == (1, 2)
    with pytest.raises(ContextNotFoundError):
        await store.get(expired.id, include_deleted=True)
    assert (await store.get(future.id)).id == future.id


async def test_an_expired_fork_keeps_nothing_alive(store: ContextStore, connection: Any) -> None:
    """Up for removal itself, it doesn't hold what its deleted parent wrote."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id)
    await store.delete_messages(root.id, [1])
    await store.update(fork.id, expires_at=PAST)
    assert (await store.purge(older_than=timedelta(days=3))).messages == 0
    await connection.execute("UPDATE messages SET deleted_at = deleted_at - interval '2 days'")
    assert (await store.purge(older_than=timedelta(days=1))).messages == 1
    assert versions(await store.history(root.id)) == [2, 3]
    await store.delete(root.id)
    await store.purge(older_than=NOW)
    assert await rows(connection) == (0, 0, 0)


async def test_purge_stays_with_its_tenant(store: ContextStore) -> None:
    """Another tenant's deleted rows are not ours to remove."""
    elsewhere = store.for_tenant(uuid4())
    context = await elsewhere.create()
    await elsewhere.append(context.id, user())
    await elsewhere.delete(context.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (0, 0)
    assert len(await elsewhere.history((await elsewhere.restore(context.id)).id)) == 1


async def test_purge_removes_more_than_one_statements_worth(store: ContextStore) -> None:
    """However many rows, one call is enough."""
    context = await store.create()
    count = limits.PURGE_ROWS_PER_STATEMENT_MAX + 1_000
    for start in range(0, count, 1_000):
        await store.append(context.id, users(1_000, start))
    await store.delete(context.id)
    report = await store.purge(older_than=NOW)
    assert (report.contexts, report.messages) == (1, count)


@pytest.mark.parametrize("bad", [timedelta(seconds=-1), 0, 3600, "1 day", None, True], ids=repr)
async def test_an_age_that_is_none_is_refused(bad: Any) -> None:
    """A span of time, not negative."""
    with pytest.raises(InvalidInputError, match="older_than"):
        await offline().purge(older_than=bad)


async def test_an_age_beyond_the_calendar_is_refused_or_finds_nothing(
    store: ContextStore,
) -> None:
    """The longest span there is makes neither Python nor the database fail."""
    context = await store.create()
    await store.delete(context.id)
    try:
        report = await store.purge(older_than=timedelta.max)
        assert report.contexts == 0
    except InvalidInputError:
        pass


# ---------------------------------------------------------------------------------------------
# erase


async def stored_texts(connection: Any) -> str:
    """Read every value of every message row as the database holds it."""
    found = await connection.fetch("SELECT to_jsonb(m)::text AS row FROM messages AS m")
    return "\n".join(record["row"] for record in found)


async def test_an_erased_message_is_gone_everywhere(store: ContextStore, connection: Any) -> None:
    """From every view, forks of forks included, from search and from the rows themselves."""
    root = await store.create()
    secret = user("secret words", extra={"note": "hush"}, embedding=axis(0), token_count=5)
    await store.append(root.id, [user("a"), secret, user("b")])
    fork = await store.fork(root.id)
    leaf = await store.fork(fork.id)
    await store.append(leaf.id, user("c"))
    report = await store.erase(root.id, [2])
    assert (report.messages, report.contexts) == (1, 3)
    for context, expected in ((root, 2), (fork, 2), (leaf, 3)):
        assert 2 not in versions(await store.history(context.id, include_deleted=True))
        after = await store.get(context.id)
        assert (after.message_count, after.total_tokens) == (expected, expected)
        for query in ("secret", axis(0)):
            hits = await store.search(query, context_id=context.id)
            assert 2 not in versions(hit.message for hit in hits)
    assert await store.search("secret") == []
    texts = await stored_texts(connection)
    assert "secret" not in texts
    assert "hush" not in texts
    (message,) = await store.append(root.id, user())
    assert message.version == 4


async def test_erased_messages_and_a_purge_leave_the_others_alone(store: ContextStore) -> None:
    """Whatever becomes of the empty stub, versions, views and counters go on."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id)
    await store.erase(root.id, [2, 3])
    await store.purge(older_than=NOW)
    for context in (root, fork):
        (message,) = await store.append(context.id, user("next"))
        assert message.version == 4
        assert versions(await store.history(context.id, include_deleted=True)) == [1, 4]
        assert (await store.get(context.id)).message_count == 2


async def test_an_inherited_message_is_erased_at_its_origin(store: ContextStore) -> None:
    """Whoever sees it may erase it, for everyone."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id)
    sibling = await store.fork(root.id, at_version=1)
    report = await store.erase(fork.id, [2])
    assert (report.messages, report.contexts) == (1, 2)
    assert versions(await store.history(root.id)) == [1, 3]
    assert versions(await store.history(fork.id)) == [1, 3]
    assert (await store.get(sibling.id)).message_count == 1


async def test_an_erased_message_never_comes_back(store: ContextStore) -> None:
    """Not by restore, whether it had been hidden before or not."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id)
    await store.delete_messages(root.id, [1])
    await store.delete_messages(fork.id, [2])
    await store.erase(root.id, [1, 2])
    for context in (root, fork):
        for version in (1, 2):
            with pytest.raises(MessageNotFoundError):
                await store.restore_messages(context.id, [version])
            with pytest.raises(MessageNotFoundError):
                await store.delete_messages(context.id, [version])
        after = await store.get(context.id)
        assert (after.message_count, versions(await store.history(context.id))) == (1, [3])


async def test_a_hidden_message_can_be_erased(store: ContextStore, connection: Any) -> None:
    """Hiding is no protection, and counters that left it out already stay."""
    context = await store.create()
    await store.append(context.id, [user("secret words"), user()])
    await store.delete_messages(context.id, [1])
    await store.erase(context.id, [1])
    assert (await store.get(context.id)).message_count == 1
    assert "secret" not in await stored_texts(connection)


async def test_erasing_twice_is_harmless(store: ContextStore) -> None:
    """A request that is repeated neither fails loudly nor counts twice."""
    context = await store.create()
    await store.append(context.id, users(3))
    await store.erase(context.id, [2])
    before = await store.get(context.id)
    try:
        report = await store.erase(context.id, [2])
        assert report.messages == 0
    except MessageNotFoundError:
        pass
    after = await store.get(context.id)
    assert (after.message_count, after.total_tokens) == (before.message_count, before.total_tokens)


async def test_erasing_a_version_that_is_not_there_changes_nothing(store: ContextStore) -> None:
    """All or nothing."""
    context = await store.create()
    await store.append(context.id, users(2))
    before = await store.get(context.id)
    with pytest.raises(MessageNotFoundError):
        await store.erase(context.id, [1, 3])
    assert await store.get(context.id) == before
    assert versions(await store.history(context.id)) == [1, 2]


async def test_erasing_a_context_leaves_nothing_of_it(store: ContextStore, connection: Any) -> None:
    """Everything that it wrote itself, its name and its metadata; forks lose what they shared."""
    root = await store.create()
    await store.append(root.id, [user("root words")])
    context = await store.fork(root.id, name="Ada's secrets", metadata={"mail": "ada@example.org"})
    await store.append(context.id, [user("secret words"), user("more secrets")])
    fork = await store.fork(context.id)
    await store.append(fork.id, user("fork words"))
    report = await store.erase(context.id)
    assert (report.messages, report.contexts) == (2, 2)
    with pytest.raises(ContextNotFoundError):
        await store.get(context.id)
    deleted = await store.get(context.id, include_deleted=True)
    assert (deleted.name, deleted.metadata) == (None, {})
    assert deleted.deleted_at is not None
    assert contents(await store.history(root.id)) == ["root words"]
    assert contents(await store.history(fork.id)) == ["root words", "fork words"]
    assert (await store.get(fork.id)).message_count == 2
    assert "secret" not in await stored_texts(connection)
    everything = await connection.fetch("SELECT to_jsonb(c)::text AS row FROM contexts AS c")
    assert not any("Ada" in row["row"] or "ada@" in row["row"] for row in everything)


async def test_erase_works_on_deleted_contexts(store: ContextStore, connection: Any) -> None:
    """Whole and by version."""
    one, two = await store.create(name="one"), await store.create(name="two")
    for context in (one, two):
        await store.append(context.id, [user("secret words"), user("other words")])
        await store.delete(context.id)
    assert (await store.erase(one.id)).messages == 2
    assert (await store.erase(two.id, [1])).messages == 1
    assert "secret" not in await stored_texts(connection)
    restored = await store.restore(two.id)
    assert restored.message_count == 1
    assert contents(await store.history(two.id)) == ["other words"]


async def test_a_copy_made_by_merge_is_a_message_of_its_own(store: ContextStore) -> None:
    """Erasing the original leaves the copy, which has to be erased itself."""
    root = await store.create()
    fork = await store.fork(root.id)
    await store.append(fork.id, user("words"))
    await store.merge(fork.id, into=root.id)
    await store.erase(fork.id, [1])
    assert contents(await store.history(root.id)) == ["words"]
    assert await store.history(fork.id) == []


@pytest.mark.parametrize("bad", [[], [1.0], ["1"], [True], [2**63], 1.0, "12", [None]], ids=repr)
async def test_what_are_no_versions_is_refused(bad: Any) -> None:
    """As for delete_messages. An empty list is not "everything": that would cost too much."""
    with pytest.raises(InvalidInputError, match="version"):
        await offline().erase(ID, bad)


async def test_more_versions_than_the_bound_are_refused() -> None:
    """As for delete_messages."""
    with pytest.raises(LimitExceededError):
        await offline().erase(ID, range(1, limits.VERSIONS_PER_CALL_MAX + 2))


async def test_purge_takes_forks_before_their_parents(
    store: ContextStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a statement's bound parts a family."""
    monkeypatch.setattr(limits, "PURGE_ROWS_PER_STATEMENT_MAX", 2)
    for _ in range(3):
        parent = await store.create()
        child = await store.fork(parent.id)
        await store.fork(child.id)
        for context in [*await store.forks(parent.id, recursive=True), parent]:
            await store.delete(context.id)
    report = await store.purge(older_than=timedelta(0))
    assert report.contexts == 9


async def test_erase_names_the_versions_that_are_missing(store: ContextStore) -> None:
    """Not those that are there."""
    context = await store.create()
    await store.append(context.id, [{"role": "user", "content": "x"}] * 3)
    with pytest.raises(MessageNotFoundError) as caught:
        await store.erase(context.id, [1, 2, 99])
    assert caught.value.versions == (99,)
