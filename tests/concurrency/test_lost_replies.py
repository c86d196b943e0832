"""The network loses a request, or the reply to what was committed: everything happens once."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    Context,
    ContextNotFoundError,
    ContextStore,
    IdempotencyConflictError,
    InvalidInputError,
    Message,
    MessageNotFoundError,
    UnavailableError,
    VersionConflictError,
)
from pgcontext.limits import ATTEMPTS_MAX
from tests.support.embedders import with_embedder
from tests.support.lossy import LossyProxy
from tests.support.promises import assert_counters_match_views, view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Family(NamedTuple):
    """A tenant's store: a parent and a fork that both went on, one that did not, a deleted one."""

    store: ContextStore
    trunk: UUID
    fork: UUID
    still: UUID
    deleted: UUID


def said(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content, "token_count": 3}


EXPIRY: Final = datetime(2040, 1, 1, tzinfo=UTC)
CHANGES: Final[dict[str, Callable[[Family], Awaitable[Any]]]] = {
    "create": lambda f: f.store.create(name="new", metadata={"a": 1}),
    "create with an id": lambda f: f.store.create(id=uuid4(), expires_at=EXPIRY),
    "update": lambda f: f.store.update(f.trunk, name="renamed", metadata={"b": 2}),
    "append": lambda f: f.store.append(f.trunk, [said("a"), said("b")]),
    "append with a key": lambda f: f.store.append(f.trunk, said("k"), idempotency_key="key"),
    "append at a version": lambda f: f.store.append(
        f.trunk, [said("a"), said("b")], expected_version=5
    ),
    "append at a version with a key": lambda f: f.store.append(
        f.trunk, said("a"), expected_version=5, idempotency_key="key"
    ),
    "append with an id": lambda f: f.store.append(f.trunk, said("i") | {"id": uuid4()}),
    "append from a generator": lambda f: f.store.append(f.trunk, (said(c) for c in "xyz")),
    "fork": lambda f: f.store.fork(f.trunk, name="forked"),
    "fork at a version": lambda f: f.store.fork(f.trunk, at_version=3, id=uuid4()),
    "merge": lambda f: f.store.merge(f.fork, into=f.still),
    "merge with rebase": lambda f: f.store.merge(f.fork, into=f.trunk, rebase=True),
    "delete": lambda f: f.store.delete(f.trunk),
    "restore": lambda f: f.store.restore(f.deleted),
    "delete_messages": lambda f: f.store.delete_messages(f.trunk, [1, 3]),
    "delete_messages inherited": lambda f: f.store.delete_messages(f.fork, [1, 5]),
    "restore_messages": lambda f: f.store.restore_messages(f.trunk, [2]),
    "embed_pending": lambda f: with_embedder(f.store).embed_pending(),
    "purge": lambda f: f.store.purge(older_than=timedelta(0)),
    "erase": lambda f: f.store.erase(f.trunk, [1]),
    "erase inherited": lambda f: f.store.erase(f.fork, [3, 5]),
    "erase everything": lambda f: f.store.erase(f.trunk),
}
READS: Final = {
    *("get", "list", "history", "iter_history", "window", "lineage", "forks", "diff", "search"),
    *("aclose", "for_tenant", "from_env"),
}


async def family(store: ContextStore) -> Family:
    """Make the same contexts for a tenant of their own."""
    store = store.for_tenant(uuid4())
    trunk = await store.create(name="trunk")
    await store.append(trunk.id, [said(f"{i}") for i in range(1, 5)])
    await store.delete_messages(trunk.id, [2])
    fork = await store.fork(trunk.id, name="fork")
    await store.append(fork.id, [said("5"), said("6")])
    still = await store.fork(trunk.id, name="still")
    await store.append(trunk.id, said("t"))
    deleted = await store.create(name="deleted")
    await with_embedder(store).append(deleted.id, said("1"), embed="later")
    await store.delete(deleted.id)
    return Family(store, trunk.id, fork.id, still.id, deleted.id)


def portrait_of_a_context(context: Context) -> dict[str, Any]:
    fields = ("name", "metadata", "message_count", "total_tokens", "latest_version", "revision")
    more = ("fork_version", "fork_revision", "expires_at")
    return {name: getattr(context, name) for name in fields + more} | {
        "deleted": context.deleted_at is not None
    }


def portrait_of_messages(messages: list[Message]) -> list[Any]:
    return [(m.version, m.content, m.token_count, m.deleted_at is not None) for m in messages]


async def portrait(store: ContextStore) -> list[Any]:
    """Everything a tenant has, without what is different in each of two equal ones."""
    await assert_counters_match_views(store)
    page = await store.list(include_deleted=True)
    return [
        (
            portrait_of_a_context(context),
            context.deleted_at is None
            and portrait_of_messages(await store.history(context.id, include_deleted=True)),
        )
        for context in page.items
    ]


def portrait_of_a_result(result: Any) -> Any:
    if isinstance(result, Context):
        return portrait_of_a_context(result)
    if isinstance(result, list):
        return portrait_of_messages(result)
    return type(result)  # a report may count what this try did, and an earlier one did it all


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[LossyProxy]:
    """A way to the test's database that loses what it is told to."""
    async with LossyProxy(database_url) as proxy:
        yield proxy


def test_every_method_that_changes_something_is_here() -> None:
    """No new method is forgotten: what doesn't only read is tried here."""
    public = {name for name in dir(ContextStore) if not name.startswith("_")}
    methods = {name for name in public if inspect.isroutine(getattr(ContextStore, name))}
    assert methods == READS | {change.split(" ")[0] for change in CHANGES}


@pytest.mark.parametrize("lost", ["request", "reply"])
async def test_a_change_whose_request_or_reply_is_lost_happens_once(
    store: ContextStore, proxy: LossyProxy, lost: Literal["request", "reply"]
) -> None:
    """Each method tries again by itself, returns what it would have, and nothing is doubled."""
    async with ContextStore(proxy.url) as unlucky:
        for name, change in CHANGES.items():
            control, trial = await family(store), await family(store)
            expected = await change(control)
            proxy.lose(lost)
            result = await change(trial._replace(store=unlucky.for_tenant(trial.store.tenant_id)))
            assert proxy.losses == 0, name
            assert portrait_of_a_result(result) == portrait_of_a_result(expected), name
            assert await portrait(trial.store) == await portrait(control.store), name


async def test_a_change_whose_replies_are_all_lost_is_unavailable_and_happens_once(
    store: ContextStore, proxy: LossyProxy
) -> None:
    """The caller learns that the outcome is unknown; it happened, and once."""
    changes = (
        *("append", "fork at a version", "merge", "merge with rebase", "delete"),
        *("delete_messages", "create"),
    )
    async with ContextStore(proxy.url) as unlucky:
        for name in changes:
            control, trial = await family(store), await family(store)
            await CHANGES[name](control)
            proxy.lose("reply", times=100)
            with pytest.raises(UnavailableError) as raised:
                await CHANGES[name](trial._replace(store=unlucky.for_tenant(trial.store.tenant_id)))
            assert raised.value.retryable
            assert (
                100 - proxy.losses <= 2 * ATTEMPTS_MAX
            )  # the statement, and asking what became of it
            assert await portrait(trial.store) == await portrait(control.store), name


async def test_the_caller_may_try_again_with_an_idempotency_key(
    store: ContextStore, proxy: LossyProxy
) -> None:
    """After an unknown outcome the same call with the same key gives the first result."""
    trial = await family(store)
    async with ContextStore(proxy.url, tenant_id=trial.store.tenant_id) as unlucky:
        proxy.lose("reply", times=100)
        with pytest.raises(UnavailableError):
            await unlucky.append(trial.trunk, [said("a"), said("b")], idempotency_key="k")
        proxy.losses = 0
        again = await unlucky.append(trial.trunk, [said("a"), said("b")], idempotency_key="k")
    assert [(m.version, m.content, m.replayed) for m in again] == [(6, "a", True), (7, "b", True)]
    assert [
        m.content for m in await view(store.for_tenant(trial.store.tenant_id), trial.trunk)
    ] == [*("1", "3", "4", "t", "a", "b")]


async def test_a_retry_does_not_take_what_others_made_for_its_own(
    store: ContextStore, proxy: LossyProxy
) -> None:
    """An id that somebody uses is refused, also when an earlier try was lost on the way."""
    f = await family(store)
    async with ContextStore(proxy.url, tenant_id=f.store.tenant_id) as unlucky:
        before = await portrait(f.store)
        first = (await view(f.store, f.trunk))[0]
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: unlucky.create(name="mine", id=f.trunk),
            lambda: unlucky.fork(f.trunk, id=f.fork, at_version=1),
            lambda: unlucky.append(f.trunk, said("mine") | {"id": first.id}),
        ]
        for call in calls:
            for lost in ("request", "reply"):
                proxy.lose(lost)
                with pytest.raises(InvalidInputError, match="exist"):
                    await call()
                proxy.losses = 0
        assert await portrait(f.store) == before


async def test_a_retry_after_a_lost_request_still_finds_the_conflict(
    store: ContextStore, proxy: LossyProxy
) -> None:
    """A compare-and-set, a key or a merge that lost to somebody else says so on the retry."""
    f = await family(store)
    await f.store.append(f.trunk, said("theirs"), idempotency_key="key")
    async with ContextStore(proxy.url, tenant_id=f.store.tenant_id) as unlucky:
        before = await portrait(f.store)
        calls: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
            (
                VersionConflictError,
                lambda: unlucky.append(f.trunk, said("x"), expected_version=5),
            ),
            (
                IdempotencyConflictError,
                lambda: unlucky.append(f.trunk, said("x"), idempotency_key="key"),
            ),
            (VersionConflictError, lambda: unlucky.merge(f.fork, into=f.trunk)),
            (ContextNotFoundError, lambda: unlucky.append(f.deleted, said("x"))),
            (MessageNotFoundError, lambda: unlucky.delete_messages(f.fork, [2])),
        ]
        for kind, call in calls:
            proxy.lose("request")
            with pytest.raises(kind):
                await call()
            assert proxy.losses == 0
        assert await portrait(f.store) == before
