import base64
from typing import Any
from uuid import uuid4

import pytest

from pgcontext import Context, ContextStore, InvalidInputError, LimitExceededError, limits
from tests.support.chats import offline, user


async def pages(store: ContextStore, **arguments: Any) -> list[list[str | None]]:
    """Read a listing to its end: the names, page by page."""
    result, cursor = [], None
    while True:
        page = await store.list(cursor=cursor, **arguments)
        result.append([context.name for context in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return result


async def create(store: ContextStore, *names: str, **arguments: Any) -> list[Context]:
    """Create contexts one after another."""
    return [await store.create(name=name, **arguments) for name in names]


async def test_a_tenant_without_contexts_has_one_empty_page(store: ContextStore) -> None:
    """Nothing there is not an error."""
    page = await store.list()
    assert (page.items, page.next_cursor) == ([], None)


async def test_pages_come_newest_first_without_gap_or_overlap(store: ContextStore) -> None:
    """Whatever the page size, the pages together are the contexts, newest first."""
    await create(store, *"abcdefg")
    for limit in (1, 2, 3, 6, 7, 8, limits.LIST_CONTEXTS_MAX):
        found = await pages(store, limit=limit)
        assert [name for page in found for name in page] == list("gfedcba")
        assert all(len(page) == limit for page in found[:-1])


async def test_a_last_page_that_is_full_has_no_cursor(store: ContextStore) -> None:
    """A cursor always leads to something."""
    await create(store, *"ab")
    assert (await store.list(limit=2)).next_cursor is None
    assert (await store.list(limit=1)).next_cursor is not None


async def test_a_cursor_stands_still_while_contexts_come_and_change(store: ContextStore) -> None:
    """Paging is by key: what is new or touched moves nothing."""
    contexts = await create(store, *"abcd")
    first = await store.list(limit=2)
    await store.create(name="new")
    await store.append(contexts[0].id, user())
    await store.update(contexts[1].id, metadata={"touched": True})
    rest = await store.list(limit=10, cursor=first.next_cursor)
    assert [context.name for context in rest.items] == ["b", "a"]


async def test_a_listed_context_is_the_whole_context(store: ContextStore) -> None:
    """An item equals what get returns."""
    context = await store.create(name="x", metadata={"k": 1})
    await store.append(context.id, user())
    assert (await store.list()).items == [await store.get(context.id)]


async def test_metadata_filters_by_containment(store: ContextStore) -> None:
    """A context matches when its metadata contains what is asked for, nested too."""
    await create(store, "a", metadata={"user": 1, "tags": ["x", "y"], "plan": {"tier": "pro"}})
    await create(store, "b", metadata={"user": 2, "tags": ["y"], "plan": {"tier": "free"}})
    await create(store, "c")
    assert await pages(store, metadata={"user": 1}) == [["a"]]
    assert await pages(store, metadata={"tags": ["y"]}) == [["b", "a"]]
    assert await pages(store, metadata={"tags": ["y"]}, limit=1) == [["b"], ["a"]]
    assert await pages(store, metadata={"plan": {"tier": "pro"}}) == [["a"]]
    assert await pages(store, metadata={"user": "1"}) == [[]]
    assert await pages(store, metadata={}) == [["c", "b", "a"]]
    assert await pages(store, metadata=None) == [["c", "b", "a"]]


async def test_deleted_contexts_are_listed_on_demand(store: ContextStore) -> None:
    """A soft-deleted context shows with include_deleted, and says so."""
    contexts = await create(store, *"abc")
    await store.delete(contexts[1].id)
    assert await pages(store) == [["c", "a"]]
    page = await store.list(include_deleted=True)
    assert [(context.name, context.deleted_at is not None) for context in page.items] == [
        ("c", False),
        ("b", True),
        ("a", False),
    ]


async def test_another_tenants_contexts_and_cursors_show_nothing(store: ContextStore) -> None:
    """A listing never leaves its tenant, whoever made the cursor."""
    await create(store, *"abc")
    mine = store.for_tenant(uuid4())
    cursor = (await store.list(limit=1)).next_cursor
    assert await pages(mine) == [[]]
    assert (await mine.list(cursor=cursor)).items == []


@pytest.mark.parametrize("limit", [0, -1, 2.5, "10", None, True])
async def test_a_limit_that_is_no_positive_number_is_refused(limit: Any) -> None:
    """A limit is a whole number from 1; a bool is none."""
    with pytest.raises(InvalidInputError, match="limit"):
        await offline().list(limit=limit)


async def test_a_limit_above_its_bound_is_refused() -> None:
    """Never clamped."""
    with pytest.raises(LimitExceededError, match="limit"):
        await offline().list(limit=limits.LIST_CONTEXTS_MAX + 1)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "é",
        "\0",
        "\ud800",
        "AAAA",
        "A" * 10_000,
        base64.urlsafe_b64encode(b"\xff" * 24).decode(),
        base64.urlsafe_b64encode(b"2026-01-01T00:00:00Z,not-a-uuid").decode(),
        7,
        b"AAAA",
    ],
)
async def test_a_malformed_cursor_is_refused(cursor: Any) -> None:
    """Only what an earlier page gave is a cursor."""
    with pytest.raises(InvalidInputError, match="cursor"):
        await offline().list(cursor=cursor)


async def test_a_cursor_that_was_cut_or_changed_is_refused_or_harmless(
    store: ContextStore,
) -> None:
    """A damaged cursor never makes the database fail."""
    await create(store, *"abc")
    cursor = (await store.list(limit=1)).next_cursor
    assert cursor is not None
    for index in range(len(cursor)):
        for damaged in (cursor[:index], cursor[:index] + "!" + cursor[index + 1 :]):
            with pytest.raises(InvalidInputError, match="cursor"):
                await store.list(cursor=damaged)


@pytest.mark.parametrize("metadata", [[], "x", 7, {1: 2}, {"k": "\0"}, {"k": float("nan")}])
async def test_a_filter_that_is_no_json_object_is_refused(metadata: Any) -> None:
    """The filter obeys the same rules as metadata itself."""
    with pytest.raises(InvalidInputError, match="metadata"):
        await offline().list(metadata=metadata)
