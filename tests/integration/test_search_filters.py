import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from pgcontext import (
    Context,
    ContextStore,
    Hit,
    InvalidInputError,
    LimitExceededError,
    limits,
)
from tests.support.chats import axis, offline, user, versions

ID = UUID("01890000-0000-7000-8000-000000000001")
QUERIES: list[Any] = ["apple", axis(0)]


def said(hits: list[Hit]) -> set[str | None]:
    """Say what was found, in any order."""
    return {hit.message.content for hit in hits}


def apple(name: str, **fields: Any) -> dict[str, Any]:
    """Make a message that both queries find."""
    return {**user(f"apple {name}", embedding=axis(0)), **fields}


async def talk(store: ContextStore, batch: list[dict[str, Any]], **fields: Any) -> Context:
    """Make a context of these messages."""
    context = await store.create(**fields)
    await store.append(context.id, batch)
    return await store.get(context.id)


async def test_roles_filter(store: ContextStore) -> None:
    """One role, several, or one that nobody has."""
    context = await talk(
        store,
        [
            apple("u"),
            apple("a", role="assistant"),
            apple("s", role="system"),
            apple("t", role="tool", tool_call_id="c"),
        ],
    )
    for query in QUERIES:
        for scope in (None, context.id):
            hits = await store.search(query, context_id=scope, roles=["user", "tool"])
            assert said(hits) == {"apple u", "apple t"}
            hits = await store.search(query, context_id=scope, roles=["developer"])
            assert hits == []


async def test_the_model_that_wrote_it_filters(store: ContextStore) -> None:
    """Exactly that name; messages without one don't match."""
    context = await talk(store, [apple("1", model="gpt"), apple("2", model="gpt-2"), apple("3")])
    for query in QUERIES:
        for scope in (None, context.id):
            hits = await store.search(query, context_id=scope, model="gpt")
            assert said(hits) == {"apple 1"}


async def test_time_filters_from_since_until_before_until(store: ContextStore) -> None:
    """since is included, until is not; any time zone will do."""
    context = await store.create()
    times = []
    for name in "123":
        (message,) = await store.append(context.id, apple(name))
        times.append(message.created_at)
        await asyncio.sleep(0.002)
    tokyo = times[1].astimezone(timezone(timedelta(hours=9)))
    for query in QUERIES:
        for scope in (None, context.id):

            async def between(
                since: datetime | None,
                until: datetime | None,
                query: Any = query,
                scope: UUID | None = scope,
            ) -> set[str | None]:
                hits = await store.search(query, context_id=scope, since=since, until=until)
                return said(hits)

            assert await between(tokyo, None) == {"apple 2", "apple 3"}
            assert await between(None, tokyo) == {"apple 1"}
            assert await between(times[1], times[2]) == {"apple 2"}
            assert await between(times[2], times[0]) == set()


async def test_metadata_of_the_context_filters(store: ContextStore) -> None:
    """By containment; it is the context's metadata that counts, not the message's."""
    one = await talk(store, [apple("1", user=7)], metadata={"user": 1, "tags": ["a", "b"]})
    await talk(store, [apple("2")], metadata={"user": 2})
    await talk(store, [apple("3")])
    for query in QUERIES:
        assert said(await store.search(query, metadata={"user": 1})) == {"apple 1"}
        assert said(await store.search(query, metadata={"tags": ["b"]})) == {"apple 1"}
        assert said(await store.search(query, metadata={"user": 7})) == set()
        assert len(await store.search(query, metadata={})) == 3
        hits = await store.search(query, context_id=one.id, metadata={"user": 1})
        assert said(hits) == {"apple 1"}
        assert await store.search(query, context_id=one.id, metadata={"user": 2}) == []


async def test_metadata_of_the_searched_fork_counts_for_what_it_inherits(
    store: ContextStore,
) -> None:
    """Within a context there is one context: the one that is searched."""
    root = await talk(store, [apple("1")], metadata={"kind": "root"})
    fork = await store.fork(root.id, metadata={"kind": "fork"})
    for query in QUERIES:
        hits = await store.search(query, context_id=fork.id, metadata={"kind": "fork"})
        assert said(hits) == {"apple 1"}
        assert said(await store.search(query, metadata={"kind": "root"})) == {"apple 1"}
        assert await store.search(query, metadata={"kind": "fork"}) == []


async def test_a_selective_filter_still_finds_as_many_as_there_are(store: ContextStore) -> None:
    """Twelve messages far from the query among a thousand near ones."""
    near = [apple(str(n), embedding=axis(0, towards=1, by=0.01 * n)) for n in range(1, 1_001)]
    far = [
        apple(f"rare {n}", embedding=axis(2, towards=3, by=0.1 * n), model="rare")
        for n in range(12)
    ]
    context = await talk(store, near)
    await store.append(context.id, far)
    for query in QUERIES:
        for scope in (None, context.id):
            hits = await store.search(query, context_id=scope, model="rare", limit=10)
            assert len(hits) == 10
            assert all(hit.message.model == "rare" for hit in hits)


async def test_filters_combine(store: ContextStore) -> None:
    """All of them have to match."""
    context = await talk(
        store,
        [apple("1", model="m"), apple("2", model="m", role="assistant"), apple("3")],
        metadata={"k": 1},
    )
    for query in QUERIES:
        hits = await store.search(
            query,
            context_id=context.id,
            model="m",
            roles=["user"],
            metadata={"k": 1},
            since=context.created_at,
            at_version=2,
        )
        assert said(hits) == {"apple 1"}


async def test_neighbors_are_the_messages_shown_around_the_hit(store: ContextStore) -> None:
    """On each side as many as asked for, hidden ones skipped, through the lineage."""
    root = await talk(store, [user(f"root {n}") for n in range(1, 6)])
    await store.delete_messages(root.id, [4])
    fork = await store.fork(root.id)
    await store.append(fork.id, [apple("hit"), user("after 7"), user("after 8"), user("after 9")])
    await store.delete_messages(fork.id, [7])
    for query in QUERIES:
        (hit,) = await store.search(query, context_id=fork.id, neighbors=2)
        assert hit.message.version == 6
        assert versions(hit.neighbors) == [3, 5, 8, 9]
        assert [message.context_id for message in hit.neighbors] == [root.id] * 2 + [fork.id] * 2
        (hit,) = await store.search(query, context_id=fork.id, neighbors=20)
        assert versions(hit.neighbors) == [1, 2, 3, 5, 8, 9]
        (hit,) = await store.search(query, context_id=fork.id, at_version=6, neighbors=1)
        assert versions(hit.neighbors) == [5]
        (hit,) = await store.search(query, neighbors=1)
        assert versions(hit.neighbors) == [5, 8]


async def test_neighbors_ignore_the_filters_and_may_be_hits_themselves(
    store: ContextStore,
) -> None:
    """They are context for the hit, whatever they are."""
    context = await talk(store, [apple("1"), user("between", role="user"), apple("3")])
    for query in QUERIES:
        hits = await store.search(query, context_id=context.id, neighbors=2, roles=["user"])
        around = {hit.message.version: versions(hit.neighbors) for hit in hits}
        assert around[1] == [2, 3]
        assert around[3] == [1, 2]


@pytest.mark.parametrize("query", QUERIES, ids=["text", "vector"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", 0),
        ("limit", -1),
        ("limit", True),
        ("limit", 2.5),
        ("limit", None),
        ("neighbors", -1),
        ("neighbors", True),
        ("neighbors", 1.5),
        ("neighbors", None),
        ("diversity", -0.1),
        ("diversity", 1.1),
        ("diversity", float("nan")),
        ("diversity", True),
        ("diversity", "much"),
        ("max_distance", -0.1),
        ("max_distance", 2.1),
        ("max_distance", float("nan")),
        ("max_distance", float("inf")),
        ("max_distance", True),
        ("max_distance", "near"),
        ("role", "nobody"),
        ("role", ["user", "nobody"]),
        ("role", [None]),
        ("role", 7),
        ("since", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("since", datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))),
        ("until", datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))),
        ("since", "2026-01-01T00:00:00Z"),
        ("since", 0),
        ("until", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("until", "tomorrow"),
        ("metadata", []),
        ("metadata", "k"),
        ("metadata", {"k": float("nan")}),
        ("metadata", {1: 2}),
        ("metadata", {"k": "\0"}),
        ("model", 7),
        ("model", "\0"),
        ("model", "\ud800"),
        ("at_version", -1),
        ("at_version", True),
        ("at_version", "1"),
        ("context_id", "x"),
        ("context_id", 7),
    ],
    ids=repr,
)
async def test_a_filter_that_cannot_be_is_refused(query: Any, name: str, value: Any) -> None:
    """Before any SQL, by its name."""
    arguments = {"roles" if name == "role" else name: value}
    if name == "at_version":
        arguments["context_id"] = ID
    with pytest.raises(InvalidInputError, match=name):
        await offline().search(query, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": limits.SEARCH_HITS_MAX + 1},
        {"neighbors": limits.SEARCH_NEIGHBORS_MAX + 1},
        {"model": "m" * (limits.MODEL_CHARS_MAX + 1)},
        {"metadata": {"k": "x" * limits.METADATA_BYTES_MAX}},
        {"at_version": 2**63, "context_id": ID},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
async def test_a_filter_above_its_bound_is_refused(arguments: dict[str, Any]) -> None:
    """Never clamped."""
    with pytest.raises(LimitExceededError):
        await offline().search("apple", **arguments)


async def test_a_version_needs_a_context() -> None:
    """A version is a place in one context's view."""
    with pytest.raises(InvalidInputError, match="context_id"):
        await offline().search("apple", at_version=3)
