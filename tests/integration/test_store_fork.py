from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    Context,
    ContextNotFoundError,
    ContextStore,
    InvalidInputError,
    LimitExceededError,
    limits,
)
from tests.support.chats import contents, offline, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")


async def conversation(store: ContextStore, count: int = 5, **fields: Any) -> Context:
    """Make a context with numbered messages of one token each."""
    context = await store.create(**fields)
    await store.append(context.id, users(count))
    return await store.get(context.id)


async def test_a_fork_at_the_head_sees_all_and_copies_nothing(
    store: ContextStore, connection: Any
) -> None:
    """Its counters are those of what it sees; no message row is written."""
    parent = await conversation(store)
    rows = await connection.fetchval("SELECT count(*) FROM messages")
    fork = await store.fork(parent.id, name="fork", metadata={"why": "try"})
    assert (fork.parent_id, fork.fork_version, fork.fork_revision) == (
        parent.id,
        5,
        parent.revision,
    )
    assert (fork.message_count, fork.total_tokens, fork.latest_version) == (5, 5, 5)
    assert (fork.name, fork.metadata, fork.expires_at) == ("fork", {"why": "try"}, None)
    assert await store.history(fork.id) == await store.history(parent.id)
    assert await connection.fetchval("SELECT count(*) FROM messages") == rows
    assert await store.get(fork.id) == fork
    assert await store.get(parent.id) == parent


@pytest.mark.parametrize("at_version", range(6))
async def test_a_fork_at_any_version_continues_from_there(
    store: ContextStore, at_version: int
) -> None:
    """The next version of a fork is the one after its fork version."""
    parent = await conversation(store)
    fork = await store.fork(parent.id, at_version=at_version)
    assert (fork.fork_version, fork.latest_version) == (at_version, at_version)
    assert (fork.message_count, fork.total_tokens) == (at_version, at_version)
    (message,) = await store.append(fork.id, user("mine"))
    assert message.version == at_version + 1
    assert contents(await store.history(fork.id)) == [
        *(f"message {number}" for number in range(1, at_version + 1)),
        "mine",
    ]
    assert await store.get(parent.id) == parent


async def test_a_fork_beyond_the_end_is_refused(store: ContextStore) -> None:
    """There is nothing to continue from, and nothing was made."""
    parent = await conversation(store)
    for at_version in (6, 99, limits.VERSION_MAX):
        with pytest.raises(InvalidInputError, match="at_version"):
            await store.fork(parent.id, at_version=at_version)
    assert await store.forks(parent.id) == []


async def test_a_fork_of_nothing_is_empty(store: ContextStore) -> None:
    """An empty context can be forked, and a fork at 0 is an empty one."""
    for parent in (await store.create(), await conversation(store)):
        fork = await store.fork(parent.id, at_version=0)
        assert (fork.message_count, fork.latest_version, fork.fork_version) == (0, 0, 0)
        assert await store.history(fork.id) == []
        again = await store.fork(fork.id)
        assert (again.parent_id, again.fork_version) == (fork.id, 0)


async def test_a_fork_takes_neither_name_nor_metadata_nor_expiry_by_itself(
    store: ContextStore,
) -> None:
    """Labels are the fork's own, and so is its lifetime."""
    parent = await conversation(store, name="parent", metadata={"k": 1})
    fork = await store.fork(parent.id)
    assert fork.name is None
    assert fork.metadata == {}
    assert fork.expires_at is None


async def test_a_fork_may_get_its_id_and_its_parents_may_be_text(store: ContextStore) -> None:
    """The caller may choose the id; a used one is refused."""
    parent, id = await conversation(store), uuid4()
    fork = await store.fork(str(parent.id), id=str(id))
    assert fork.id == id
    with pytest.raises(InvalidInputError):
        await store.fork(parent.id, id=id)
    assert await store.forks(parent.id) == [fork]


async def test_later_changes_of_the_parent_never_reach_the_fork(store: ContextStore) -> None:
    """Appends, deletes, restores and the parent's own deletion stay with the parent."""
    parent = await conversation(store)
    await store.delete_messages(parent.id, [1])
    fork = await store.fork(parent.id, at_version=4)
    before, context = await store.history(fork.id), await store.get(fork.id)
    await store.append(parent.id, user("later"))
    await store.delete_messages(parent.id, [2, 3])
    await store.restore_messages(parent.id, [1])
    assert versions(before) == [2, 3, 4]
    assert await store.history(fork.id) == before
    await store.delete(parent.id)
    assert await store.history(fork.id) == before
    assert await store.get(fork.id) == context


async def test_changes_of_the_fork_never_reach_the_parent(store: ContextStore) -> None:
    """The other way round neither."""
    parent = await conversation(store)
    before = await store.history(parent.id)
    fork = await store.fork(parent.id)
    await store.append(fork.id, user("later"))
    await store.delete_messages(fork.id, [2, 3])
    await store.delete(fork.id)
    assert await store.history(parent.id) == before
    assert await store.get(parent.id) == parent


async def test_siblings_do_not_see_each_other(store: ContextStore) -> None:
    """Two forks of one version go on with the same version numbers, each its own."""
    parent = await conversation(store, 2)
    one, two = await store.fork(parent.id), await store.fork(parent.id)
    await store.append(one.id, user("one"))
    await store.append(two.id, user("two"))
    assert contents(await store.history(one.id)) == ["message 1", "message 2", "one"]
    assert contents(await store.history(two.id)) == ["message 1", "message 2", "two"]


async def test_a_fork_of_a_fork_may_go_back_before_its_parent(store: ContextStore) -> None:
    """At a version that its parent itself inherited."""
    root = await conversation(store)
    middle = await store.fork(root.id, at_version=4)
    await store.append(middle.id, user("middle"))
    await store.delete_messages(middle.id, [1])
    leaf = await store.fork(middle.id, at_version=2)
    assert versions(await store.history(leaf.id)) == [2]
    assert (leaf.message_count, leaf.latest_version) == (1, 2)
    assert [context.id for context in await store.lineage(leaf.id)] == [root.id, middle.id, leaf.id]


async def test_a_fork_counts_only_what_is_visible(store: ContextStore) -> None:
    """Hidden messages are neither counted nor shown, and keep their versions."""
    parent = await store.create()
    await store.append(parent.id, [user(token_count=count) for count in (1, 2, 4, 8)])
    await store.delete_messages(parent.id, [2, 4])
    fork = await store.fork(parent.id)
    assert (fork.message_count, fork.total_tokens, fork.latest_version) == (2, 5, 4)
    early = await store.fork(parent.id, at_version=2)
    assert (early.message_count, early.total_tokens, early.latest_version) == (1, 1, 2)


async def test_lineage_is_root_to_self(store: ContextStore) -> None:
    """Deleted ancestors are part of it, marked."""
    root = await conversation(store)
    assert await store.lineage(root.id) == [root]
    middle = await store.fork(root.id)
    leaf = await store.fork(middle.id)
    await store.delete(root.id)
    await store.delete(middle.id)
    lineage = await store.lineage(leaf.id)
    assert [context.id for context in lineage] == [root.id, middle.id, leaf.id]
    assert [context.deleted_at is not None for context in lineage] == [True, True, False]
    with pytest.raises(ContextNotFoundError):
        await store.lineage(middle.id)


async def test_forks_are_the_children_or_all_below(store: ContextStore) -> None:
    """Live ones only; recursion goes on below deleted forks."""
    root = await conversation(store)
    one, two = await store.fork(root.id), await store.fork(root.id, at_version=1)
    below_one, below_two = await store.fork(one.id), await store.fork(two.id)
    deep = await store.fork(below_one.id)
    assert {fork.id for fork in await store.forks(root.id)} == {one.id, two.id}
    assert await store.forks(deep.id) == []
    assert await store.forks(deep.id, recursive=True) == []
    everything = {one.id, two.id, below_one.id, below_two.id, deep.id}
    assert {fork.id for fork in await store.forks(root.id, recursive=True)} == everything
    await store.delete(one.id)
    await store.delete(below_one.id)
    assert {fork.id for fork in await store.forks(root.id)} == {two.id}
    found = {fork.id for fork in await store.forks(root.id, recursive=True)}
    assert found == {two.id, below_two.id, deep.id}


async def test_a_listed_fork_is_the_whole_context(store: ContextStore) -> None:
    """An item of forks and of lineage equals what get returns."""
    root = await conversation(store)
    fork = await store.fork(root.id, metadata={"k": [1]})
    await store.append(fork.id, user())
    current = await store.get(fork.id)
    assert await store.forks(root.id) == [current]
    assert (await store.lineage(fork.id))[-1] == current


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, 2**63], ids=repr)
async def test_what_is_no_version_is_refused(value: Any) -> None:
    """As everywhere, before any SQL."""
    with pytest.raises(InvalidInputError, match="at_version"):
        await offline().fork(ID, at_version=value)


@pytest.mark.parametrize(
    "arguments",
    [{"name": 7}, {"name": "\0"}, {"metadata": []}, {"id": "x"}, {"id": 7}],
    ids=repr,
)
async def test_fork_refuses_what_create_refuses(arguments: dict[str, Any]) -> None:
    """The same rules for the same arguments."""
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        await offline().fork(ID, **arguments)


async def test_fork_has_the_bounds_of_create() -> None:
    """The same bounds for the same arguments."""
    with pytest.raises(LimitExceededError):
        await offline().fork(ID, name="x" * (limits.NAME_CHARS_MAX + 1))
    with pytest.raises(LimitExceededError):
        await offline().fork(ID, metadata={"k": "x" * limits.METADATA_BYTES_MAX})
