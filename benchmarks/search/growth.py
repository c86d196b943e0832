"""What a search costs as a tenant grows, and in a context that inherits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.search.corpus import Sized
from benchmarks.search.latency import QUERIES, Asked, finding, turns
from benchmarks.search.loading import fresh, loaded, store_on
from benchmarks.timing import Comparison, interleaved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from benchmarks.search.vectors import Space, Vectors
    from pgcontext import ContextStore

DEPTH: Final = 20
CONTEXT_MESSAGES: Final = 1_000


def alone(space: Space, size: int) -> Sized:
    """Return a tenant with a database of its own."""
    return Sized(space, [size], f"alone_{size}")


async def growth(url: str, small: Sized, large: Sized, rounds: int) -> AsyncIterator[Comparison]:
    """Compare the same search in a small and in a large tenant."""
    databases = [(await loaded(url, corpus)).url for corpus in (small, large)]
    stores = [store_on(database) for database in databases]
    try:
        for on_topic in (True, False):
            asked = [Asked(corpus, corpus.rows, on_topic=on_topic) for corpus in (small, large)]
            tried = [
                await one.tried("the store", "ours", finding(store))
                for one, store in zip(asked, stores, strict=True)
            ]
            calls = [
                turns(finding(store), one.lists) for one, store in zip(asked, stores, strict=True)
            ]
            theirs, ours = await interleaved(rounds, *calls)
            for one in tried:
                yield one.compared()
            topic = asked[0].topic
            yield Comparison(
                what=f"search {large.rows:,} messages, {topic} (recall {tried[1].recall:.3f})",
                against=f"{small.rows:,} messages (recall {tried[0].recall:.3f})",
                ours=ours,
                theirs=theirs,
                target=1.5,
            )
    finally:
        for store in stores:
            await store.aclose()


async def lineage(url: str, space: Space, rounds: int) -> AsyncIterator[Comparison]:
    """Compare a search in a deep lineage with one in a context that holds as many by itself."""
    corpus = Sized(space, [2 * CONTEXT_MESSAGES], "lineage")
    vectors = corpus.vectors()
    async with fresh(url, corpus.name) as there, store_on(there) as store:
        flat = (await store.create()).id
        await _append(store, flat, vectors[:CONTEXT_MESSAGES])
        head = (await store.create()).id
        for level in range(DEPTH):
            head = head if level == 0 else (await store.fork(head)).id
            await _append(store, head, vectors[:CONTEXT_MESSAGES][level::DEPTH])
        asked: list[list[float]] = vectors[-QUERIES:].tolist()
        ours, theirs = await interleaved(
            rounds,
            turns(finding(store, context_id=head), asked),
            turns(finding(store, context_id=flat), asked),
        )
        yield Comparison(
            what=f"search in a context, {CONTEXT_MESSAGES:,} messages in {DEPTH} forks of forks",
            against=f"{CONTEXT_MESSAGES:,} messages of its own",
            ours=ours,
            theirs=theirs,
            target=1.5,
        )


async def _append(store: ContextStore, context_id: UUID, vectors: Vectors) -> None:
    await store.append(
        context_id,
        [
            {"role": "user", "content": f"Message {place}.", "embedding": embedding}
            for place, embedding in enumerate(vectors.tolist())
        ],
    )
