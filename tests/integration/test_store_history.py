from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from pgcontext import (
    Context,
    ContextNotFoundError,
    ContextStore,
    InvalidInputError,
    LimitExceededError,
    limits,
)
from tests.support.chats import call, contents, drained, offline, result, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")


async def lineage_of_three(store: ContextStore) -> Context:
    """Make versions 1-4 in a root, 5-7 in a fork at 4, and 7-9 in a fork of that at 6."""
    root = await store.create()
    await store.append(root.id, [user(f"root {n}") for n in range(1, 7)])
    middle = await store.fork(root.id, at_version=4)
    await store.append(middle.id, [user(f"middle {n}") for n in range(5, 8)])
    leaf = await store.fork(middle.id, at_version=6)
    await store.append(leaf.id, [user(f"leaf {n}") for n in range(7, 10)])
    return leaf


LEAF = [f"root {n}" for n in range(1, 5)] + ["middle 5", "middle 6"]
LEAF += [f"leaf {n}" for n in range(7, 10)]


async def test_an_empty_context_has_no_history(store: ContextStore) -> None:
    """Nothing there is not an error."""
    context = await store.create()
    assert await store.history(context.id) == []
    assert await store.history(context.id, at_version=0) == []
    assert await store.history(context.id, at_version=7, after=3, before=9) == []


async def test_the_newest_come_oldest_first(store: ContextStore) -> None:
    """Without `after`, the limit keeps the newest."""
    context = await store.create()
    await store.append(context.id, users(150))
    assert versions(await store.history(context.id)) == list(range(51, 151))
    assert versions(await store.history(context.id, limit=3)) == [148, 149, 150]
    assert versions(await store.history(context.id, limit=3, before=100)) == [97, 98, 99]


async def test_after_keeps_the_oldest(store: ContextStore) -> None:
    """With `after`, the limit keeps what comes next; after=0 is from the start."""
    context = await store.create()
    await store.append(context.id, users(10))
    assert versions(await store.history(context.id, after=0, limit=3)) == [1, 2, 3]
    assert versions(await store.history(context.id, after=3, limit=3)) == [4, 5, 6]
    assert versions(await store.history(context.id, after=9, limit=3)) == [10]
    assert versions(await store.history(context.id, after=10)) == []
    assert versions(await store.history(context.id, after=3, before=6)) == [4, 5]
    assert versions(await store.history(context.id, after=5, before=5)) == []
    assert versions(await store.history(context.id, after=8, before=2)) == []


async def test_paging_in_both_directions_meets_every_message_once(store: ContextStore) -> None:
    """before and after are made for paging by key, through a lineage too."""
    leaf = await lineage_of_three(store)
    for limit in (1, 2, 4, 9, 10):
        forward: list[str | None] = []
        last = 0
        while page := await store.history(leaf.id, after=last, limit=limit):
            forward += contents(page)
            last = page[-1].version
        assert forward == LEAF
        backward: list[str | None] = []
        first = None
        while page := await store.history(leaf.id, before=first, limit=limit):
            backward = contents(page) + backward
            first = page[0].version
        assert backward == LEAF


@pytest.mark.parametrize("at_version", range(12))
async def test_reading_at_a_version_shows_the_messages_up_to_it(
    store: ContextStore, at_version: int
) -> None:
    """Through the lineage; beyond the end it shows all there is."""
    leaf = await lineage_of_three(store)
    assert contents(await store.history(leaf.id, at_version=at_version)) == LEAF[:at_version]
    read = await drained(store.iter_history(leaf.id, at_version=at_version, page_size=2))
    assert contents(read) == LEAF[:at_version]


async def test_a_message_names_the_context_that_wrote_it(store: ContextStore) -> None:
    """An inherited message keeps its owner, id and time."""
    leaf = await lineage_of_three(store)
    lineage = await store.lineage(leaf.id)
    read = await store.history(leaf.id)
    owners = [lineage[0].id] * 4 + [lineage[1].id] * 2 + [lineage[2].id] * 3
    assert [message.context_id for message in read] == owners
    assert read[:4] == (await store.history(lineage[0].id))[:4]


async def test_roles_filter_before_the_limit(store: ContextStore) -> None:
    """The limit counts what matches."""
    context = await store.create()
    await store.append(context.id, [user("a"), call("1"), result("1"), user("b"), call("2")] * 3)
    assert contents(await store.history(context.id, roles=["user"], limit=3)) == ["b", "a", "b"]
    assert versions(await store.history(context.id, roles=["tool"])) == [3, 8, 13]
    assert versions(await store.history(context.id, roles=("tool", "user"), limit=2)) == [13, 14]
    assert versions(await store.history(context.id, roles={"system"})) == []
    assert versions(await store.history(context.id, roles="tool", limit=1)) == [13]
    assert versions(await store.history(context.id, roles=["tool"], after=3, limit=1)) == [8]
    read = await drained(store.iter_history(context.id, roles=["tool"], page_size=1))
    assert versions(read) == [3, 8, 13]


async def test_hidden_messages_are_shown_on_demand_with_their_time(store: ContextStore) -> None:
    """include_deleted shows what this view hides, marked, in its place."""
    context = await store.create()
    await store.append(context.id, users(4))
    await store.delete_messages(context.id, [2, 4])
    assert versions(await store.history(context.id)) == [1, 3]
    assert versions(await store.history(context.id, limit=1)) == [3]
    read = await store.history(context.id, include_deleted=True)
    assert versions(read) == [1, 2, 3, 4]
    hidden = [message.deleted_at for message in read]
    assert [time is not None for time in hidden] == [False, True, False, True]
    assert all(time is None or time <= datetime.now(UTC) for time in hidden)


async def test_include_deleted_of_a_fork_shows_what_the_fork_hid(store: ContextStore) -> None:
    """What an ancestor hid before the fork never was in the view; later deletes don't reach it."""
    root = await store.create()
    await store.append(root.id, users(5))
    await store.delete_messages(root.id, [1])
    fork = await store.fork(root.id)
    await store.delete_messages(root.id, [2])
    await store.delete_messages(fork.id, [3])
    assert versions(await store.history(fork.id)) == [2, 4, 5]
    read = await store.history(fork.id, include_deleted=True)
    assert versions(read) == [2, 3, 4, 5]
    assert [message.deleted_at is not None for message in read] == [False, True, False, False]
    read = await store.history(root.id, include_deleted=True)
    assert [message.deleted_at is not None for message in read] == [True, True] + [False] * 3


async def test_the_largest_limit_works(store: ContextStore) -> None:
    """At the bound, with more than that there."""
    context = await store.create()
    await store.append(context.id, users(limits.MESSAGES_PER_APPEND_MAX))
    await store.append(context.id, users(10))
    read = await store.history(context.id, limit=limits.HISTORY_MESSAGES_MAX)
    assert versions(read) == list(range(11, limits.HISTORY_MESSAGES_MAX + 11))


async def test_iter_history_reads_everything_in_pages(store: ContextStore) -> None:
    """Whatever the page size, every message comes once, in order."""
    leaf = await lineage_of_three(store)
    for page_size in (1, 2, 3, 8, 9, 10, limits.HISTORY_MESSAGES_MAX):
        assert contents(await drained(store.iter_history(leaf.id, page_size=page_size))) == LEAF
    context = await store.create()
    assert await drained(store.iter_history(context.id)) == []
    await store.append(context.id, users(1000))
    await store.append(context.id, users(200))
    assert versions(await drained(store.iter_history(context.id))) == list(range(1, 1201))


async def test_iter_history_stays_between_before_and_after(store: ContextStore) -> None:
    """The bounds hold across pages."""
    leaf = await lineage_of_three(store)
    read = await drained(store.iter_history(leaf.id, after=2, before=8, page_size=2))
    assert contents(read) == LEAF[2:7]
    read = await drained(store.iter_history(leaf.id, before=4, page_size=1))
    assert contents(read) == LEAF[:3]


async def test_iter_history_may_be_left_early(store: ContextStore) -> None:
    """Breaking out holds no connection and no cursor."""
    leaf = await lineage_of_three(store)
    for _ in range(10):
        async for message in store.iter_history(leaf.id, page_size=2):
            if message.version == 3:
                break
    assert len(await store.history(leaf.id)) == 9


async def test_iter_history_of_a_context_that_goes_away_says_so(store: ContextStore) -> None:
    """A context deleted between two pages is not found."""
    leaf = await lineage_of_three(store)
    pages = store.iter_history(leaf.id, page_size=1)
    assert (await anext(pages)).version == 1
    await store.delete(leaf.id)
    with pytest.raises(ContextNotFoundError):
        await drained(pages)


NOT_VERSIONS = [-1, 1.0, "1", True, False, 2**63, 10**30, float("nan")]


@pytest.mark.parametrize("value", NOT_VERSIONS, ids=repr)
@pytest.mark.parametrize("name", ["at_version", "before", "after"])
async def test_what_is_no_version_is_refused(name: str, value: Any) -> None:
    """A version is a whole number that the database can hold; a bool is none."""
    with pytest.raises(InvalidInputError, match=name):
        await offline().history(ID, **{name: value})
    with pytest.raises(InvalidInputError, match=name):
        await drained(offline().iter_history(ID, **{name: value}))


async def test_the_largest_version_is_a_version(store: ContextStore) -> None:
    """Far beyond the end is still a version."""
    context = await store.create()
    await store.append(context.id, users(2))
    most = limits.VERSION_MAX
    assert versions(await store.history(context.id, at_version=most, before=most)) == [1, 2]
    assert versions(await store.history(context.id, after=most)) == []


@pytest.mark.parametrize("value", [0, -1, 2.5, "10", None, True], ids=repr)
async def test_a_limit_that_is_no_positive_number_is_refused(value: Any) -> None:
    """For a page as for a whole."""
    with pytest.raises(InvalidInputError, match="limit"):
        await offline().history(ID, limit=value)
    with pytest.raises(InvalidInputError, match="page_size"):
        await drained(offline().iter_history(ID, page_size=value))


async def test_a_limit_above_its_bound_is_refused() -> None:
    """Never clamped."""
    above = limits.HISTORY_MESSAGES_MAX + 1
    with pytest.raises(LimitExceededError, match="limit"):
        await offline().history(ID, limit=above)
    with pytest.raises(LimitExceededError, match="page_size"):
        await drained(offline().iter_history(ID, page_size=above))


@pytest.mark.parametrize(
    "roles", ["nobody", "", ["nobody"], [None], [7], 7, ["user", "User"]], ids=repr
)
async def test_unknown_roles_are_refused(roles: Any) -> None:
    """A role, or a collection of them, each one of the five names."""
    with pytest.raises(InvalidInputError, match="role"):
        await offline().history(ID, roles=roles)
    with pytest.raises(InvalidInputError, match="role"):
        await drained(offline().iter_history(ID, roles=roles))
