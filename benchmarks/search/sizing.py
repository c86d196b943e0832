"""What a million messages take: to load, on disk, in memory, and at each append."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import asyncpg
import msgspec

from benchmarks.report import aligned
from benchmarks.search.corpus import queries
from benchmarks.search.loading import fresh, loaded, store_on
from benchmarks.server import run
from benchmarks.timing import Comparison, interleaved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.search.corpus import Sized
    from benchmarks.search.loading import Loaded
    from benchmarks.timing import Call
    from pgcontext import ContextStore

# Whoever appends here is nobody that a search asks for.
APPENDER: Final = UUID(int=1 << 64)
APPENDED: Final = {
    "role": "assistant",
    "content": "The carrier reports that the second parcel was scanned on Tuesday, so it will be "
    "there soon. Is there anything else that I can do for you today?",
    "token_count": 30,
}
SEARCHER: Final = Path(__file__).with_name("searcher.py")
SIZES: Final = """
SELECT 'messages, rows without what is stored apart' AS what, pg_relation_size('messages') AS bytes
UNION ALL
SELECT 'messages, stored apart (TOAST): embeddings, long contents',
       pg_total_relation_size(reltoastrelid)
FROM pg_class WHERE oid = 'messages'::regclass
UNION ALL
SELECT 'index ' || i.relname || ' (' || a.amname || ')', pg_relation_size(i.oid)
FROM pg_index AS x
JOIN pg_class AS i ON i.oid = x.indexrelid
JOIN pg_am AS a ON a.oid = i.relam
WHERE x.indrelid = 'messages'::regclass AND pg_relation_size(i.oid) > 1048576
UNION ALL
SELECT 'contexts with indexes', pg_total_relation_size('contexts')
ORDER BY bytes DESC
"""
MEGABYTE: Final = 1024 * 1024


async def appends(url: str, corpus: Sized, rounds: int) -> AsyncIterator[Comparison]:
    """Compare appends to a full database with those to an empty one, with embeddings or without."""
    full = (await loaded(url, corpus)).url
    async with fresh(url, "empty") as empty:
        for commit in ("on", "off"):
            for there in (full, empty):
                await _commit(there, commit)
            async with store_on(full, APPENDER) as ours, store_on(empty, APPENDER) as other:
                async for comparison in _appends(ours, other, corpus, rounds):
                    disk = "" if commit == "on" else ", synchronous_commit=off"
                    yield msgspec.structs.replace(comparison, what=comparison.what + disk)
        await _commit(full, "on")


async def _appends(
    full: ContextStore, empty: ContextStore, corpus: Sized, rounds: int
) -> AsyncIterator[Comparison]:
    part = corpus.whole(corpus.tenants[0])
    embeddings = queries(corpus, part, rounds, on_topic=False).tolist()
    contexts = [(await store.create()).id for store in (full, full, empty)]
    now, later, before = await interleaved(
        rounds,
        _append(full, contexts[0], embeddings),
        _append(full, contexts[1], None),
        _append(empty, contexts[2], embeddings),
    )
    what = f"append with an embedding, {corpus.rows:,} messages"
    yield Comparison(what=what, against="no messages", ours=now, theirs=before)
    yield Comparison(what=what, against='embed="later"', ours=now, theirs=later)


def _append(store: ContextStore, context_id: UUID, embeddings: list[list[float]] | None) -> Call:
    if embeddings is None:
        return lambda: store.append(context_id, APPENDED, embed="later")
    ahead = itertools.cycle(embeddings)
    return lambda: store.append(context_id, APPENDED | {"embedding": next(ahead)})


async def _commit(url: str, value: str) -> None:
    """Set it for a database; connections made from then on have it."""
    connection = await asyncpg.connect(url)
    try:
        name = await connection.fetchval("SELECT current_database()")
        text = "ALTER DATABASE @name SET synchronous_commit = @value"
        await connection.execute(text.replace("@name", name).replace("@value", value))
    finally:
        await connection.close()


async def table(url: str, corpus: Sized) -> str:
    """Return what the corpus takes on disk and in memory, and how long it was made for."""
    there = await loaded(url, corpus)
    connection = await asyncpg.connect(there.url)
    try:
        sizes = await connection.fetch(SIZES)
    finally:
        await connection.close()
    rows = [("", "", "a message")]
    rows += [_size(size["what"], size["bytes"], corpus.rows) for size in sizes]
    rows.append(_size("together", sum(size["bytes"] for size in sizes), corpus.rows))
    rows += _building(there, corpus)
    rows += await _memory(there.url, corpus)
    return aligned(rows)


def _size(what: str, count: int, messages: int) -> tuple[str, str, str]:
    return what, f"{count / MEGABYTE:,.0f} MB", f"{count / messages:,.0f} bytes"


def _building(there: Loaded, corpus: Sized) -> list[tuple[str, str, str]]:
    rows = [("loading the rows (COPY)", there.load_seconds)]
    rows += [
        (f"building {name}", seconds)
        for name, seconds in there.build_seconds.items()
        if seconds >= 1
    ]
    return [
        (what, f"{seconds:,.0f} s", f"{seconds / corpus.rows * 1e6:,.0f} µs")
        for what, seconds in rows
    ]


async def _memory(url: str, corpus: Sized) -> list[tuple[str, str, str]]:
    """Let a process search, and see what it and its server process have taken."""
    asked = queries(corpus, corpus.whole(corpus.tenants[0]), 1, on_topic=True)[0]
    command = [sys.executable, str(SEARCHER), " ".join(map(str, asked.tolist()))]
    imported, peak, server = run(command, DATABASE_URL=url).split()
    return [
        ("memory of a client that has only imported", f"{int(imported) / 1024:,.0f} MB", ""),
        ("… after 200 searches", f"{int(peak) / 1024:,.0f} MB", ""),
        ("memory of its server process, not shared", f"{int(server) / 1024:,.0f} MB", ""),
    ]
