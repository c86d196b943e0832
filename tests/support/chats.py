"""Messages, vectors and calls that many tests of the store share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from pgcontext import ContextStore, Message
from tests.support import DIMENSIONS

Json = dict[str, Any]
# A machine without a server: whatever is refused there was refused before any SQL.
NOWHERE = "postgresql://nobody:hunter2@localhost:1/nothing"


def offline() -> ContextStore:
    """Make a store that can reach no database."""
    return ContextStore.from_env(url=NOWHERE, dimensions=DIMENSIONS)


def user(content: str = "hello", **fields: Any) -> Json:
    """Make a user's message of one token."""
    return {"role": "user", "content": content, "token_count": 1, **fields}


def users(count: int, start: int = 1) -> list[Json]:
    """Make numbered messages, "message 1" and so on."""
    return [user(f"message {number}") for number in range(start, start + count)]


def call(*ids: str, **fields: Any) -> Json:
    """Make an assistant's message that calls a tool once for each id."""
    calls = [
        {"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for id in ids
    ]
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": calls,
        "token_count": 1,
        **fields,
    }


def result(id: str, content: str = "found", **fields: Any) -> Json:
    """Make a tool's answer to a call."""
    return {
        "role": "tool",
        "tool_call_id": id,
        "name": "look",
        "content": content,
        "token_count": 1,
        **fields,
    }


def axis(number: int, *, towards: int | None = None, by: float = 0.0) -> list[float]:
    """Make a unit vector along one axis, leaning `by` towards another."""
    vector = [0.0] * DIMENSIONS
    vector[number] = 1.0
    if towards is not None:
        vector[towards] = by
    return vector


def versions(messages: Iterable[Message]) -> list[int]:
    """Say which versions came."""
    return [message.version for message in messages]


def contents(messages: Iterable[Message]) -> list[str | None]:
    """Say what was said."""
    return [message.content for message in messages]


async def drained(messages: AsyncIterator[Message]) -> list[Message]:
    """Read an iterator to its end."""
    return [message async for message in messages]


# Every method that takes a context, with the least it needs besides; `other` is a second context.
CALLS: dict[str, Callable[[ContextStore, Any, Any], Awaitable[Any]]] = {
    "get": lambda store, id, _: store.get(id),
    "get deleted": lambda store, id, _: store.get(id, include_deleted=True),
    "update": lambda store, id, _: store.update(id, name="renamed"),
    "append": lambda store, id, _: store.append(id, user()),
    "history": lambda store, id, _: store.history(id),
    "iter_history": lambda store, id, _: drained(store.iter_history(id)),
    "window": lambda store, id, _: store.window(id, max_tokens=100),
    "fork": lambda store, id, _: store.fork(id),
    "lineage": lambda store, id, _: store.lineage(id),
    "forks": lambda store, id, _: store.forks(id),
    "diff a": lambda store, id, other: store.diff(id, other),
    "diff b": lambda store, id, other: store.diff(other, id),
    "merge source": lambda store, id, other: store.merge(id, into=other),
    "merge into": lambda store, id, other: store.merge(other, into=id),
    "delete": lambda store, id, _: store.delete(id),
    "restore": lambda store, id, _: store.restore(id),
    "delete_messages": lambda store, id, _: store.delete_messages(id, [1]),
    "restore_messages": lambda store, id, _: store.restore_messages(id, [1]),
    "search text": lambda store, id, _: store.search("hello", context_id=id),
    "search vector": lambda store, id, _: store.search(axis(0), context_id=id),
    "erase": lambda store, id, _: store.erase(id),
    "erase messages": lambda store, id, _: store.erase(id, [1]),
}
# What still finds a soft-deleted context.
FIND_DELETED = {"get deleted", "restore", "erase", "erase messages"}
