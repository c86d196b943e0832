from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import ContextNotFoundError, ContextStore, InvalidInputError
from tests.support.chats import CALLS, FIND_DELETED, offline, user

ANOTHER = UUID("01890000-0000-7000-8000-00000000000a")


@pytest.mark.parametrize(
    ("method", "id"),
    [
        (method, id)
        for method in CALLS
        for id in ("", "not-a-uuid", "0" * 31, "{}", "\0" * 36, 7, None, b"0" * 16)
        # None is how search is told to look everywhere.
        if not (id is None and method.startswith("search"))
    ],
)
async def test_a_malformed_id_is_refused_before_any_sql(method: str, id: Any) -> None:
    """An id is a UUID or its text; the sentence says so."""
    with pytest.raises(InvalidInputError) as caught:
        await CALLS[method](offline(), id, ANOTHER)
    assert "UUID" in str(caught.value)


async def test_an_id_may_be_text_everywhere(store: ContextStore) -> None:
    """Every method takes the text form of a UUID."""
    for name, method in CALLS.items():
        context, other = await store.create(), await store.create()
        await store.append(context.id, user())
        if name.startswith("merge"):
            other = await store.fork(context.id)
        await method(store, str(context.id).upper(), str(other.id))


async def test_an_unknown_context_is_not_found_by_any_method(store: ContextStore) -> None:
    """The error names the id that was asked for."""
    other = await store.create()
    for method in CALLS.values():
        unknown = uuid4()
        with pytest.raises(ContextNotFoundError) as caught:
            await method(store, unknown, other.id)
        assert caught.value.context_id == unknown
    assert await store.get(other.id) == other


async def test_a_deleted_context_is_not_found_by_any_other_method(store: ContextStore) -> None:
    """Only get(include_deleted=True), restore and erase find it, and list on demand."""
    root = await store.create()
    await store.append(root.id, user())
    deleted, other = await store.fork(root.id), await store.fork(root.id)
    await store.delete(deleted.id)
    for method in [CALLS[name] for name in CALLS if name not in FIND_DELETED]:
        with pytest.raises(ContextNotFoundError) as caught:
            await method(store, deleted.id, other.id)
        assert caught.value.context_id == deleted.id
    found = await store.get(deleted.id, include_deleted=True)
    assert found.deleted_at is not None
    assert await store.get(other.id) == other


async def test_include_deleted_also_finds_what_lives(store: ContextStore) -> None:
    """The flag widens, it doesn't switch."""
    context = await store.create()
    assert await store.get(context.id, include_deleted=True) == context
