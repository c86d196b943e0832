"""Everything between the store and its disk breaks, again and again; nothing may be lost.

What breaks when follows from a seed, which a failure names: PGCONTEXT_FAULTS_SEED repeats it. How
tasks of the machine fall between each other does not. PGCONTEXT_FAULTS says how many faults.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest

from pgcontext import ContextStore
from tests.support.crashing import CrashingServer
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer
from tests.support.promises import query
from tests.support.proxy import Fault, Kind, Proxy
from tests.support.workload import Batch, Writer, assert_log_and_database_agree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

# Read before the environment is made a test's.
FAULTS: Final = int(os.environ.get("PGCONTEXT_FAULTS", "1000"))
SEED: Final = int(os.environ.get("PGCONTEXT_FAULTS_SEED") or random.randrange(10**9))
WRITERS: Final = 6
STEPS_PER_CRASH: Final = 80  # of all writers together
KINDS: Final[dict[Kind, int]] = {"cut": 5, "half-close": 3, "delay": 3, "silence": 1}
# Short, so that what is dropped silently is given up soon.
SETTINGS: Final[dict[str, Any]] = {
    "statement_seconds": 0.4,
    "acquire_seconds": 2.0,
    "connect_seconds": 1.0,
}


@pytest.fixture(scope="module")
def crashing() -> Iterator[CrashingServer]:
    """A server for these tests alone."""
    with CrashingServer() as server:
        yield server


@dataclass
class Harness:
    """Writers, each behind a proxy of its own, and what may be killed beneath them all."""

    seed: int
    proxies: list[Proxy]
    writers: list[Writer]
    crash: Callable[[], Awaitable[None]]
    crashes: int = 0
    steps: int = 0

    async def run(self, faults: int) -> None:
        """Let all writers work until so many faults have happened."""
        async with asyncio.TaskGroup() as group:
            for proxy, writer in zip(self.proxies, self.writers, strict=True):
                group.create_task(self._work(proxy, writer, faults))

    @property
    def struck(self) -> int:
        return self.crashes + sum(len(proxy.struck) for proxy in self.proxies)

    async def _work(self, proxy: Proxy, writer: Writer, faults: int) -> None:
        chance = random.Random(f"{self.seed}/{writer.name}/faults")
        while self.struck < faults:
            self.steps += 1
            crash = None
            if self.steps % STEPS_PER_CRASH == 0:
                crash = asyncio.create_task(self._crash(chance.uniform(0, 0.02)))
            proxy.arm(*planned(chance))
            await writer.step()
            if crash is not None:
                await crash

    async def _crash(self, after: float) -> None:
        await asyncio.sleep(after)
        await self.crash()
        self.crashes += 1


def planned(chance: random.Random) -> list[Fault]:
    """Choose what breaks in the next calls: nothing, one thing, or more than there are tries."""
    count = chance.choices([0, 1, 6], [4, 5, 1])[0]
    return [fault(chance) for _ in range(count)]


def fault(chance: random.Random) -> Fault:
    """Choose where something breaks, within what one statement makes pass."""
    unit = chance.choice(["message", "byte"])
    return Fault(
        kind=chance.choices(list(KINDS), list(KINDS.values()))[0],
        way=chance.choice(["request", "reply"]),
        at=chance.randrange(8 if unit == "message" else 400),
        unit="message" if unit == "message" else "byte",
        seconds=chance.choice([0.01, 0.1, 0.6]),
    )


async def wait_until_idle(database_url: str) -> None:
    """Wait until nobody else's statement can still take effect."""
    connection = await asyncpg.connect(database_url)
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    for _ in range(400):
        if await connection.fetchval(others) == 1:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError(others)
    await connection.close()


async def suffer(
    what: str,
    server: CrashingServer,
    url: str,
    crash: Callable[[], Awaitable[None]],
    faults: int,
    **settings: Any,
) -> Harness:
    """Run a workload through faults."""
    print(f"\n{what}: PGCONTEXT_FAULTS_SEED={SEED}")  # noqa: T201  (pytest shows it with a failure)
    async with ContextStore.from_env(url=server.url) as direct:
        shared = (await direct.create()).id
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(url)) for _ in range(WRITERS)]
        writers = []
        for number, proxy in enumerate(proxies):
            store = ContextStore.from_env(url=proxy.url, **SETTINGS, **settings)
            await stack.enter_async_context(store)
            name = f"{what}/{number}"
            writers.append(Writer(name, random.Random(f"{SEED}/{name}"), store, shared))
        harness = Harness(SEED, proxies, writers, crash)
        await harness.run(faults)
        for proxy in proxies:
            proxy.disarm()
    report(harness, what)
    return harness


def report(harness: Harness, what: str) -> None:
    """Say what was suffered."""
    total = {
        name: sum(getattr(writer, name) for writer in harness.writers)
        for name in ("acknowledged", "unknown", "replayed")
    }
    said = f"{harness.struck} faults, {harness.crashes} of them crashes; calls: {total}"
    print(f"{what}: {said}")  # noqa: T201


async def assert_nothing_is_lost(server: CrashingServer, harness: Harness, faults: int) -> None:
    """Hold the database against the log, and the run against what it was to be."""
    await wait_until_idle(server.url)
    async with ContextStore.from_env(url=server.url) as store:
        await assert_log_and_database_agree(store, server.url, harness.writers)
    assert harness.struck >= faults
    assert all(writer.acknowledged for writer in harness.writers)


async def test_nothing_is_lost_or_doubled_over_direct_connections(crashing: CrashingServer) -> None:
    """Cuts, half-closes, silence, delays and crashes of the server: log and database agree."""
    harness = await suffer(
        "direct", crashing, crashing.url, crashing.crash, FAULTS // 2, statement_cache="on"
    )
    await assert_nothing_is_lost(crashing, harness, FAULTS // 2)


@needs_pgbouncer
async def test_nothing_is_lost_or_doubled_behind_a_pooler(crashing: CrashingServer) -> None:
    """The same behind PgBouncer, which is killed now and then, as is the server behind it."""
    faults = FAULTS - FAULTS // 2
    with PgBouncer(crashing.url, server_login_retry="1", default_pool_size="6") as pooler:
        turns = itertools.count()

        async def crash() -> None:
            if next(turns) % 2:
                await crashing.crash()
            else:
                pooler.kill()
                pooler.start()

        harness = await suffer("pooled", crashing, pooler.url, crash, faults, pooler="transaction")
    await assert_nothing_is_lost(crashing, harness, faults)


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM messages WHERE content = (SELECT max(content) FROM messages)",
        "DELETE FROM contexts WHERE message_count = 0 AND latest_version = 0",
        "UPDATE messages SET content = '0/1' WHERE content = (SELECT max(content) FROM messages)",
        "UPDATE contexts SET message_count = message_count + 1 WHERE message_count > 0",
        "UPDATE contexts SET deleted_at = NULL WHERE deleted_at IS NOT NULL",
        "DELETE FROM tombstones",
    ],
)
async def test_what_is_lost_or_doubled_would_be_seen(database_url: str, harm: str) -> None:
    """Without any fault the log agrees; after each kind of harm it does not."""
    async with ContextStore.from_env(url=database_url) as store:
        shared = (await store.create()).id
        writers = [Writer(f"{number}", random.Random(number), store, shared) for number in range(3)]
        for writer in writers:
            for _ in range(60):
                await writer.step()
            assert writer.unknown == 0
        said = await store.append(shared, {"role": "user", "content": "zzz", "token_count": 1})
        writers[0].batches.append(Batch(["zzz"], [said[0].version]))
        harmed = await query(database_url, f"{harm} RETURNING *")
        assert harmed
        with pytest.raises(AssertionError):
            await assert_log_and_database_agree(store, database_url, writers)
