from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    limits,
)
from tests.support.chats import offline, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")


async def test_delete_is_soft_and_restore_brings_everything_back(store: ContextStore) -> None:
    """What was deleted comes back as it was, but for its times."""
    context = await store.create(name="x", metadata={"k": 1})
    await store.append(context.id, users(3))
    await store.delete_messages(context.id, [2])
    before, history = await store.get(context.id), await store.history(context.id)
    deleted = await store.delete(context.id)
    assert deleted.deleted_at is not None
    assert abs(datetime.now(UTC) - deleted.deleted_at) < timedelta(minutes=1)
    with pytest.raises(ContextNotFoundError):
        await store.get(context.id)
    restored = await store.restore(context.id)
    assert restored.deleted_at is None
    assert (restored.name, restored.metadata) == ("x", {"k": 1})
    assert (restored.message_count, restored.total_tokens, restored.latest_version) == (
        before.message_count,
        before.total_tokens,
        before.latest_version,
    )
    assert await store.history(context.id) == history
    (message,) = await store.append(context.id, user())
    assert message.version == 4


async def test_deleting_twice_does_not_find_it(store: ContextStore) -> None:
    """A deleted context is not found by delete either, and keeps its first time."""
    context = await store.create()
    deleted = await store.delete(context.id)
    with pytest.raises(ContextNotFoundError):
        await store.delete(context.id)
    again = await store.get(context.id, include_deleted=True)
    assert again.deleted_at == deleted.deleted_at


async def test_restoring_what_lives_changes_nothing(store: ContextStore) -> None:
    """Restore is a no-op on a context that isn't deleted."""
    context = await store.create()
    await store.append(context.id, user())
    before = await store.get(context.id)
    assert await store.restore(context.id) == before
    assert await store.get(context.id) == before


async def test_hidden_messages_keep_their_versions_and_leave_the_counters(
    store: ContextStore,
) -> None:
    """History has a hole, the next version is the next, counters follow."""
    context = await store.create()
    await store.append(context.id, [user(token_count=count) for count in (1, 2, 4, 8)])
    before = await store.get(context.id)
    hidden = await store.delete_messages(context.id, [2, 4])
    assert versions(hidden) == [2, 4]
    assert all(message.deleted_at is not None for message in hidden)
    after = await store.get(context.id)
    assert (after.message_count, after.total_tokens, after.latest_version) == (2, 5, 4)
    assert after.revision > before.revision
    assert versions(await store.history(context.id)) == [1, 3]
    (message,) = await store.append(context.id, user())
    assert message.version == 5


async def test_restored_messages_come_back_in_their_place(store: ContextStore) -> None:
    """With their content, and the counters follow."""
    context = await store.create()
    written = await store.append(context.id, users(3))
    await store.delete_messages(context.id, [1, 2])
    restored = await store.restore_messages(context.id, [1])
    assert restored == written[:1]
    after = await store.get(context.id)
    assert (after.message_count, after.total_tokens) == (2, 2)
    assert await store.history(context.id) == [written[0], written[2]]


async def test_hiding_and_restoring_again_and_again(store: ContextStore) -> None:
    """Each round is a change of its own."""
    context = await store.create()
    await store.append(context.id, users(2))
    revisions = []
    for _ in range(5):
        await store.delete_messages(context.id, [1])
        assert versions(await store.history(context.id)) == [2]
        await store.restore_messages(context.id, [1])
        assert versions(await store.history(context.id)) == [1, 2]
        revisions.append((await store.get(context.id)).revision)
    assert revisions == sorted(set(revisions))


async def test_doing_it_twice_is_a_no_op(store: ContextStore) -> None:
    """Neither counters nor the revision move."""
    context = await store.create()
    await store.append(context.id, users(3))
    await store.delete_messages(context.id, [2])
    before = await store.get(context.id)
    await store.delete_messages(context.id, [2])
    after = await store.get(context.id)
    assert (after.message_count, after.total_tokens) == (before.message_count, before.total_tokens)
    assert after.revision == before.revision
    await store.restore_messages(context.id, [2])
    before = await store.get(context.id)
    await store.restore_messages(context.id, [2])
    await store.restore_messages(context.id, [1])
    assert (await store.get(context.id)).revision == before.revision
    assert versions(await store.history(context.id)) == [1, 2, 3]


async def test_part_of_it_done_already_does_the_rest(store: ContextStore) -> None:
    """A version that is hidden already is no obstacle."""
    context = await store.create()
    await store.append(context.id, users(3))
    await store.delete_messages(context.id, [1])
    await store.delete_messages(context.id, [1, 2])
    assert versions(await store.history(context.id)) == [3]
    assert (await store.get(context.id)).message_count == 1
    await store.restore_messages(context.id, [1, 2, 3])
    assert versions(await store.history(context.id)) == [1, 2, 3]
    assert (await store.get(context.id)).message_count == 3


async def test_a_version_named_twice_is_meant_once(store: ContextStore) -> None:
    """Counters count it once."""
    context = await store.create()
    await store.append(context.id, users(2))
    await store.delete_messages(context.id, [1, 1, 1])
    assert (await store.get(context.id)).message_count == 1
    await store.restore_messages(context.id, [1, 1])
    assert (await store.get(context.id)).message_count == 2


@pytest.mark.parametrize("beyond", [[4], [1, 4], [4, 5, 6], [2**62], [limits.VERSION_MAX]])
async def test_a_version_that_is_not_in_the_view_changes_nothing(
    store: ContextStore, beyond: list[int]
) -> None:
    """All or nothing, and the error names what is missing."""
    context = await store.create()
    await store.append(context.id, users(3))
    before = await store.get(context.id)
    missing = tuple(version for version in beyond if version > 3)
    for method in (store.delete_messages, store.restore_messages):
        with pytest.raises(MessageNotFoundError) as caught:
            await method(context.id, beyond)
        assert caught.value.context_id == context.id
        assert caught.value.versions == missing
    assert await store.get(context.id) == before


async def test_a_fork_hides_what_it_inherits_for_itself(store: ContextStore) -> None:
    """The parent keeps showing it, and the fork can take it back."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id)
    hidden = await store.delete_messages(fork.id, [2])
    assert [message.context_id for message in hidden] == [root.id]
    assert versions(await store.history(fork.id)) == [1, 3]
    assert versions(await store.history(root.id)) == [1, 2, 3]
    assert (await store.get(fork.id)).message_count == 2
    assert (await store.get(root.id)).message_count == 3
    await store.restore_messages(fork.id, [2])
    assert versions(await store.history(fork.id)) == [1, 2, 3]


async def test_what_an_ancestor_hid_before_the_fork_is_not_in_the_view(
    store: ContextStore,
) -> None:
    """It can be neither deleted nor restored by the fork, at any depth."""
    root = await store.create()
    await store.append(root.id, users(3))
    await store.delete_messages(root.id, [2])
    fork = await store.fork(root.id)
    leaf = await store.fork(fork.id)
    for context in (fork, leaf):
        for method in (store.delete_messages, store.restore_messages):
            with pytest.raises(MessageNotFoundError):
                await method(context.id, [2])
    await store.restore_messages(root.id, [2])
    for context in (fork, leaf):
        assert versions(await store.history(context.id)) == [1, 3]
        with pytest.raises(MessageNotFoundError):
            await store.restore_messages(context.id, [2])


async def test_an_ancestors_messages_behind_the_fork_are_not_in_the_view(
    store: ContextStore,
) -> None:
    """A version of the parent that the fork doesn't inherit isn't there."""
    root = await store.create()
    await store.append(root.id, users(3))
    fork = await store.fork(root.id, at_version=1)
    with pytest.raises(MessageNotFoundError):
        await store.delete_messages(fork.id, [2])
    with pytest.raises(MessageNotFoundError):
        await store.delete_messages(fork.id, [3])


@pytest.mark.parametrize("versions_given", [(1, 2), {1, 2}, iter([1, 2]), range(1, 3), [2, 1]])
async def test_versions_may_come_in_any_iterable(store: ContextStore, versions_given: Any) -> None:
    """A generator is read once, order doesn't matter, and a single version needs no list."""
    context = await store.create()
    await store.append(context.id, users(3))
    hidden = await store.delete_messages(context.id, versions_given)
    assert versions(hidden) == [1, 2]
    (third,) = await store.delete_messages(context.id, 3)
    assert third.version == 3


@pytest.mark.parametrize(
    "bad",
    [[], [1.0], ["1"], [None], [True], True, [2**63], 1.0, None, "12", b"12", [[1]]],
    ids=repr,
)
@pytest.mark.parametrize("method", ["delete_messages", "restore_messages"])
async def test_what_are_no_versions_is_refused(method: str, bad: Any) -> None:
    """Versions are whole numbers in a collection; a bool is none."""
    with pytest.raises(InvalidInputError, match="version"):
        await getattr(offline(), method)(ID, bad)


@pytest.mark.parametrize("bad", [[0], [-1], [1, -5]], ids=repr)
@pytest.mark.parametrize("method", ["delete_messages", "restore_messages"])
async def test_a_version_below_one_is_refused(
    store: ContextStore, method: str, bad: list[int]
) -> None:
    """There is no such message, and nothing changes."""
    context = await store.create()
    await store.append(context.id, users(2))
    before = await store.get(context.id)
    with pytest.raises((InvalidInputError, MessageNotFoundError)):
        await getattr(store, method)(context.id, bad)
    assert await store.get(context.id) == before


@pytest.mark.parametrize("method", ["delete_messages", "restore_messages"])
async def test_more_versions_than_the_bound_are_refused(method: str) -> None:
    """Before any SQL, endless iterators too."""

    def endless() -> Any:
        while True:
            yield 1

    many = range(1, limits.VERSIONS_PER_CALL_MAX + 2)
    for given in (many, endless()):
        with pytest.raises(LimitExceededError, match=r"10,?000"):
            await getattr(offline(), method)(ID, given)


async def test_as_many_versions_as_the_bound_work(store: ContextStore) -> None:
    """Ten thousand at once, hidden and brought back."""
    context = await store.create()
    for start in range(0, limits.VERSIONS_PER_CALL_MAX, 1_000):
        await store.append(context.id, users(1_000, start))
    everything = range(1, limits.VERSIONS_PER_CALL_MAX + 1)
    assert len(await store.delete_messages(context.id, everything)) == len(everything)
    assert (await store.get(context.id)).message_count == 0
    await store.restore_messages(context.id, everything)
    assert (await store.get(context.id)).message_count == len(everything)
