"""Connections in a process that is frozen, forked, stopped, short of time, or asked too much."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pgcontext import ContextStore, PoolTimeoutError, UnavailableError, limits
from pgcontext.pool import within
from pgcontext.settings import child_environment
from tests.support.promises import query
from tests.support.proxy import Fault, Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from uuid import UUID

    import asyncpg

    MakeStore = Callable[..., ContextStore]

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "what nobody may read in a log"  # noqa: S105  (a message)
OTHERS: Final = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
WAITING: Final = "SELECT pid FROM pg_locks WHERE NOT granted"
HOLD: Final = "SELECT FROM contexts WHERE id = $1 FOR UPDATE"
SAID: Final = {"role": "user", "content": SECRET, "token_count": 1}


@asynccontextmanager
async def held(connection: asyncpg.Connection, context_id: UUID) -> AsyncIterator[None]:
    """Let who changes the context wait."""
    async with connection.transaction():
        await connection.execute(HOLD, context_id)
        yield


async def becomes(connection: asyncpg.Connection, statement: str, most: int) -> bool:
    """Wait until a statement finds at most so many rows."""
    for _ in range(500):
        if len(await connection.fetch(statement)) <= most:
            return True
        await asyncio.sleep(0.01)
    return False


def test_what_a_closed_loop_left_is_closed(database_url: str) -> None:
    """A loop for each request: at most one loop's connections exist, and nothing warns."""
    store = ContextStore(database_url)

    async def request() -> int:
        await asyncio.gather(*(store.create() for _ in range(3)))
        return len(await query(database_url, OTHERS))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = [asyncio.run(request()) for _ in range(6)]
        asyncio.run(store.aclose())
        gc.collect()
    assert max(counts) <= 2 * limits.POOL_CONNECTIONS_MAX
    assert asyncio.run(query(database_url, OTHERS)) == []


async def test_each_connection_that_sat_idle_is_dropped_before_use(
    store: ContextStore, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three were opened, one is used on and on: the other two don't wait to break."""
    context = await store.create()
    await asyncio.gather(*(store.get(context.id) for _ in range(20)))
    assert len(await connection.fetch(OTHERS)) == 3
    now = time.time()
    for seconds in (20, 40):  # the one that is used is never idle for longer than 20 s
        monkeypatch.setattr(time, "time", lambda later=now + seconds: later)
        await store.get(context.id)
    assert await becomes(connection, OTHERS, 1)


@pytest.mark.parametrize("jump", [-3600, 3600])
async def test_a_clock_that_jumps_costs_a_connection_and_no_call(
    store: ContextStore,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    jump: float,
) -> None:
    """Set forth or back, what was idle is not trusted, and the next call makes a new one."""
    context = await store.create()
    [before] = await connection.fetch(OTHERS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert await store.get(context.id) == context
    assert await becomes(connection, f"{OTHERS} AND pid = {before['pid']}", 0)


FROZEN: Final = """
import asyncio, logging, sys
from pgcontext import ContextStore, limits
limits.POOL_IDLE_SECONDS_MAX = 0.4
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(event)s")
async def main():
    async with ContextStore.from_env() as store:
        context = await store.create()
        while True:
            print("ready", flush=True)
            if not sys.stdin.readline().strip():
                break
            print((await store.get(context.id)).id == context.id, flush=True)
asyncio.run(main())
"""


async def test_a_frozen_process_goes_on_as_if_nothing_was(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """Stopped, its connections closed by the server, continued: a new one, and not one retry."""
    process = await start(FROZEN, database_url)
    assert process.stdin is not None
    assert await said_until(process, "ready") == ["connect"]
    process.send_signal(signal.SIGSTOP)
    for row in await connection.fetch(OTHERS):
        await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])
    await asyncio.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    process.stdin.write(b"on\n")
    assert await said_until(process, "ready") == ["connect", "True"]
    process.stdin.write(b"\n")
    assert await process.wait() == 0


STOPPED: Final = """
import asyncio, signal
from pgcontext import ContextStore
async def main():
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with ContextStore.from_env() as store:
        context = await store.create()
        print(context.id, flush=True)
        while True:
            await store.append(context.id, {"role": "user", "content": "a", "token_count": 1})
try:
    asyncio.run(main())
except asyncio.CancelledError:
    print("closed", flush=True)
"""


async def test_a_process_that_is_asked_to_end_leaves_no_connection(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """SIGTERM in the middle of appends: the store is closed, and versions have no gap."""
    process = await start(STOPPED, database_url)
    assert process.stdout is not None
    context_id = (await process.stdout.readline()).decode().strip()
    await asyncio.sleep(0.1)
    process.terminate()
    assert (await process.stdout.read()).decode().split() == ["closed"]
    assert await process.wait() == 0
    assert await becomes(connection, OTHERS, 0)
    found = await connection.fetchrow(
        "SELECT latest_version, message_count, (SELECT count(*) FROM messages) AS rows"
        " FROM contexts WHERE id = $1::text::uuid",
        context_id,
    )
    assert found is not None
    assert found["latest_version"] == found["message_count"] == found["rows"] > 0


@pytest.mark.parametrize("connections", [1, 3])
async def test_500_callers_are_served_in_turn(make_store: MakeStore, connections: int) -> None:
    """All get their answer; where one is served at a time, in the order in which they came."""
    store = make_store(pool_size=connections)
    context = await store.create()
    served: list[int] = []

    async def call(number: int) -> None:
        await store.get(context.id)
        served.append(number)

    async with asyncio.timeout(30):
        await asyncio.gather(*(call(number) for number in range(500)))
    assert sorted(served) == list(range(500))
    assert connections > 1 or served == sorted(served)


async def test_500_callers_are_told_in_time_that_nothing_becomes_free(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """All connections wait for a lock: the others get PoolTimeoutError, and then all is well."""
    store = make_store(acquire_seconds=0.5)
    context = await store.create()
    async with held(connection, context.id):
        busy = [asyncio.create_task(store.append(context.id, SAID)) for _ in range(3)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        results = await asyncio.gather(
            *(store.get(context.id) for _ in range(500)), return_exceptions=True
        )
        assert 0.4 < time.monotonic() - started < 2
        assert {type(result) for result in results} == {PoolTimeoutError}
    await asyncio.gather(*busy)
    assert (await store.get(context.id)).message_count == 3


async def test_callers_that_give_up_in_the_queue_block_nobody(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Hundreds of cancelled waits leave all the places free."""
    store = make_store()
    context = await store.create()
    async with held(connection, context.id):
        calls = [asyncio.create_task(store.append(context.id, SAID)) for _ in range(300)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    async with asyncio.timeout(5):
        await asyncio.gather(*(store.append(context.id, SAID) for _ in range(30)))
    # Three had been sent before they were given up, and may have been done.
    assert 30 <= (await store.get(context.id)).message_count <= 33


async def test_connections_that_fell_silent_are_replaced_in_seconds(
    database_url: str, make_store: MakeStore
) -> None:
    """All three are dropped without a word: each caller is told in time, the next is served."""
    async with Proxy(database_url) as proxy:
        store = make_store(url=proxy.url, statement_seconds=0.5)
        context = await store.create()
        await asyncio.gather(*(store.get(context.id) for _ in range(20)))
        proxy.arm(*(Fault("silence", "reply", 0) for _ in range(3)))
        started = time.monotonic()
        results = await asyncio.gather(
            *(store.get(context.id) for _ in range(3)), return_exceptions=True
        )
        assert {type(result).__mro__[1] for result in results} == {UnavailableError}
        assert time.monotonic() - started < 2.5
        assert await store.get(context.id) == context
        assert time.monotonic() - started < 0.5 + limits.CLOSE_SECONDS_MAX + 2
        await store.aclose()


async def test_a_caller_may_leave_less_time_than_the_settings(
    make_store: MakeStore, connection: asyncpg.Connection, database_url: str
) -> None:
    """within() ends the wait for a lock, for a place, for a connection and between two tries."""
    store = make_store(pool_size=1)
    context = await store.create()
    async with held(connection, context.id):
        started = time.monotonic()
        with within(60), within(0.3), within(60):
            waiting = asyncio.create_task(store.append(context.id, SAID))
            await asyncio.sleep(0.05)
            with pytest.raises(PoolTimeoutError):
                await store.get(context.id)
            with pytest.raises(UnavailableError, match="in time"):
                await waiting
            with pytest.raises(UnavailableError, match="used up"):
                await store.get(context.id)
        assert 0.25 < time.monotonic() - started < 2
        assert await becomes(connection, WAITING, 0)  # it is given up at the server too
    assert (await store.get(context.id)).message_count == 0
    async with Proxy(database_url) as proxy:
        proxy.arm(Fault("silence", "request", 0), *(Fault("cut", "request", 0) for _ in range(9)))
        far = make_store(url=proxy.url)
        started = time.monotonic()
        for _ in range(2):
            with within(0.2), pytest.raises(UnavailableError):
                await far.get(context.id)
        assert time.monotonic() - started < 1
        await far.aclose()


async def test_log_records_say_what_happened_and_no_content(
    make_store: MakeStore,
    connection: asyncpg.Connection,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connecting, trying again, giving up the wait and a slow statement are events with fields."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(limits, "SLOW_STATEMENT_SECONDS", 0.1)
    async with Proxy(database_url) as proxy:
        store = make_store(url=proxy.url, pool_size=1, acquire_seconds=0.1)
        context = await store.create()
        proxy.arm(Fault("cut", "reply", 0))
        await store.append(context.id, SAID)
        async with held(connection, context.id):
            slow = asyncio.create_task(store.append(context.id, SAID))
            await asyncio.sleep(0.05)
            with pytest.raises(PoolTimeoutError):
                await store.history(context.id)
        await slow
        await store.aclose()
    events = {
        (record.event, getattr(record, "statement", None)): vars(record)
        for record in caplog.records
        if hasattr(record, "event")
    }
    append = "pgcontext.append"
    assert {
        *(("connect", None), ("retry", append), ("statement", append), ("slow", append)),
        ("refuse", "pgcontext.history"),
    } <= events.keys()
    assert events["retry", append]["attempt"] == 1
    assert events["slow", append]["levelno"] == logging.WARNING
    assert events["slow", append]["milliseconds"] > 100
    assert SECRET not in caplog.text
    assert SECRET not in repr([vars(record) for record in caplog.records])


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """Where the spans of this process end; a provider can be set once only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


async def test_each_operation_is_a_span(
    store: ContextStore, database_url: str, make_store: MakeStore, spans: InMemorySpanExporter
) -> None:
    """A span has a name, a kind, how many tries there were, and the kind of its error."""
    context = await store.create()
    spans.clear()
    async with Proxy(database_url) as proxy:
        unlucky = make_store(url=proxy.url, statement_seconds=1)
        await unlucky.append(context.id, SAID)
        proxy.arm(Fault("cut", "reply", 0))
        await unlucky.append(context.id, SAID)
        proxy.arm(Fault("silence", "reply", 0))
        with pytest.raises(UnavailableError):
            await unlucky.append(context.id, SAID)
        await unlucky.aclose()
    plain, again, failed = (
        span for span in spans.get_finished_spans() if span.name == "pgcontext.append"
    )
    assert plain.kind is trace.SpanKind.CLIENT
    attributes = {"db.system.name": "postgresql", "db.operation.name": "append"}
    assert plain.attributes == attributes
    assert again.attributes == {**attributes, "pgcontext.attempts": 2}
    assert again.status.status_code is trace.StatusCode.UNSET
    assert failed.attributes is not None
    assert "Overdue" in str(failed.attributes["error.type"])
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert SECRET not in "".join(span.to_json() for span in (plain, again, failed))


def test_without_tracing_nothing_of_it_is_loaded() -> None:
    """A process that doesn't load OpenTelemetry itself never pays for it."""
    code = "import sys, pgcontext.pool; print(any('opentelemetry' in name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_forked_child_and_its_parent_share_nothing(database_url: str) -> None:
    """Both go on at once, the child warns of nothing, and what it closes is its own."""
    store = ContextStore(database_url)
    with asyncio.Runner() as runner:
        context = runner.run(store.create())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                warnings.simplefilter("error")
                asyncio.run(store.aclose())
                for _ in range(20):
                    asyncio.run(store.append(context.id, SAID))
                asyncio.run(store.aclose())
                gc.collect()
                code = 0
            finally:
                os._exit(code)
        [before] = runner.run(_pids(store))
        for _ in range(20):
            runner.run(store.append(context.id, SAID))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert runner.run(store.get(context.id)).message_count == 40
        assert runner.run(_pids(store)) == [before]
        runner.run(store.aclose())


async def _pids(store: ContextStore) -> list[int]:
    """The server's processes behind this loop's connections."""
    connections = store._pool._by_loop[asyncio.get_running_loop()]
    return [connection.get_server_pid() for connection in connections._opened]


async def start(code: str, database_url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", code),
        env=child_environment(DATABASE_URL=database_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )


async def said_until(process: asyncio.subprocess.Process, word: str) -> list[str]:
    assert process.stdout is not None
    said: list[str] = []
    while (line := (await process.stdout.readline()).decode().strip()) != word:
        assert line or process.returncode is None
        said.append(line)
    return said
