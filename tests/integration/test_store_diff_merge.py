from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import Context, ContextStore, InvalidInputError, VersionConflictError, limits
from tests.support.chats import axis, contents, user, users, versions


async def family(store: ContextStore) -> tuple[Context, Context, Context]:
    """Make a root of 4 messages and two forks at 3 that went on, one by 2 and one by 1."""
    root = await store.create()
    await store.append(root.id, users(4))
    one, two = await store.fork(root.id, at_version=3), await store.fork(root.id, at_version=3)
    await store.append(one.id, [user("one 4"), user("one 5")])
    await store.append(two.id, user("two 4"))
    return root, one, two


async def test_diff_of_siblings_ends_in_their_parent(store: ContextStore) -> None:
    """The ancestor, the last common version, and what each alone shows."""
    root, one, two = await family(store)
    diff = await store.diff(one.id, two.id)
    assert (diff.ancestor_id, diff.version) == (root.id, 3)
    assert contents(diff.only_a) == ["one 4", "one 5"]
    assert contents(diff.only_b) == ["two 4"]
    mirrored = await store.diff(two.id, one.id)
    assert (mirrored.only_a, mirrored.only_b) == (diff.only_b, diff.only_a)


async def test_diff_of_parent_and_child(store: ContextStore) -> None:
    """The parent itself is the ancestor."""
    root, one, _ = await family(store)
    diff = await store.diff(root.id, one.id)
    assert (diff.ancestor_id, diff.version) == (root.id, 3)
    assert contents(diff.only_a) == ["message 4"]
    assert contents(diff.only_b) == ["one 4", "one 5"]


async def test_diff_with_itself_is_empty(store: ContextStore) -> None:
    """Everything is common."""
    _, one, _ = await family(store)
    diff = await store.diff(one.id, one.id)
    assert (diff.ancestor_id, diff.version, diff.only_a, diff.only_b) == (one.id, 5, [], [])


async def test_diff_of_a_fresh_fork_is_empty(store: ContextStore) -> None:
    """A fork at the head differs in nothing yet."""
    root, _, _ = await family(store)
    fork = await store.fork(root.id)
    diff = await store.diff(fork.id, root.id)
    assert (diff.ancestor_id, diff.version, diff.only_a, diff.only_b) == (root.id, 4, [], [])


async def test_diff_of_unrelated_contexts_is_all_of_both(store: ContextStore) -> None:
    """Without a common ancestor the version is 0."""
    a, b = await store.create(), await store.create()
    await store.append(a.id, users(2))
    await store.append(b.id, user("b"))
    diff = await store.diff(a.id, b.id)
    assert (diff.ancestor_id, diff.version) == (None, 0)
    assert contents(diff.only_a) == ["message 1", "message 2"]
    assert contents(diff.only_b) == ["b"]


async def test_diff_is_over_what_is_visible(store: ContextStore) -> None:
    """A common message that one of them hides is only in the other."""
    root, one, two = await family(store)
    await store.delete_messages(one.id, [2, 4])
    diff = await store.diff(one.id, two.id)
    assert (diff.ancestor_id, diff.version) == (root.id, 3)
    assert versions(diff.only_a) == [5]
    assert contents(diff.only_b) == ["message 2", "two 4"]


async def test_diff_of_cousins_whose_forks_went_back(store: ContextStore) -> None:
    """What they have in common ends at the earliest fork on either way."""
    root, one, _ = await family(store)
    cousin = await store.fork(one.id, at_version=2)
    await store.append(cousin.id, user("cousin 3"))
    diff = await store.diff(cousin.id, root.id)
    assert (diff.ancestor_id, diff.version) == (root.id, 2)
    assert contents(diff.only_a) == ["cousin 3"]
    assert contents(diff.only_b) == ["message 3", "message 4"]
    diff = await store.diff(cousin.id, one.id)
    assert (diff.ancestor_id, diff.version) == (one.id, 2)


async def test_diff_finds_a_deleted_ancestor(store: ContextStore) -> None:
    """Deleting the parent doesn't make the children strangers."""
    root, one, two = await family(store)
    await store.delete(root.id)
    diff = await store.diff(one.id, two.id)
    assert (diff.ancestor_id, diff.version) == (root.id, 3)


async def test_merge_appends_what_only_the_source_has(store: ContextStore) -> None:
    """Into a parent that stood still, as messages of its own."""
    root = await store.create()
    await store.append(root.id, users(2))
    fork = await store.fork(root.id)
    await store.append(fork.id, [user("a", token_count=3), user("b", token_count=4)])
    merged = await store.merge(fork.id, into=root.id)
    assert versions(merged) == [3, 4]
    assert contents(merged) == ["a", "b"]
    assert {message.context_id for message in merged} == {root.id}
    assert contents(await store.history(root.id)) == ["message 1", "message 2", "a", "b"]
    after = await store.get(root.id)
    assert (after.message_count, after.total_tokens, after.latest_version) == (4, 9, 4)
    originals = await store.history(fork.id, after=2)
    assert not {message.id for message in merged} & {message.id for message in originals}


async def test_merge_refuses_a_target_that_moved_unless_rebased(store: ContextStore) -> None:
    """The conflict tells the common version and the target's; a rebase appends behind it."""
    _, one, two = await family(store)
    before = await store.get(two.id)
    with pytest.raises(VersionConflictError) as caught:
        await store.merge(one.id, into=two.id)
    assert (caught.value.expected, caught.value.actual) == (3, 4)
    assert await store.get(two.id) == before
    merged = await store.merge(one.id, into=two.id, rebase=True)
    assert versions(merged) == [5, 6]
    assert contents(await store.history(two.id)) == [
        "message 1",
        "message 2",
        "message 3",
        "two 4",
        "one 4",
        "one 5",
    ]


async def test_merge_of_a_sibling_into_one_that_stood_still(store: ContextStore) -> None:
    """Any two related contexts may be merged."""
    root, one, _ = await family(store)
    still = await store.fork(root.id, at_version=3)
    assert contents(await store.merge(one.id, into=still.id)) == ["one 4", "one 5"]
    assert contents(await store.history(still.id)) == contents(await store.history(one.id))


async def test_merge_of_the_parent_into_its_fork(store: ContextStore) -> None:
    """A fork catches up with what its parent said since."""
    root = await store.create()
    await store.append(root.id, users(2))
    fork = await store.fork(root.id)
    await store.append(root.id, user("news"))
    assert contents(await store.merge(root.id, into=fork.id)) == ["news"]


async def test_nothing_to_merge_returns_nothing(store: ContextStore) -> None:
    """Also into one that moved when rebased, and with itself."""
    root, one, _ = await family(store)
    fork = await store.fork(root.id)
    before = await store.get(root.id)
    assert await store.merge(fork.id, into=root.id) == []
    assert await store.merge(one.id, into=one.id) == []
    await store.append(root.id, user())
    assert await store.merge(fork.id, into=root.id, rebase=True) == []
    assert (await store.get(root.id)).message_count == before.message_count + 1


async def test_merge_takes_everything_of_a_message_along(store: ContextStore) -> None:
    """Tokens, model, payload and embedding."""
    root = await store.create()
    fork = await store.fork(root.id)
    mapping = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}], "extra": {"k": 1}}
    own = {"model": "gpt", "token_count": 9, "embedding": axis(1), "embedding_model": None}
    await store.append(fork.id, {**mapping, **own})
    (merged,) = await store.merge(fork.id, into=root.id)
    assert merged.as_dict() == mapping
    assert (merged.model, merged.token_count) == ("gpt", 9)
    (hit,) = await store.search(axis(1), context_id=root.id)
    assert hit.message.id == merged.id
    assert hit.distance == pytest.approx(0, abs=1e-6)


async def test_hidden_messages_are_not_merged(store: ContextStore) -> None:
    """Neither those that the source hides, nor do common ones that `into` hides come back."""
    root = await store.create()
    await store.append(root.id, users(2))
    fork = await store.fork(root.id)
    await store.append(fork.id, [user("a"), user("b"), user("c")])
    await store.delete_messages(fork.id, [1, 4])
    await store.delete_messages(root.id, [2])
    assert contents(await store.merge(fork.id, into=root.id)) == ["a", "c"]
    assert contents(await store.history(root.id)) == ["message 1", "a", "c"]


async def test_merging_twice_doubles_only_by_rebase(store: ContextStore) -> None:
    """After a merge the target has moved, so a second merge is a conflict."""
    root = await store.create()
    await store.append(root.id, user())
    fork = await store.fork(root.id)
    await store.append(fork.id, user("a"))
    await store.merge(fork.id, into=root.id)
    with pytest.raises(VersionConflictError):
        await store.merge(fork.id, into=root.id)
    assert (await store.get(root.id)).latest_version == 2


async def test_unrelated_contexts_cannot_be_merged(store: ContextStore) -> None:
    """Without a common ancestor there is no fork point, and nothing is written."""
    a, b = await store.create(), await store.create()
    await store.append(a.id, user())
    for rebase in (False, True):
        with pytest.raises(InvalidInputError):
            await store.merge(a.id, into=b.id, rebase=rebase)
    assert await store.get(b.id) == b


async def test_a_merge_does_not_take_idempotency_keys_along(store: ContextStore) -> None:
    """Keys belong to the context they were used in."""
    root = await store.create()
    fork = await store.fork(root.id)
    await store.append(fork.id, user("a"), idempotency_key="key")
    (merged,) = await store.merge(fork.id, into=root.id)
    assert merged.idempotency_key is None
    (message,) = await store.append(root.id, user("b"), idempotency_key="key")
    assert not message.replayed


async def test_a_large_merge_is_one_batch(store: ContextStore) -> None:
    """More messages than one append takes, in order."""
    root = await store.create()
    fork = await store.fork(root.id)
    for start in (1, 1_001, 2_001):
        await store.append(fork.id, users(1_000, start))
    merged = await store.merge(fork.id, into=root.id)
    assert versions(merged) == list(range(1, 3_001))
    assert contents(merged)[-1] == "message 3000"
    assert len(merged) <= limits.MERGE_MESSAGES_MAX


@pytest.mark.parametrize("bad", ["x", 7, None])
async def test_both_contexts_must_be_ids(store: ContextStore, bad: Any) -> None:
    """On either side."""
    id = uuid4()
    for attempt in (
        store.diff(id, bad),
        store.diff(bad, id),
        store.merge(id, into=bad),
        store.merge(bad, into=id),
    ):
        with pytest.raises(InvalidInputError):
            await attempt


async def test_an_unknown_context_on_either_side_is_named(store: ContextStore) -> None:
    """The error tells which of the two is missing."""
    known, unknown = await store.create(), UUID(int=7)
    for attempt in (
        store.diff(known.id, unknown),
        store.diff(unknown, known.id),
        store.merge(known.id, into=unknown),
        store.merge(unknown, into=known.id),
    ):
        with pytest.raises(LookupError, match=str(unknown)):
            await attempt
