"""How long a search takes beside the best of the hand-written ones."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks.report import aligned, number
from benchmarks.search.by_hand import CHOICES, ByHand
from benchmarks.search.corpus import K, Sized, Truth, queries, row_of
from benchmarks.search.loading import loaded, store_on
from benchmarks.timing import Comparison, interleaved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from benchmarks.timing import Call
    from pgcontext import ContextStore

    Find = Callable[[list[float]], Awaitable[list[UUID]]]  # the ids of what is near

QUERIES: Final = 20
# What counts as the same recall: the difference of one hit in two hundred.
SAME_RECALL: Final = 0.005
RECALL_FLOOR: Final = 0.99
CHOICE_SECONDS_MAX: Final = 3.0
HEADER: Final = ("messages", "topic", "by hand", "recall@10", "p50")


def finding(store: ContextStore, **options: Any) -> Find:  # noqa: ANN401 (handed on)
    """Return the store's search, as all are compared."""

    async def find(query: list[float]) -> list[UUID]:
        hits = await store.search(query, mode="vector", limit=K, **options)
        return [hit.message.id for hit in hits]

    return find


def turns(find: Find, lists: list[list[float]]) -> Call:
    """Return a call that asks the next query each time."""
    ahead = itertools.cycle(lists)
    return lambda: find(next(ahead))


class Tried(msgspec.Struct, frozen=True):
    """One way to search a tenant of one size.

    Attributes:
        size: of the tenant, messages.
        on_topic: the queries are near to some of them.
        name: of the way.
        family: of the way.
        recall: mean.
        milliseconds: median.
    """

    size: int
    on_topic: bool
    name: str
    family: str
    recall: float
    milliseconds: float

    def compared(self) -> Comparison:
        """Hold its recall against what is there."""
        topic = "on topic" if self.on_topic else "off topic"
        return Comparison(
            what=f"recall@10, {self.size:,} messages, {topic}",
            against="what is there",
            ours=self.recall,
            theirs=1,
            floor=RECALL_FLOOR,
            unit="",
        )


class Asked:
    """Queries to one tenant, and what they should find."""

    def __init__(self, corpus: Sized, size: int, *, on_topic: bool) -> None:
        self.size = size
        self.on_topic = on_topic
        self.tenant_id = corpus.sizes[size]
        part = corpus.whole(self.tenant_id)
        vectors = queries(corpus, part, QUERIES, on_topic=on_topic)
        self.truth = Truth(corpus, part.rows, vectors)
        self.lists: list[list[float]] = vectors.tolist()
        self.topic = "on topic" if on_topic else "off topic"

    async def tried(self, name: str, family: str, find: Find) -> Tried:
        """Ask and see how much is found; of what isn't ours, as far as there is time."""
        await find(self.lists[0])
        recalls: list[float] = []
        seconds: list[float] = []
        for place, query in enumerate(self.lists):
            started = time.perf_counter()
            found = await find(query)
            seconds.append(time.perf_counter() - started)
            recalls.append(self.truth.recall(place, map(row_of, found)))
            if family != "ours" and sum(seconds) > CHOICE_SECONDS_MAX:
                break
        return Tried(
            *(self.size, self.on_topic, name, family, statistics.mean(recalls)),
            statistics.median(seconds) * 1_000,
        )


class Beside:
    """Compares the store with what can be written by hand, in tenants side by side."""

    def __init__(self, url: str, corpus: Sized, rounds: int) -> None:
        self._url = url
        self._corpus = corpus
        self._rounds = rounds
        self.tried: list[Tried] = []

    async def run(self) -> AsyncIterator[Comparison]:
        """Measure each size, on and off topic."""
        there = (await loaded(self._url, self._corpus)).url
        self._store = store_on(there)
        self._by_hand = [await ByHand.on(there, written) for written in CHOICES]
        try:
            for size, on_topic in itertools.product(self._corpus.sizes, (True, False)):
                asked = Asked(self._corpus, size, on_topic=on_topic)
                async for comparison in self._compared(asked):
                    yield comparison
        finally:
            await self._store.aclose()
            for by_hand in self._by_hand:
                await by_hand.aclose()

    async def _compared(self, asked: Asked) -> AsyncIterator[Comparison]:
        """Let all run a little, then the best of them beside the store."""
        ours = await asked.tried("the store", "ours", self._search(asked))
        tried = {
            by_hand: await asked.tried(
                by_hand.written.name, by_hand.written.family, self._find(asked, by_hand)
            )
            for by_hand in self._by_hand
        }
        self.tried += [ours, *tried.values()]
        yield ours.compared()
        what = f"search {asked.size:,} messages, {asked.topic} (recall {ours.recall:.3f})"
        enough = [hand for hand, of in tried.items() if of.recall >= ours.recall - SAME_RECALL]
        best = min(enough, key=lambda hand: tried[hand].milliseconds, default=None)
        if best is not None:
            yield await self._side_by_side(asked, what, best, tried[best], target=1.2)
        if asked.on_topic:
            return
        indexed = [hand for hand in enough if hand.written.family == "HNSW"]
        if indexed:
            best = min(indexed, key=lambda hand: tried[hand].milliseconds)
            yield await self._side_by_side(asked, what, best, tried[best], target=0.5)
        else:
            all_indexed = [hand for hand in tried if hand.written.family == "HNSW"]
            best = max(all_indexed, key=lambda hand: tried[hand].recall)
            yield await self._side_by_side(asked, what, best, tried[best], target=None)

    async def _side_by_side(
        self, asked: Asked, what: str, by_hand: ByHand, tried: Tried, *, target: float | None
    ) -> Comparison:
        ours, theirs = await interleaved(
            self._rounds,
            turns(self._search(asked), asked.lists),
            turns(self._find(asked, by_hand), asked.lists),
        )
        against = f"{by_hand.written.name} (recall {tried.recall:.3f})"
        return Comparison(what=what, against=against, ours=ours, theirs=theirs, target=target)

    def _search(self, asked: Asked) -> Find:
        return finding(self._store.for_tenant(asked.tenant_id))

    def _find(self, asked: Asked, by_hand: ByHand) -> Find:
        async def find(query: list[float]) -> list[UUID]:
            return [row["id"] for row in await by_hand.find(asked.tenant_id, query, K)]

        return find

    def table(self) -> str:
        """Return what was tried, for each size and topic."""
        rows = [
            (
                *(f"{of.size:,}", "on" if of.on_topic else "off", of.name),
                *(f"{of.recall:.3f}", f"{number(of.milliseconds)} ms"),
            )
            for of in self.tried
        ]
        return aligned([HEADER, *rows])
