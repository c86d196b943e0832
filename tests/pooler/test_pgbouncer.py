"""The store behind a real PgBouncer that gives each transaction to another server connection."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import asyncpg

from pgcontext.settings import child_environment
from tests.support.methods import ASKING
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer, needs_tracking

ROOT: Final = Path(__file__).parents[2]
WORK: Final = ROOT / "tests" / "support" / "mixed_work.py"
PROCESSES: Final = 2
COROUTINES: Final = 20
OPERATIONS_MIN: Final = 5_000
SERVER_CONNECTIONS: Final = 2

# Everything that a session keeps until somebody resets it.
SESSION: Final = """
SELECT
    (SELECT json_object_agg(name, setting ORDER BY name)::text FROM pg_settings) AS settings,
    (SELECT count(*) FROM pg_prepared_statements WHERE name <> '') AS prepared,
    (SELECT count(*) FROM pg_cursors WHERE name <> '') AS cursors,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
    pg_my_temp_schema()::bigint AS temporary,
    (SELECT count(*) FROM pg_listening_channels()) AS channels
"""
TRACES: Final = (
    "SET jit = off",
    "PREPARE one AS SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "CREATE TEMPORARY TABLE one (id integer)",
    "LISTEN one",
)


async def work(url: str, *, rounds: int, cache: str) -> tuple[int, list[str]]:
    """Let two processes use every method at once; return how often, and what was wrong."""
    environment = child_environment(
        DATABASE_URL=url,
        PGCONTEXT_POOLER="transaction",
        PGCONTEXT_STATEMENT_CACHE=cache,
        PYTHONPATH=str(ROOT),
    )
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(WORK)),
            *(f"p{number}", str(COROUTINES), str(rounds)),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]
    said = [json.loads((await process.communicate())[0]) for process in processes]
    return sum(one["operations"] for one in said), [line for one in said for line in one["wrong"]]


async def sessions(url: str) -> list[tuple[int, dict[str, Any]]]:
    """Look into both server connections of a pooler: their process, and the session's state."""
    clients = [
        await asyncpg.connect(url, statement_cache_size=0) for _ in range(SERVER_CONNECTIONS)
    ]
    found: list[tuple[int, dict[str, Any]]] = []
    for client in clients:
        # A transaction that stays open keeps the server connection from the next client.
        await client.execute("BEGIN")
        process = await client.fetchval("SELECT pg_backend_pid()")
        # Settings of the extension, and of the language of functions, come with their libraries.
        await client.execute("SELECT '[1]'::vector")
        await client.execute("DO 'BEGIN END'")
        found += [(process, dict(row)) for row in await client.fetch(SESSION)]
    for client in clients:
        await client.execute("ROLLBACK")
        await client.close()
    return found


async def assert_sessions_are_like_fresh_ones(url: str, database_url: str) -> None:
    """Hold every server connection of a pooler against those of another that was just started."""
    with PgBouncer(database_url) as other:
        fresh = await sessions(other.url)
    used = await sessions(url)
    assert len({process for process, _ in used + fresh}) == 2 * SERVER_CONNECTIONS
    for _, state in used:
        assert state == fresh[0][1]


def test_every_method_is_used() -> None:
    """A method that is added to the store joins the work behind the pooler."""
    assert set(re.findall(r"store\.(\w+)\(", WORK.read_text("utf-8"))) >= ASKING


@needs_pgbouncer
async def test_every_method_works_behind_a_pooler_and_leaves_no_trace(database_url: str) -> None:
    """Thousands of calls of two processes over two server connections: all right, nothing left."""
    with PgBouncer(database_url) as pooler:
        operations, wrong = await work(pooler.url, rounds=5, cache="auto")
        assert wrong == []
        assert operations >= OPERATIONS_MIN
        await assert_sessions_are_like_fresh_ones(pooler.url, database_url)


@needs_pgbouncer
async def test_the_statement_cache_would_go_wrong_there(database_url: str) -> None:
    """With the cache forced on the same work fails: the test above can see the danger."""
    with PgBouncer(database_url) as pooler:
        _, wrong = await work(pooler.url, rounds=1, cache="on")
        assert wrong
        prepared = [state["prepared"] for _, state in await sessions(pooler.url)]
        assert any(prepared)


@needs_pgbouncer
async def test_a_trace_in_a_session_would_be_seen(database_url: str) -> None:
    """Each kind of state that a client can leave behind makes a session unlike a fresh one."""
    for trace in TRACES:
        with PgBouncer(database_url) as pooler:
            client = await asyncpg.connect(pooler.url, statement_cache_size=0)
            await client.execute(trace)
            await client.close()
            with PgBouncer(database_url) as other:
                fresh = await sessions(other.url)
            assert any(state != fresh[0][1] for _, state in await sessions(pooler.url)), trace


@needs_pgbouncer
@needs_tracking
async def test_the_statement_cache_is_right_where_the_pooler_tracks(database_url: str) -> None:
    """A PgBouncer that knows the names of statements gives every client its own."""
    with PgBouncer(database_url, max_prepared_statements="100") as pooler:
        _, wrong = await work(pooler.url, rounds=2, cache="on")
        assert wrong == []
