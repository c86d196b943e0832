"""Two tenants in one database: whatever one does, the other's rows stay and stay unseen."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

import pytest

from pgcontext import ContextNotFoundError, ContextStore
from tests.support import DIMENSIONS
from tests.support.promises import dump, view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HELLO: Final = {"role": "user", "content": "hello amber", "token_count": 2}
VECTOR: Final = [1.0] * DIMENSIONS


class Strangers(NamedTuple):
    """A tenant's store, its own context, and contexts that belong to somebody else."""

    store: ContextStore
    own: UUID
    foreign: UUID
    deleted: UUID


async def read_all(store: ContextStore, context_id: UUID) -> Any:
    return [message async for message in store.iter_history(context_id)]


# Every way to hand a context's id to a method; a method may have several.
CALLS: Final[dict[str, list[Callable[[Strangers, UUID], Awaitable[Any]]]]] = {
    "get": [
        lambda my, theirs: my.store.get(theirs),
        lambda my, theirs: my.store.get(theirs, include_deleted=True),
    ],
    "update": [
        lambda my, theirs: my.store.update(theirs, name="mine now"),
        lambda my, theirs: my.store.update(theirs, metadata={"mine": True}),
        lambda my, theirs: my.store.update(theirs),
    ],
    "append": [
        lambda my, theirs: my.store.append(theirs, HELLO),
        lambda my, theirs: my.store.append(theirs, [HELLO, HELLO], idempotency_key="k"),
        lambda my, theirs: my.store.append(theirs, HELLO, expected_version=3),
        lambda my, theirs: my.store.append(theirs, HELLO, expected_version=99),
    ],
    "history": [
        lambda my, theirs: my.store.history(theirs),
        lambda my, theirs: my.store.history(theirs, at_version=0, include_deleted=True),
        lambda my, theirs: my.store.history(theirs, after=0, limit=1),
        lambda my, theirs: my.store.history(theirs, at_version=99),
    ],
    "iter_history": [lambda my, theirs: read_all(my.store, theirs)],
    "window": [
        lambda my, theirs: my.store.window(theirs, max_tokens=1_000),
        lambda my, theirs: my.store.window(theirs, max_tokens=1, at_version=1),
    ],
    "fork": [
        lambda my, theirs: my.store.fork(theirs),
        lambda my, theirs: my.store.fork(theirs, at_version=0),
        lambda my, theirs: my.store.fork(theirs, at_version=99),
    ],
    "lineage": [lambda my, theirs: my.store.lineage(theirs)],
    "forks": [
        lambda my, theirs: my.store.forks(theirs),
        lambda my, theirs: my.store.forks(theirs, recursive=True),
    ],
    "diff": [
        lambda my, theirs: my.store.diff(my.own, theirs),
        lambda my, theirs: my.store.diff(theirs, my.own),
        lambda my, theirs: my.store.diff(theirs, theirs),
    ],
    "merge": [
        lambda my, theirs: my.store.merge(my.own, into=theirs),
        lambda my, theirs: my.store.merge(theirs, into=my.own),
        lambda my, theirs: my.store.merge(theirs, into=my.own, rebase=True),
        lambda my, theirs: my.store.merge(my.own, into=theirs, rebase=True),
        lambda my, theirs: my.store.merge(theirs, into=theirs, rebase=True),
    ],
    "delete": [lambda my, theirs: my.store.delete(theirs)],
    "restore": [lambda my, theirs: my.store.restore(theirs)],
    "delete_messages": [
        lambda my, theirs: my.store.delete_messages(theirs, [1]),
        lambda my, theirs: my.store.delete_messages(theirs, [99]),
    ],
    "restore_messages": [
        lambda my, theirs: my.store.restore_messages(theirs, [2]),
        lambda my, theirs: my.store.restore_messages(theirs, [99]),
    ],
    "search": [
        lambda my, theirs: my.store.search("amber", context_id=theirs, mode="text"),
        lambda my, theirs: my.store.search(VECTOR, context_id=theirs),
        lambda my, theirs: my.store.search(VECTOR, context_id=theirs, mode="vector", at_version=1),
    ],
    "erase": [
        lambda my, theirs: my.store.erase(theirs),
        lambda my, theirs: my.store.erase(theirs, [1]),
        lambda my, theirs: my.store.erase(theirs, [99]),
    ],
}
# Methods that are handed no context's id; what they do about another tenant has its own tests.
WITHOUT_AN_ID: Final = {
    "aclose",
    "create",
    "embed_pending",
    "for_tenant",
    "from_env",
    "list",
    "purge",
}


@pytest.fixture
async def strangers(store: ContextStore) -> Strangers:
    """One tenant with a context, and another with a family of them, some of it hidden."""
    one, two = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    own = await one.create(name="own")
    await one.append(own.id, HELLO)
    foreign = await two.create(name="theirs", metadata={"team": "red"})
    await two.append(foreign.id, [HELLO | {"embedding": VECTOR}] * 3)
    await two.delete_messages(foreign.id, [2])
    await two.fork(foreign.id)
    deleted = await two.fork(foreign.id, name="deleted")
    await two.append(deleted.id, HELLO)
    await two.delete(deleted.id)
    return Strangers(one, own.id, foreign.id, deleted.id)


def public_methods() -> set[str]:
    return {
        name for name, _ in inspect.getmembers(ContextStore, callable) if not name.startswith("_")
    }


def test_every_method_is_in_the_matrix() -> None:
    """A new method cannot be forgotten: it is in the matrix, or it is handed no id."""
    assert public_methods() == CALLS.keys() | WITHOUT_AN_ID
    for name in WITHOUT_AN_ID:
        parameters = inspect.signature(getattr(ContextStore, name)).parameters
        assert "context_id" not in parameters


@pytest.mark.parametrize("method", CALLS)
async def test_another_tenants_context_is_not_found_and_nothing_changes(
    strangers: Strangers, database_url: str, method: str
) -> None:
    """Each method says of another tenant's context what it says of one that never was."""
    before = await dump(database_url)
    for call in CALLS[method]:
        for theirs in (strangers.foreign, strangers.deleted, uuid4()):
            with pytest.raises(ContextNotFoundError) as raised:
                await call(strangers, theirs)
            assert str(raised.value) == str(ContextNotFoundError(theirs))
    assert await dump(database_url) == before


async def test_listings_and_searches_show_nothing_of_another_tenant(strangers: Strangers) -> None:
    """Without an id too, what comes back is one's own."""
    store, own, _, _ = strangers
    page = await store.list(include_deleted=True)
    assert [context.id for context in page.items] == [own]
    assert (await store.list(metadata={"team": "red"})).items == []
    assert [h.message.context_id for h in await store.search("amber", mode="text")] == [own]
    assert await store.search(VECTOR) == []
    assert await store.search("amber", mode="text", metadata={"team": "red"}) == []


async def test_a_cursor_of_one_tenant_shows_the_other_nothing(store: ContextStore) -> None:
    """A cursor says where to go on, not whose contexts to show."""
    one, two = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    for tenant in (two, one, two):
        for _ in range(3):
            await tenant.create()
    cursor = (await one.list(limit=1)).next_cursor
    theirs = await two.list(limit=50, cursor=cursor)
    assert {context.tenant_id for context in theirs.items} == {two.tenant_id}


async def test_purge_removes_nothing_of_another_tenant(
    strangers: Strangers, database_url: str
) -> None:
    """What one tenant deleted, another tenant's purge leaves alone."""
    before = await dump(database_url)
    report = await strangers.store.purge(older_than=timedelta(0))
    assert (report.contexts, report.messages) == (0, 0)
    assert await dump(database_url) == before


async def test_an_id_that_another_tenant_uses_is_free(strangers: Strangers) -> None:
    """Ids are a tenant's own: making the same one fails for nobody and tells nothing."""
    store, own, foreign, _ = strangers
    created = await store.create(id=foreign, name="mine")
    assert (created.id, created.name, created.message_count) == (foreign, "mine", 0)
    await store.append(foreign, HELLO)
    assert len(await view(store, foreign)) == 1
    forked = await store.fork(own, id=strangers.deleted)
    assert forked.parent_id == own


async def test_a_message_id_that_another_tenant_uses_is_free(store: ContextStore) -> None:
    """The same for messages whose ids are given."""
    one, two = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    message_id = uuid4()
    for tenant in (one, two):
        context = await tenant.create()
        written = await tenant.append(context.id, HELLO | {"id": message_id})
        assert [message.id for message in written] == [message_id]
        assert [message.id for message in await view(tenant, context.id)] == [message_id]


async def test_one_idempotency_key_serves_two_tenants(store: ContextStore) -> None:
    """Keys are per context, and contexts with one id in two tenants are two contexts."""
    one, two = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    context_id = (await one.create()).id
    await two.create(id=context_id)
    first = await one.append(context_id, HELLO, idempotency_key="k")
    other = await two.append(context_id, [HELLO, HELLO], idempotency_key="k")
    assert (len(first), len(other)) == (1, 2)
    assert not any(message.replayed for message in other)


async def test_the_same_ids_in_two_tenants_live_apart(store: ContextStore) -> None:
    """Two families with the same ids: deletes, erasures and purges of one leave the other as is."""
    one, two = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    parent, fork = uuid4(), uuid4()
    for tenant in (one, two):
        await tenant.create(id=parent)
        await tenant.append(parent, [HELLO] * 4)
        await tenant.fork(parent, id=fork)
        await tenant.append(fork, HELLO)
    before = [await view(two, parent), await view(two, fork)]
    contexts = [await two.get(parent), await two.get(fork)]
    await one.delete_messages(fork, [1, 2])
    await one.erase(parent, [3])
    await one.merge(fork, into=parent, rebase=True)
    await one.delete(parent)
    await one.delete(fork)
    await one.purge(older_than=timedelta(0))
    assert [await view(two, parent), await view(two, fork)] == before
    assert [await two.get(parent), await two.get(fork)] == contexts
    assert (await one.list(include_deleted=True)).items == []
