from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import ContextStore, InvalidInputError, LimitExceededError, limits
from tests.support.chats import offline

NOW = datetime(2030, 1, 1, tzinfo=UTC)
UNICODE = "naïve 東京 👩‍👩‍👧 \u202e ''\"\\ %s $1 {} \x01 \n"


async def test_a_new_context_is_empty_and_belongs_to_the_nil_tenant(store: ContextStore) -> None:
    """Without arguments everything has its documented beginning."""
    before = datetime.now(UTC) - timedelta(minutes=1)
    context = await store.create()
    assert context.tenant_id == UUID(int=0)
    assert context.id.version == 7
    assert (context.name, context.metadata) == (None, {})
    assert (context.message_count, context.total_tokens) == (0, 0)
    assert (context.latest_version, context.revision) == (0, 0)
    assert (context.parent_id, context.fork_version, context.fork_revision) == (None, None, None)
    assert (context.expires_at, context.deleted_at) == (None, None)
    assert before < context.created_at == context.updated_at
    assert context.created_at.utcoffset() == timedelta(0)
    assert await store.get(context.id) == context


async def test_what_is_given_comes_back(store: ContextStore) -> None:
    """Name, metadata, expiry and id are kept exactly."""
    id = uuid4()
    metadata = {"user": 7, "tags": ["a", "ü"], "deep": {"x": None, "big": 2**53, "f": 0.1}}
    context = await store.create(name=UNICODE, metadata=metadata, expires_at=NOW, id=id)
    assert (context.id, context.name, context.metadata) == (id, UNICODE, metadata)
    assert context.expires_at == NOW
    assert await store.get(id) == context


async def test_an_id_may_be_text_and_an_expiry_in_any_zone(store: ContextStore) -> None:
    """The text form of a UUID is a UUID, and times come back in UTC."""
    id, tokyo = uuid4(), timezone(timedelta(hours=9))
    context = await store.create(id=str(id), expires_at=NOW.astimezone(tokyo))
    assert context.id == id
    assert context.expires_at == NOW
    assert context.expires_at is not None
    assert context.expires_at.utcoffset() == timedelta(0)


async def test_the_same_id_may_be_used_by_two_tenants_and_not_twice_by_one(
    store: ContextStore,
) -> None:
    """An id is unique within a tenant, and a second use changes nothing."""
    id = uuid4()
    mine = await store.create(name="first", id=id)
    theirs = await store.for_tenant(uuid4()).create(name="theirs", id=id)
    assert theirs.tenant_id != mine.tenant_id
    with pytest.raises(InvalidInputError):
        await store.create(name="second", id=id)
    assert await store.get(id) == mine


async def test_name_and_metadata_may_be_as_large_as_their_bounds(store: ContextStore) -> None:
    """At the bound everything works, in characters and in bytes."""
    name = "字" * limits.NAME_CHARS_MAX
    metadata = {"k": "x" * (limits.METADATA_BYTES_MAX - len('{"k":""}'))}
    context = await store.create(name=name, metadata=metadata)
    assert (context.name, context.metadata) == (name, metadata)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "x" * (limits.NAME_CHARS_MAX + 1)},
        {"metadata": {"k": "x" * (limits.METADATA_BYTES_MAX - len('{"k":""}') + 1)}},
        {"metadata": {"k": "字" * (limits.METADATA_BYTES_MAX // 3)}},
    ],
)
async def test_above_a_bound_is_refused(arguments: dict[str, Any]) -> None:
    """A larger value is refused before any SQL, never cut."""
    with pytest.raises(LimitExceededError):
        await offline().create(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": 7},
        {"name": b"bytes"},
        {"name": "nul \0"},
        {"name": "surrogate \ud800"},
        {"metadata": ["a", "list"]},
        {"metadata": "{}"},
        {"metadata": 7},
        {"metadata": {1: "key"}},
        {"metadata": {"k": {2: "key"}}},
        {"metadata": {"k": 10**5_000}},
        {"metadata": {"k": (1, 2)}},
        {"metadata": {"k": {1, 2}}},
        {"metadata": {"k": b"bytes"}},
        {"metadata": {"k": float("nan")}},
        {"metadata": {"k": float("-inf")}},
        {"metadata": {"k": datetime.now(UTC)}},
        {"metadata": {"k": uuid4()}},
        {"metadata": {"k": object()}},
        {"metadata": {"k": "nul \0"}},
        {"metadata": {"nul \0": "v"}},
        {"metadata": {"k": "surrogate \udfff"}},
        {"metadata": {"surrogate \udfff": "v"}},
        {"expires_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"expires_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))},
        {"expires_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))},
        {"expires_at": date(2030, 1, 1)},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"expires_at": 1_900_000_000},
        {"id": "not-a-uuid"},
        {"id": ""},
        {"id": 7},
        {"id": b"0" * 16},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
async def test_what_cannot_be_stored_is_refused(arguments: dict[str, Any]) -> None:
    """Each argument says what it accepts, before any SQL."""
    with pytest.raises(InvalidInputError) as caught:
        await offline().create(**arguments)
    assert next(iter(arguments)) in str(caught.value)


async def test_a_deeply_nested_metadata_is_refused() -> None:
    """Depth has a bound too, and a cycle is only infinite depth."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"k": deep}
    for metadata in (cycle, deep):
        with pytest.raises(InvalidInputError):
            await offline().create(metadata=metadata)


async def test_the_callers_metadata_stays_the_callers(store: ContextStore) -> None:
    """Changing the mapping afterwards changes neither the result nor what is stored."""
    metadata = {"k": [1]}
    context = await store.create(metadata=metadata)
    metadata["k"].append(2)
    assert context.metadata == {"k": [1]}
    assert (await store.get(context.id)).metadata == {"k": [1]}
