"""At the serverless edge: cold starts, requests over HTTP, a far database, many callers at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec

from benchmarks.handwritten import INSERT, SELECT, Handwritten
from benchmarks.server import run
from benchmarks.timing import WARM_UP_ROUNDS, Comparison, compare, interleaved
from pgcontext import ContextStore, limits, statements
from pgcontext.aws.gateway import ask
from pgcontext.http import create_app
from pgcontext.ids import uuid7
from pgcontext.keys import Keys
from tests.support.lambda_events import event
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
    from uuid import UUID

    from benchmarks.timing import Call

    Send = Callable[[UUID], Awaitable[object]]  # one request, about one context
    SendOver = Callable[[asyncpg.Connection, UUID], Awaitable[object]]  # the same, by hand

ROOT: Final = Path(__file__).parents[1]
FRESH: Final = Path(__file__).with_name("fresh")
READ: Final = 50
CALLERS: Final = 200
ONE_WAY_SECONDS: Final = 0.005
MESSAGE: Final[dict[str, Any]] = {
    "role": "user",
    "content": "Where is my order?",
    "token_count": 5,
}
BODY: Final = json.dumps({"messages": MESSAGE}).encode()


class EdgeScale(msgspec.Struct, frozen=True):
    """How much to measure.

    Attributes:
        rounds: of what takes a millisecond.
        far: of what crosses the slow way to the database.
        processes: of each kind.
        bursts: of `CALLERS` callers, each with `calls_each` requests.
        calls_each: see there.
        requests: that one process of the function answers.
    """

    rounds: int
    far: int
    processes: int
    bursts: int
    calls_each: int
    requests: int


FULL: Final = EdgeScale(
    rounds=1_000, far=200, processes=30, bursts=15, calls_each=5, requests=10_000
)
QUICK: Final = EdgeScale(rounds=100, far=40, processes=5, bursts=4, calls_each=2, requests=1_000)


class Edge:
    """The store, the application and the function on a migrated database."""

    def __init__(self, url: str, scale: EdgeScale) -> None:
        self._url = url
        self._scale = scale
        self._store = ContextStore(url)
        self._versions = itertools.count(READ + 1)  # of what is written by hand

    async def run(self) -> AsyncIterator[Comparison]:
        """Make contexts, then measure; yield each comparison when it is made."""
        made = await Keys.of(self._store).create("benchmarks", scope="write")
        self._key = made.text
        try:
            self._ours, self._theirs = [await self._contexts(CALLERS) for _ in range(2)]
            async for comparison in self._http():
                yield comparison
            async for comparison in self._far_away():
                yield comparison
            async for comparison in self._many_callers():
                yield comparison
        finally:
            await self._store.aclose()

    def processes(self) -> Iterator[Comparison]:
        """Measure whole processes; after `run`, which makes what they read."""
        yield from self._cold_starts()
        yield from self._memory()

    async def _contexts(self, count: int) -> list[UUID]:
        contexts = [(await self._store.create()).id for _ in range(count)]
        for context_id in contexts:
            await self._store.append(context_id, [MESSAGE] * READ)
        return contexts

    async def _http(self) -> AsyncIterator[Comparison]:
        """Compare an append through the application with the store's own."""
        request = self._request()
        what = "append through the HTTP application, in process"
        ours: Call = lambda: request(self._ours[0])  # noqa: E731 (half of a pair)
        theirs = ("append", self._append_by(self._store))
        yield await compare(self._scale.rounds, (what, ours), theirs, target=1.5)
        async with self._without_the_disk():
            what = "… with synchronous_commit=off"
            yield await compare(self._scale.rounds, (what, ours), theirs, target=1.5)

    def _append_by(self, store: ContextStore) -> Call:
        return lambda: store.append(self._ours[1], MESSAGE)

    @asynccontextmanager
    async def _without_the_disk(self) -> AsyncGenerator[None]:
        """Let no commit wait for the disk, which on most machines is most of an append."""
        admin = await asyncpg.connect(self._url)
        try:
            await admin.execute("ALTER SYSTEM SET synchronous_commit = off")
            await admin.execute("SELECT pg_reload_conf()")
            yield
            await admin.execute("ALTER SYSTEM RESET synchronous_commit")
            await admin.execute("SELECT pg_reload_conf()")
        finally:
            await admin.close()

    def _request(self) -> Send:
        """Return what appends through the application, with a key that it soon remembers."""
        application = create_app(self._store)

        async def request(context_id: UUID) -> None:
            response = await ask(application, self._scope(context_id), BODY)
            assert response.status == 201, response  # noqa: PLR2004 (made)

        return request

    def _scope(self, context_id: UUID) -> dict[str, Any]:
        """Return what a server says of the request."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": f"/v1/contexts/{context_id}/messages",
            "query_string": b"",
            "headers": [
                (b"host", b"localhost:8000"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(BODY)).encode()),
                (b"authorization", f"Bearer {self._key}".encode()),
            ],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
        }

    async def _far_away(self) -> AsyncIterator[Comparison]:
        """Compare what a slow way adds to an append with the time that its turns take on it.

        Raises:
            AssertionError: an append took other turns than it should.
        """
        async with AsyncExitStack() as stack, self._without_the_disk():
            for cache, turns in (("on", 1), ("off", 2)):
                near, far = [await self._through_a_proxy(stack, cache) for _ in range(2)]
                far[0].one_way_seconds = ONE_WAY_SECONDS
                before = far[0].traffic.turns
                near_ms, far_ms = await interleaved(self._scale.far, near[1], far[1])
                rounds = self._scale.far + WARM_UP_ROUNDS
                counted = (far[0].traffic.turns - before) / rounds
                assert counted == turns, f"{counted} turns with the cache {cache}, not {turns}"
                way = turns * 2_000 * ONE_WAY_SECONDS
                yield Comparison(
                    what=f"what 5 ms each way add to an append, statement cache {cache}",
                    against=f"{turns} {'turn' if turns == 1 else 'turns'} of 10 ms",
                    ours=far_ms - near_ms,
                    theirs=way,
                    target=1.1,
                )
                yield Comparison(
                    what="… the whole append",
                    against="the delay",
                    ours=far_ms,
                    theirs=way,
                    target=1.1,
                )

    async def _through_a_proxy(self, stack: AsyncExitStack, cache: str) -> tuple[Proxy, Call]:
        """Connect over a proxy of its own."""
        proxy = await stack.enter_async_context(Proxy(self._url))
        store = ContextStore.from_env(url=proxy.url, statement_cache=cache)
        await stack.enter_async_context(store)
        append = self._append_by(store)
        await append()
        return proxy, append

    async def _many_callers(self) -> AsyncIterator[Comparison]:
        """Compare many callers on few connections with loops that keep those busy."""
        append, read = (
            lambda context_id: self._store.append(context_id, MESSAGE),
            lambda context_id: self._store.history(context_id, limit=READ),
        )
        same, least = "its statement by asyncpg", "the least statement by asyncpg"
        request = self._request()
        for what, ours, against, theirs, floor in (
            ("append", append, same, self._append_over, 0.7),
            ("append", append, least, self._insert_over, 0.7),
            ("append through HTTP", request, same, self._append_over, None),
            (f"history({READ})", read, same, self._history_over, 0.7),
            (f"history({READ})", read, least, self._select_over, 0.7),
        ):
            speeds = await self._saturate(ours, theirs)
            yield Comparison(
                what=f"{what}, {CALLERS} callers on {limits.POOL_CONNECTIONS_MAX} connections",
                against=f"{against}, connections kept busy",
                ours=speeds[0],
                theirs=speeds[1],
                floor=floor,
                unit="a second",
            )

    async def _append_over(self, connection: asyncpg.Connection, context_id: UUID) -> None:
        batch = json.dumps([{**MESSAGE, "id": str(uuid7())}])
        tenant_id = self._store.tenant_id
        await connection.fetch(_APPEND, tenant_id, context_id, batch, 1, 5, None, None)

    async def _history_over(self, connection: asyncpg.Connection, context_id: UUID) -> None:
        tenant_id, newest = self._store.tenant_id, limits.VERSION_MAX
        await connection.fetch(_HISTORY, tenant_id, context_id, newest, 0, READ, None)

    async def _insert_over(self, connection: asyncpg.Connection, context_id: UUID) -> None:
        by_hand = Handwritten(connection, self._store.tenant_id)
        await by_hand.insert(context_id, next(self._versions), "user", MESSAGE["content"], 5)

    async def _select_over(self, connection: asyncpg.Connection, context_id: UUID) -> None:
        await Handwritten(connection, self._store.tenant_id).select(context_id, READ)

    async def _saturate(self, ours: Send, theirs: SendOver) -> tuple[float, float]:
        """Let all callers at the store at once, and as many requests run by hand, in turn."""
        # Versions are counted in the database for the store's statement, and here by hand.
        targets = self._theirs if theirs == self._insert_over else self._ours

        async def caller(context_id: UUID) -> None:
            for _ in range(self._scale.calls_each):
                await ours(context_id)

        async def loop(connection: asyncpg.Connection, contexts: Iterator[UUID]) -> None:
            for context_id in contexts:  # shared: each takes the next when it is ready
                await theirs(connection, context_id)

        async def burst() -> None:
            await asyncio.gather(*map(caller, self._ours))

        async def loops() -> None:
            contexts = iter(targets * self._scale.calls_each)
            await asyncio.gather(*(loop(each, contexts) for each in connections))

        connections = [await asyncpg.connect(self._url) for _ in range(limits.POOL_CONNECTIONS_MAX)]
        try:
            return await self._speeds(burst, loops)
        finally:
            for connection in connections:
                await connection.close()

    async def _speeds(self, ours: Call, theirs: Call) -> tuple[float, float]:
        """Return the median of requests a second of both, after a round to warm up."""
        taken: list[tuple[float, float]] = []
        for _ in range(1 + self._scale.bursts):
            started = time.perf_counter()
            await ours()
            between = time.perf_counter()
            await theirs()
            taken.append((between - started, time.perf_counter() - between))
        requests = CALLERS * self._scale.calls_each
        ours_seconds, theirs_seconds = map(statistics.median, zip(*taken[1:], strict=True))
        return requests / ours_seconds, requests / theirs_seconds

    def _cold_starts(self) -> Iterator[Comparison]:
        """Compare programs that import, connect, append, read and end."""
        programs: tuple[tuple[str, Callable[[], list[str]]], ...] = (
            ("by_hand.py", lambda: [str(self._theirs[0]), str(next(self._versions)), *_SQL]),
            ("with_store.py", lambda: [str(self._ours[0])]),
            ("with_function.py", self._events),
        )
        taken: list[list[float]] = [[] for _ in programs]
        for round_ in range(-2, self._scale.processes):
            for (name, arguments), seconds in zip(programs, taken, strict=True):
                started = time.perf_counter()
                self._run(name, *arguments())
                if round_ >= 0:
                    seconds.append(time.perf_counter() - started)
        by_hand, store, function = (statistics.median(seconds) * 1_000 for seconds in taken)
        for what, ours, target in (
            ("the store", store, 1.25),
            ("the Lambda handler, an HTTP API's events", function, 1.8),
        ):
            yield Comparison(
                what=f"fresh process: import, connect, append, history({READ}), exit; {what}",
                against="the same with asyncpg",
                ours=ours,
                theirs=by_hand,
                target=target,
            )

    def _memory(self) -> Iterator[Comparison]:
        """Compare the memory of a process that has answered many requests with the same earlier."""
        requests = self._scale.requests
        said = self._run("with_function.py", *self._events(), str(requests))
        early, late = (int(count) / 1024**2 for count in said.split())
        if late:
            yield Comparison(
                what=f"memory of the Lambda handler after {requests:,} requests",
                against=f"after {requests // 10:,}",
                ours=late,
                theirs=early,
                target=1.05,
                unit="MB",
            )

    def _events(self) -> list[str]:
        path = f"/v1/contexts/{self._ours[0]}/messages"
        headers = [("Authorization", f"Bearer {self._key}"), ("Content-Type", "application/json")]
        append = event("v2", "POST", path, headers=headers, body=BODY)
        read = event("v2", "GET", path, query=f"limit={READ}", headers=headers)
        return [json.dumps(append), json.dumps(read)]

    def _run(self, name: str, *arguments: str) -> str:
        return run(
            [sys.executable, str(FRESH / name), *arguments],
            DATABASE_URL=self._url,
            PGCONTEXT_POOLER="direct",
            AWS_LAMBDA_FUNCTION_NAME="benchmarks",
            PYTHONPATH=str(ROOT),
        )


_SQL: Final = (INSERT, SELECT)
_APPEND: Final = statements.in_schema(statements.APPEND, "public")
_HISTORY: Final = statements.in_schema(statements.HISTORY, "public")
