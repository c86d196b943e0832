"""What each method costs on the wire: counted by a proxy, and written down in docs/wire.md."""

from __future__ import annotations

import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg.connection
import pytest

from pgcontext import ContextStore
from tests.support import DIMENSIONS
from tests.support.embedders import owe_and_embed, with_embedder
from tests.support.methods import ASKING
from tests.support.proxy import Proxy, Traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from pgcontext import Hit

PAGE: Final = Path(__file__).parents[2] / "docs" / "wire.md"
NAME: Final = "PGCONTEXT_WIRE"
WRITE: Final = NAME in os.environ  # before the environment is made a test's
ROW: Final = re.compile(r"(?m)^\| `.*\n")

SAID: Final = {"role": "user", "content": "hello amber", "token_count": 2}
VECTOR: Final = [0.5] * DIMENSIONS
NAMED_FROM: Final = 0x1000  # names of prepared statements have a constant length from here


class Mine(NamedTuple):
    """A store, and a context with four messages of which another is a fork with two more."""

    store: ContextStore
    parent: UUID
    child: UUID


class Cost(NamedTuple):
    """Traffic of one call, with a statement cache that is warm, and without one."""

    warm: Traffic
    uncached: Traffic


async def read_all(mine: Mine) -> list[Any]:
    return [message async for message in mine.store.iter_history(mine.child)]


def embedded() -> dict[str, Any]:
    return {**SAID, "embedding": VECTOR, "embedding_model": "words"}


def hybrid(mine: Mine, **arguments: Any) -> Awaitable[list[Hit]]:
    """Search by text and by the vector that an embedder makes of it, here without a wire."""
    return with_embedder(mine.store).search("amber", mode="hybrid", **arguments)


# What is shown in the table, and the call.
CALLS: Final[dict[str, Callable[[Mine], Awaitable[Any]]]] = {
    "create()": lambda my: my.store.create(),
    "get(id)": lambda my: my.store.get(my.child),
    "list(limit=1)": lambda my: my.store.list(limit=1),
    "update(id, name=…)": lambda my: my.store.update(my.child, name="amber"),
    "append(id, message)": lambda my: my.store.append(my.parent, SAID),
    "append(id, message, idempotency_key=…)": lambda my: my.store.append(
        my.parent, SAID, idempotency_key=os.urandom(8).hex()
    ),
    "append(id, ten messages)": lambda my: my.store.append(my.parent, [SAID] * 10),
    "append(id, message with an embedding)": lambda my: my.store.append(my.parent, embedded()),
    "history(id)": lambda my: my.store.history(my.child),
    "history(id, after=0)": lambda my: my.store.history(my.child, after=0),
    "iter_history(id), one page": read_all,
    "window(id, max_tokens=8)": lambda my: my.store.window(my.child, max_tokens=8),
    "fork(id)": lambda my: my.store.fork(my.child),
    "fork(id, at_version=2)": lambda my: my.store.fork(my.child, at_version=2),
    "lineage(id)": lambda my: my.store.lineage(my.child),
    "forks(id)": lambda my: my.store.forks(my.parent),
    "diff(a, b)": lambda my: my.store.diff(my.parent, my.child),
    "merge(id, into=…)": lambda my: my.store.merge(my.child, into=my.parent, rebase=True),
    "delete_messages(id, [5])": lambda my: my.store.delete_messages(my.child, [5]),
    "restore_messages(id, [5])": lambda my: my.store.restore_messages(my.child, [5]),
    "search(text, context_id=id)": lambda my: my.store.search("amber", context_id=my.child),
    "search(vector, context_id=id)": lambda my: my.store.search(VECTOR, context_id=my.child),
    "search(text and vector, context_id=id)": lambda my: hybrid(my, context_id=my.child),
    "search(text)": lambda my: my.store.search("amber", limit=1),
    "search(vector)": lambda my: my.store.search(VECTOR, limit=1),
    "search(text and vector)": lambda my: hybrid(my, limit=1),
    "delete(id)": lambda my: my.store.delete(my.child),
    "restore(id)": lambda my: my.store.restore(my.child),
}
# Their docstrings say that they send several statements, and how many that is depends on the work.
SEVERAL: Final[dict[str, Callable[[Mine], Awaitable[Any]]]] = {
    "embed_pending()": lambda my: owe_and_embed(my.store, my.parent),
    "erase(id, 2)": lambda my: my.store.erase(my.child, 2),
    "purge(older_than=…)": lambda my: my.store.purge(older_than=timedelta(days=1)),
}


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A way to the test's database that counts."""
    async with Proxy(database_url) as counting:
        yield counting


async def family(url: str, **settings: Any) -> Mine:
    """Make the contexts anew, over a single connection."""
    store = ContextStore.from_env(url=url, pool_size=1, embedding_model="words", **settings)
    return await family_of(store)


async def family_of(store: ContextStore) -> Mine:
    """Make the contexts anew, of a store."""
    parent = await store.create(name="amber")
    await store.append(parent.id, [embedded()] * 4)
    child = await store.fork(parent.id)
    await store.append(child.id, [embedded()] * 2)
    return Mine(store, parent.id, child.id)


async def traffic(proxy: Proxy, call: Awaitable[Any]) -> Traffic:
    """Count what one call makes pass."""
    counted = proxy.traffic = Traffic()
    await call
    proxy.traffic = Traffic()
    return counted


async def cost(proxy: Proxy, call: Callable[[Mine], Awaitable[Any]]) -> Cost:
    """Count one call that has been made before, with the cache on, then off."""
    counted: list[Traffic] = []
    for cache in ("on", "off"):
        mine = await family(proxy.url, statement_cache=cache)
        async with mine.store:
            await call(await family_of(mine.store))
            counted.append(await traffic(proxy, call(mine)))
    return Cost(*counted)


@pytest.fixture
def steady_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the names of prepared statements be equally long, so that bytes can be compared."""
    monkeypatch.setattr(asyncpg.connection, "_uid", NAMED_FROM)


def test_every_method_is_among_the_calls() -> None:
    """A method that is added to the store has its turns counted."""
    assert {name.partition("(")[0] for name in [*CALLS, *SEVERAL]} == ASKING


@pytest.mark.parametrize("name", CALLS)
async def test_a_warm_call_is_one_turn_and_two_without_the_cache(proxy: Proxy, name: str) -> None:
    """A method that is one statement waits for the server once; without the cache, twice."""
    warm, uncached = await cost(proxy, CALLS[name])
    assert (warm.turns, uncached.turns) == (1, 2)
    assert warm.texts == []
    assert len(uncached.texts) == 2  # the driver sends an unnamed statement with both turns
    assert len(set(uncached.texts)) == 1


@pytest.mark.parametrize("cache", ["on", "off"])
async def test_the_first_call_on_a_connection_looks_nothing_up(proxy: Proxy, cache: str) -> None:
    """Each method's first use prepares its own statement and executes it: two turns, no more."""
    for name, call in CALLS.items():
        mine = await family(proxy.url, statement_cache=cache)
        await mine.store.aclose()
        connecting = await traffic(proxy, _connect_and_close(proxy.url))
        first = await traffic(proxy, call(mine))
        await mine.store.aclose()
        assert first.turns == connecting.turns + 2, name
        assert {text[:13] for text in first.texts} == {"-- pgcontext."}, name
        assert len(set(first.texts)) == 1, name


async def _connect_and_close(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.close()


async def test_the_other_methods_send_only_statements_of_ours(proxy: Proxy) -> None:
    """Those that take several turns look nothing up either, cached or not."""
    for cache in ("on", "off"):
        for call in SEVERAL.values():
            mine = await family(proxy.url, statement_cache=cache)
            async with mine.store:
                await mine.store.aclose()
                counted = await traffic(proxy, call(mine))
            assert counted.texts
            assert all(text.startswith("-- pgcontext.") for text in counted.texts)


async def test_a_connection_takes_one_turn_to_make(proxy: Proxy) -> None:
    """Without a password the server's welcome answers the first message."""
    counted = await traffic(proxy, _connect_and_close(proxy.url))
    assert (counted.turns, counted.connections, counted.texts) == (1, 1, [])


async def test_delay_is_paid_once_a_turn(proxy: Proxy) -> None:
    """What the proxy holds up each way is what a warm call waits longer, once."""
    mine = await family(proxy.url, statement_cache="on")
    async with mine.store:
        await mine.store.get(mine.child)
        proxy.one_way_seconds = 0.25
        started = time.monotonic()
        await mine.store.get(mine.child)
        assert 0.5 <= time.monotonic() - started < 0.99


@pytest.mark.usefixtures("steady_names")
async def test_the_page_shows_what_is_counted(proxy: Proxy) -> None:
    """Each row of the table in docs/wire.md is what this run counts, to the byte."""
    rows = []
    for name, call in CALLS.items():
        warm, uncached = await cost(proxy, call)
        bare = uncached.sent - uncached.text_bytes
        rows.append(
            f"| `{name}` | {warm.turns} | {warm.sent:,} | {warm.received:,}"
            f" | {uncached.turns} | {bare:,} | {uncached.received:,} |\n"
        )
    page = PAGE.read_text("utf-8")
    if WRITE:
        first, last = ROW.search(page), [*ROW.finditer(page)][-1]
        assert first is not None
        page = page[: first.start()] + "".join(rows) + page[last.end() :]
        PAGE.write_text(page, "utf-8")
    assert ROW.findall(page) == rows, f"Set {NAME}=1 and run this test to write the page anew."
