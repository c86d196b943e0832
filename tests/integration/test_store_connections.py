import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from pgcontext import ContextStore, InvalidInputError, PoolTimeoutError, UnavailableError
from tests.support.chats import contents, user, users, versions

MakeStore = Callable[..., ContextStore]
OTHERS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@asynccontextmanager
async def held(connection: Any, context_id: UUID) -> AsyncIterator[None]:
    """Hold a context's row lock, so that who changes it has to wait."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM contexts WHERE id = $1 FOR UPDATE", context_id)
    try:
        yield
    finally:
        await transaction.rollback()


async def waiting(connection: Any, count: int, *, but: int = 0) -> list[int]:
    """Wait until so many others wait for a lock, `but` one; return their process ids."""
    for _ in range(500):
        # Not pg_stat_activity: within a transaction that shows what it showed the first time.
        found = await connection.fetch(
            "SELECT pid FROM pg_locks WHERE NOT granted AND pid <> $1", but
        )
        if len(found) == count:
            return [row["pid"] for row in found]
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_many_callers_share_at_most_three_connections(
    store: ContextStore, connection: Any
) -> None:
    """500 coroutines are served by three connections, and nobody is left behind."""
    context = await store.create()
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(await connection.fetch(OTHERS)))

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(store.history(context.id) for _ in range(500)))
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert 1 <= most <= 3


async def test_a_pool_of_one_still_serves_all(make_store: MakeStore) -> None:
    """No method needs a second connection while it holds the first."""
    store = make_store(pool_size=1)
    root = await store.create()
    await store.append(root.id, users(3), idempotency_key="key")
    await asyncio.gather(*(store.fork(root.id) for _ in range(20)))
    fork = (await store.forks(root.id))[0]
    await store.append(fork.id, users(2))
    await store.merge(fork.id, into=root.id)
    await store.erase(root.id, [1])
    assert len(await store.history(fork.id)) == 4


async def test_who_gets_no_connection_is_told_in_time(
    make_store: MakeStore, connection: Any
) -> None:
    """PoolTimeoutError after the set time, retryable; afterwards the pool works on."""
    store = make_store(pool_size=1, acquire_seconds=0.2)
    context = await store.create()
    async with held(connection, context.id):
        busy = asyncio.create_task(store.append(context.id, user("waited")))
        await waiting(connection, 1)
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError) as caught:
            await store.get(context.id)
        assert 0.15 < time.monotonic() - started < 2
        assert caught.value.retryable
    await busy
    assert contents(await store.history(context.id)) == ["waited"]


async def test_a_statement_that_takes_too_long_is_given_up(
    make_store: MakeStore, connection: Any
) -> None:
    """UnavailableError after the set time, and neither written later nor left running."""
    store = make_store(statement_seconds=0.3)
    context = await store.create()
    async with held(connection, context.id):
        started = time.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await store.append(context.id, user("too late"))
        assert time.monotonic() - started < 3
        assert caught.value.retryable
        await waiting(connection, 0)
    assert await store.history(context.id) == []


async def test_a_value_that_the_driver_cannot_send_is_not_taken_for_another_length(
    store: ContextStore,
) -> None:
    """It says which one and what is taken, and doesn't quote it; the connection is good still."""
    sentence = r"Argument \$2 .*\(value out of int32 range\); nothing was sent: give"
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        await store._pool.fetch("-- pgcontext.probe\nSELECT $1::text, $2::integer", "a", 2**40)
    assert type(caught.value) is InvalidInputError
    assert str(2**40) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    await store.create()


async def test_what_the_driver_says_of_a_value_is_not_repeated(store: ContextStore) -> None:
    """Where its reason may quote the value, only the place is said."""
    with pytest.raises(InvalidInputError, match=r"Argument \$1 of") as caught:
        await store._pool.fetch("-- pgcontext.probe\nSELECT $1::uuid", "secret (expected a, got b)")
    assert "secret" not in str(caught.value)
    assert "expected" not in str(caught.value)


async def test_a_connection_that_breaks_before_the_work_is_done_is_made_good(
    store: ContextStore, connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The append is sent again by the store itself and is there once."""
    caplog.set_level(logging.INFO)
    context = await store.create()
    async with held(connection, context.id):
        appending = asyncio.create_task(store.append(context.id, users(2)))
        (pid,) = await waiting(connection, 1)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await waiting(connection, 1, but=pid)
    assert versions(await appending) == [1, 2]
    assert versions(await store.history(context.id)) == [1, 2]
    assert (await store.get(context.id)).message_count == 2
    assert "append" in caplog.text


async def test_idle_connections_that_were_closed_do_no_harm(
    store: ContextStore, connection: Any
) -> None:
    """The server restarted, or a firewall cut: the next calls just work."""
    context = await store.create()
    await asyncio.gather(*(store.append(context.id, user()) for _ in range(10)))
    for row in await connection.fetch(OTHERS):
        await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])
    await asyncio.gather(*(store.append(context.id, user()) for _ in range(10)))
    assert (await store.get(context.id)).latest_version == 20


async def test_a_caller_who_gives_up_leaves_a_working_pool(
    make_store: MakeStore, connection: Any
) -> None:
    """Cancelled calls free their connections and write nothing afterwards."""
    store = make_store(pool_size=1)
    context = await store.create()
    async with held(connection, context.id):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(store.append(context.id, user("given up")), 0.1)
        await waiting(connection, 0)
    await store.append(context.id, user("kept"))
    assert contents(await store.history(context.id)) == ["kept"]


def test_after_an_os_fork_the_child_leaves_the_parents_connections_alone(
    database_url: str,
) -> None:
    """A forked worker makes connections of its own; the parent's go on working."""
    store = ContextStore(database_url)
    with asyncio.Runner() as runner:
        context = runner.run(store.create())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                asyncio.run(store.append(context.id, user("from the child")))
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert contents(runner.run(store.history(context.id))) == ["from the child"]
        runner.run(store.aclose())
