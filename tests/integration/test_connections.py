import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from pgcontext import ContextStore, UnavailableError
from pgcontext.connections import AllInUseError, Connections


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[Connections]:
    """At most two connections to the test's database."""
    connections = Connections(
        lambda: asyncpg.connect(database_url), most=2, idle_seconds=30, close_seconds=0.5
    )
    yield connections
    await connections.aclose()


async def test_no_more_are_opened_than_are_needed(two: Connections) -> None:
    """One after the other, all callers use the same connection."""
    first = await two.acquire(1)
    two.release(first, usable=True)
    second = await two.acquire(1)
    assert second is first
    two.release(second, usable=True)


async def test_who_asks_first_is_served_first(two: Connections) -> None:
    """Waiting callers get connections in the order in which they came, and newcomers queue."""
    held = [await two.acquire(1), await two.acquire(1)]
    served: list[int] = []

    async def ask(number: int) -> None:
        connection = await two.acquire(5)
        served.append(number)
        await asyncio.sleep(0)
        two.release(connection, usable=True)

    waiting = [asyncio.create_task(ask(number)) for number in range(5)]
    await asyncio.sleep(0.01)
    for connection in held:
        two.release(connection, usable=True)
    await asyncio.gather(ask(5), *waiting)
    assert served == [0, 1, 2, 3, 4, 5]


async def test_who_waits_too_long_takes_no_place(two: Connections) -> None:
    """A caller that gave up is passed over, whether its time ran out or it was cancelled."""
    held = [await two.acquire(1), await two.acquire(1)]
    with pytest.raises(AllInUseError):
        await two.acquire(0.01)
    cancelled = asyncio.create_task(two.acquire(5))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    for connection in held:
        two.release(connection, usable=True)
    assert {await two.acquire(1), await two.acquire(1)} == set(held)
    for connection in held:
        two.release(connection, usable=True)


async def test_a_connection_that_cannot_be_made_takes_no_place(database_url: str) -> None:
    """After any number of failures there is room for as many connections as before."""
    failures = iter([OSError(), TimeoutError(), asyncpg.TooManyConnectionsError()])

    async def connect() -> asyncpg.Connection:
        for failure in failures:
            raise failure
        return await asyncpg.connect(database_url)

    connections = Connections(connect, most=1, idle_seconds=30, close_seconds=1)
    for kind in (OSError, TimeoutError, asyncpg.TooManyConnectionsError):
        with pytest.raises(kind):
            await connections.acquire(1)
    connections.release(await connections.acquire(1), usable=True)
    await connections.aclose()


async def test_what_still_runs_on_an_unusable_connection_is_cancelled(
    two: Connections, connection: asyncpg.Connection
) -> None:
    """It counts as in use until the server has let go of it; then there is room for another."""
    mine, other = await two.acquire(1), await two.acquire(1)
    sleeping = asyncio.create_task(mine.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.1)
    sleeping.cancel()
    await asyncio.wait([sleeping])
    two.release(mine, usable=False)
    fresh = await two.acquire(5)
    assert fresh not in {mine, other}
    assert mine.is_closed()
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
    assert await connection.fetchval(active) == 0
    two.release(fresh, usable=True)
    two.release(other, usable=True)


async def test_closing_waits_for_those_in_use(two: Connections) -> None:
    """A caller that comes back in time is not cut off."""
    idle, busy = await two.acquire(1), await two.acquire(1)
    two.release(idle, usable=True)
    closing = asyncio.create_task(two.aclose())
    await asyncio.sleep(0.01)
    assert await busy.fetchval("SELECT 1") == 1
    two.release(busy, usable=True)
    await closing
    assert idle.is_closed()
    assert busy.is_closed()


async def test_closing_does_not_wait_for_ever(database_url: str) -> None:
    """A connection that doesn't come back in time is cut off."""
    connections = Connections(
        lambda: asyncpg.connect(database_url), most=1, idle_seconds=30, close_seconds=0.05
    )
    kept = await connections.acquire(1)
    await connections.aclose()
    assert kept.is_closed()


async def test_a_closed_store_opens_again(store: ContextStore) -> None:
    """aclose ends the connections, not the store."""
    context = await store.create()
    await store.aclose()
    assert await store.get(context.id) == context


async def test_an_address_where_nobody_listens_is_unavailable(tmp_path: object) -> None:
    """After bounded tries, and without the address's password."""
    store = ContextStore(f"postgresql://someone:secret@/db?host={tmp_path}")
    with pytest.raises(UnavailableError) as caught:
        await store.list()
    assert "secret" not in str(caught.value)
