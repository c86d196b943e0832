from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    InvalidInputError,
    UnavailableError,
    VersionConflictError,
)
from pgcontext.operations import OPERATIONS, call, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

ORDER = {"role": "user", "content": "Where is my order?"}
ANSWER = {"role": "assistant", "content": "On its way."}


async def do(store: ContextStore, operation: str, **arguments: Any) -> Any:
    """Call as somebody elsewhere does: what goes in and comes out is JSON, nothing else."""
    request = json.loads(json.dumps({"operation": operation, **arguments}))
    return json.loads(json.dumps(await call(store, request)))


def test_every_method_can_be_called() -> None:
    """The table names each coroutine of the store that gives one answer, and nothing else."""
    methods = {
        name
        for name, method in inspect.getmembers(ContextStore, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert methods - {"aclose"} == OPERATIONS


async def test_a_conversation_is_written_forked_and_read(store: ContextStore) -> None:
    """Contexts are made, appended to, forked, compared, merged and read by name."""
    context = await do(store, "create", name="orders", metadata={"channel": "web"})
    [first, second] = await do(
        store, "append", context_id=context["id"], messages=[ORDER, ANSWER], idempotency_key="a"
    )
    assert (first["version"], second["version"]) == (1, 2)
    again = await do(
        store, "append", context_id=context["id"], messages=[ORDER, ANSWER], idempotency_key="a"
    )
    assert [message["replayed"] for message in again] == [True, True]
    fork = await do(store, "fork", context_id=context["id"], at_version=1)
    await do(store, "append", context_id=fork["id"], messages=ANSWER)
    difference = await do(store, "diff", a=context["id"], b=fork["id"])
    assert [len(difference["only_a"]), len(difference["only_b"])] == [1, 1]
    merged = await do(store, "merge", source_id=fork["id"], into=context["id"], rebase=True)
    assert [message["version"] for message in merged] == [3]
    history = await do(store, "history", context_id=context["id"], roles=["assistant"])
    assert [message["content"] for message in history] == ["On its way."] * 2
    window = await do(store, "window", context_id=context["id"], max_tokens=100)
    assert len(window["messages"]) == 3
    assert [each["id"] for each in await do(store, "lineage", context_id=fork["id"])] == [
        context["id"],
        fork["id"],
    ]
    assert [each["id"] for each in await do(store, "forks", context_id=context["id"])] == [
        fork["id"]
    ]
    hits = await do(store, "search", query="order", context_id=context["id"])
    assert [hit["message"]["version"] for hit in hits] == [1]


async def test_a_context_is_changed_deleted_restored_and_removed(store: ContextStore) -> None:
    """What is kept, hidden and removed follows calls by name, too."""
    context = await do(store, "create", expires_at="2100-01-01T00:00:00Z")
    context_id = context["id"]
    assert (await store.get(context_id)).expires_at == datetime(2100, 1, 1, tzinfo=UTC)
    changed = await do(store, "update", context_id=context_id, name="new", expires_at=None)
    assert (changed["name"], changed["expires_at"]) == ("new", None)
    await do(store, "append", context_id=context_id, messages=[ORDER, ANSWER])
    await do(store, "delete_messages", context_id=context_id, versions=[1])
    await do(store, "restore_messages", context_id=context_id, versions=1)
    assert await do(store, "erase", context_id=context_id, versions=[2])
    await do(store, "delete", context_id=context_id)
    page = await do(store, "list")
    assert page == {"items": [], "next_cursor": None}
    assert (await do(store, "restore", context_id=context_id))["message_count"] == 1
    await do(store, "delete", context_id=context_id)
    report = await do(store, "purge", older_than=0)
    assert report["contexts"] == 1
    with pytest.raises(ContextNotFoundError):
        await do(store, "get", context_id=context_id, include_deleted=True)


async def test_a_call_names_its_tenant(store: ContextStore) -> None:
    """With tenant_id a call is another tenant's, who sees nothing of the rest."""
    tenant = uuid4()
    context = await do(store, "create", tenant_id=str(tenant))
    assert UUID(context["tenant_id"]) == tenant
    with pytest.raises(ContextNotFoundError):
        await do(store, "get", context_id=context["id"])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "operation must be one of: append, create"),
        ({"operation": ["append"]}, "operation must be one of"),
        ({"operation": "aclose"}, "operation must be one of"),
        ({"operation": "_fetch"}, "operation must be one of"),
        ({"operation": "iter_history"}, "operation must be one of"),
        ({"operation": "get"}, "get needs context_id"),
        ({"operation": "append", "context_id": "x"}, "append needs messages"),
        ({"operation": "get", "context_id": "x", "colour": 1}, "get takes context_id, include_del"),
        ({"operation": "get", "context_id": "x"}, "context_id must be a UUID"),
        ({"operation": "list", "tenant_id": "x"}, "tenant_id must be a UUID"),
        ({"operation": "create", "expires_at": "tomorrow"}, "expires_at must be a moment"),
        ({"operation": "create", "expires_at": 7}, "expires_at must be a moment"),
        ({"operation": "create", "expires_at": "2030-01-01T00:00:00"}, "time zone"),
        ({"operation": "purge", "older_than": "1 day"}, "older_than must be a number of seconds"),
        ({"operation": "purge", "older_than": True}, "older_than must be a number of seconds"),
        ({"operation": "purge", "older_than": 1e300}, "older_than must be a number of seconds"),
        ({"operation": "purge", "older_than": float("nan")}, "older_than must be a number"),
        ({"operation": "purge", "older_than": None}, "older_than must be a number of seconds"),
        ({"operation": "purge", "older_than": -1}, "older_than must be a timedelta, 0 or more"),
    ],
)
async def test_a_call_that_is_wrong_is_refused_without_sql(request_: Any, sentence: str) -> None:
    """What isn't a call of a method is refused in a sentence; the database isn't even there."""
    store = ContextStore("postgresql://someone:secret@127.0.0.1:1/nowhere")
    with pytest.raises(InvalidInputError, match=sentence):
        await call(store, request_)


def test_a_refusal_is_a_type_and_a_sentence() -> None:
    """An error becomes JSON: its class and its sentence; a conflict says both versions."""
    missing = UUID(int=7)
    assert refusal(ContextNotFoundError(missing)) == {
        "error": {"type": "ContextNotFoundError", "detail": f"Context {missing} was not found."}
    }
    conflict = refusal(VersionConflictError(1, 3))["error"]
    assert (conflict["type"], conflict["expected"], conflict["actual"]) == (
        "VersionConflictError",
        1,
        3,
    )


def test_a_refusal_names_a_class_that_callers_know() -> None:
    """A private kind of a public error goes by the public name."""

    class _OverdueError(UnavailableError):
        pass

    assert refusal(_OverdueError("too late"))["error"]["type"] == "UnavailableError"


async def test_calls_are_refused_as_the_method_refuses(
    make_store: Callable[..., ContextStore],
) -> None:
    """An error of the method itself comes through unchanged."""
    store = make_store()
    context = await do(store, "create")
    with pytest.raises(VersionConflictError) as refused:
        await do(store, "append", context_id=context["id"], messages=ORDER, expected_version=4)
    assert refused.value.actual == 0
