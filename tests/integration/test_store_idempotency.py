from typing import Any

import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    IdempotencyConflictError,
    NewMessage,
    VersionConflictError,
)
from tests.support.chats import axis, contents, user, users, versions


async def test_the_same_key_with_the_same_messages_returns_the_first_result(
    store: ContextStore,
) -> None:
    """A retry writes nothing and gets what the first call got, marked as replayed."""
    context = await store.create()
    first = await store.append(context.id, users(3), idempotency_key="key")
    written = await store.get(context.id)
    again = await store.append(context.id, users(3), idempotency_key="key")
    assert [message.id for message in again] == [message.id for message in first]
    assert versions(again) == [1, 2, 3]
    assert contents(again) == contents(first)
    assert [message.replayed for message in first + again] == [False] * 3 + [True] * 3
    assert await store.get(context.id) == written


async def test_a_replay_finds_its_result_behind_later_messages(store: ContextStore) -> None:
    """A late retry gets its own messages, not the newest."""
    context = await store.create()
    await store.append(context.id, users(2), idempotency_key="key")
    await store.append(context.id, users(5, start=3))
    again = await store.append(context.id, users(2), idempotency_key="key")
    assert versions(again) == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        [user("changed"), user("message 2")],
        [user("message 1")],
        users(3),
        list(reversed(users(2))),
        [user("message 1", name="ada"), user("message 2")],
        [user("message 1", extra=1), user("message 2")],
        [{**user("message 1"), "role": "assistant"}, user("message 2")],
        [{**user("message 1"), "content": None}, user("message 2")],
    ],
    ids=["content", "fewer", "more", "order", "name", "payload", "role", "none"],
)
async def test_the_same_key_with_other_messages_raises_conflict(
    store: ContextStore, other: list[dict[str, Any]]
) -> None:
    """A key can't be used for something else, and the attempt writes nothing."""
    context = await store.create()
    await store.append(context.id, users(2), idempotency_key="key")
    before = await store.get(context.id)
    with pytest.raises(IdempotencyConflictError):
        await store.append(context.id, other, idempotency_key="key")
    assert await store.get(context.id) == before


async def test_what_the_store_chooses_is_not_compared(store: ContextStore) -> None:
    """A mapping, its NewMessage and a generator of it are the same messages."""
    context = await store.create()
    await store.append(context.id, {"role": "user", "content": "x"}, idempotency_key="key")
    for same in (
        NewMessage(role="user", content="x"),
        ({"content": "x", "role": "user"} for _ in range(1)),
    ):
        (again,) = await store.append(context.id, same, idempotency_key="key")
        assert again.replayed


async def test_a_key_belongs_to_its_context(store: ContextStore) -> None:
    """Another context, a fork included, may use the same key for itself."""
    one, two = await store.create(), await store.create()
    await store.append(one.id, user("one"), idempotency_key="key")
    (other,) = await store.append(two.id, user("two"), idempotency_key="key")
    assert not other.replayed
    fork = await store.fork(one.id)
    (forked,) = await store.append(fork.id, user("fork"), idempotency_key="key")
    assert (forked.replayed, forked.version) == (False, 2)


async def test_another_key_writes_the_same_messages_again(store: ContextStore) -> None:
    """Equal content alone is no retry."""
    context = await store.create()
    for key in ("a", "b", None, None):
        await store.append(context.id, user(), idempotency_key=key)
    assert versions(await store.history(context.id)) == [1, 2, 3, 4]


async def test_a_replay_wins_over_a_stale_expected_version(store: ContextStore) -> None:
    """The retry of a compare-and-set that had won is told so, not that it lost."""
    context = await store.create()
    await store.append(context.id, user("mine"), idempotency_key="key", expected_version=0)
    await store.append(context.id, user("theirs"))
    (again,) = await store.append(
        context.id, user("mine"), idempotency_key="key", expected_version=0
    )
    assert (again.replayed, again.version) == (True, 1)


async def test_a_lost_compare_and_set_does_not_use_up_its_key(store: ContextStore) -> None:
    """After a conflict the caller may read, decide and use the key again."""
    context = await store.create()
    await store.append(context.id, user("theirs"))
    with pytest.raises(VersionConflictError):
        await store.append(context.id, user("mine"), idempotency_key="key", expected_version=0)
    (message,) = await store.append(
        context.id, user("mine"), idempotency_key="key", expected_version=1
    )
    assert (message.replayed, message.version) == (False, 2)


async def test_a_replay_of_hidden_messages_writes_nothing(store: ContextStore) -> None:
    """Deleting a message doesn't make its retry a new message."""
    context = await store.create()
    await store.append(context.id, users(2), idempotency_key="key")
    await store.delete_messages(context.id, [1])
    before = await store.get(context.id)
    again = await store.append(context.id, users(2), idempotency_key="key")
    assert versions(again) == [1, 2]
    assert await store.get(context.id) == before
    assert versions(await store.history(context.id)) == [2]


async def test_a_retry_never_brings_back_what_was_erased(store: ContextStore) -> None:
    """The key stays used: the retry writes nothing, whatever it answers."""
    context = await store.create()
    await store.append(context.id, users(2), idempotency_key="key")
    await store.erase(context.id, [1])
    before = await store.get(context.id)
    try:
        again = await store.append(context.id, users(2), idempotency_key="key")
        assert all(message.replayed for message in again)
    except IdempotencyConflictError:
        pass
    assert await store.get(context.id) == before
    assert contents(await store.history(context.id, include_deleted=True)) == ["message 2"]


async def test_a_retry_on_a_deleted_context_is_not_found(store: ContextStore) -> None:
    """A soft-deleted context takes nothing, replays included."""
    context = await store.create()
    await store.append(context.id, user(), idempotency_key="key")
    await store.delete(context.id)
    with pytest.raises(ContextNotFoundError):
        await store.append(context.id, user(), idempotency_key="key")


async def test_the_key_is_on_every_message_of_the_batch(store: ContextStore) -> None:
    """Whoever reads a message can tell which call wrote it."""
    context = await store.create()
    await store.append(context.id, users(2), idempotency_key="ключ 🔑")
    await store.append(context.id, user())
    messages = await store.history(context.id)
    assert [message.idempotency_key for message in messages] == ["ключ 🔑", "ключ 🔑", None]


async def test_a_retry_may_carry_the_embedding_again(store: ContextStore) -> None:
    """Embeddings vary in their last digits from call to call; the messages decide."""
    context = await store.create()
    await store.append(context.id, user(embedding=axis(0)), idempotency_key="key")
    (again,) = await store.append(
        context.id, user(embedding=axis(0, towards=1, by=1e-6)), idempotency_key="key"
    )
    assert again.replayed
