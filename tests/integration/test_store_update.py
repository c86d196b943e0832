from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from pgcontext import ContextStore, InvalidInputError, LimitExceededError, limits
from tests.support.chats import offline, user

ID = UUID("01890000-0000-7000-8000-000000000001")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


async def test_update_changes_what_is_named_and_nothing_else(store: ContextStore) -> None:
    """An argument that isn't given leaves its field alone."""
    context = await store.create(name="old", metadata={"a": 1}, expires_at=NOW)
    renamed = await store.update(context.id, name="new")
    assert (renamed.name, renamed.metadata, renamed.expires_at) == ("new", {"a": 1}, NOW)
    changed = await store.update(context.id, metadata={"b": 2})
    assert (changed.name, changed.metadata, changed.expires_at) == ("new", {"b": 2}, NOW)
    assert await store.get(context.id) == changed


async def test_none_clears(store: ContextStore) -> None:
    """None is a value: no name, no metadata, no expiry."""
    context = await store.create(name="old", metadata={"a": 1}, expires_at=NOW)
    cleared = await store.update(context.id, name=None, metadata=None, expires_at=None)
    assert (cleared.name, cleared.metadata, cleared.expires_at) == (None, {}, None)


async def test_update_moves_its_time_and_neither_version_nor_revision(store: ContextStore) -> None:
    """Versions and revisions count messages, not labels."""
    context = await store.create()
    await store.append(context.id, user())
    before = await store.get(context.id)
    after = await store.update(context.id, name="new")
    assert after.updated_at > before.updated_at
    assert after.created_at == before.created_at
    assert (after.latest_version, after.revision) == (before.latest_version, before.revision)
    assert (after.message_count, after.total_tokens) == (1, 1)


async def test_update_of_nothing_returns_the_context(store: ContextStore) -> None:
    """Without arguments nothing about the context's fields changes."""
    context = await store.create(name="x", metadata={"a": 1}, expires_at=NOW)
    same = await store.update(context.id)
    assert (same.name, same.metadata, same.expires_at) == ("x", {"a": 1}, NOW)


async def test_update_of_a_parent_does_not_reach_its_forks(store: ContextStore) -> None:
    """Labels aren't inherited."""
    parent = await store.create(name="parent")
    fork = await store.fork(parent.id, name="fork")
    await store.update(parent.id, name="renamed", metadata={"a": 1})
    assert await store.get(fork.id) == fork


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": 7},
        {"name": "\0"},
        {"name": "\ud800"},
        {"metadata": []},
        {"metadata": {"k": float("nan")}},
        {"expires_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"expires_at": "tomorrow"},
    ],
    ids=repr,
)
async def test_update_refuses_what_create_refuses(arguments: dict[str, Any]) -> None:
    """The same rules, before any SQL."""
    with pytest.raises(InvalidInputError, match=next(iter(arguments))):
        await offline().update(ID, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "x" * (limits.NAME_CHARS_MAX + 1)},
        {"metadata": {"k": "x" * limits.METADATA_BYTES_MAX}},
    ],
    ids=["name", "metadata"],
)
async def test_update_has_the_bounds_of_create(arguments: dict[str, Any]) -> None:
    """The same bounds, before any SQL."""
    with pytest.raises(LimitExceededError):
        await offline().update(ID, **arguments)
