"""How much of what is nearest is found, at every selectivity, on and off topic, with deletes."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from benchmarks.report import aligned, number
from benchmarks.search.corpus import MESSAGES, K, Sliced, Truth, queries, row_of
from benchmarks.search.latency import RECALL_FLOOR
from benchmarks.search.loading import copied, hide_half, loaded, store_on
from benchmarks.timing import Comparison

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.search.corpus import Corpus, Slice
    from benchmarks.search.vectors import Space
    from pgcontext import ContextStore

HEADER: Final = (
    *("embeddings", "half deleted", "let through", "topic", "searches", "recall@10, mean"),
    *("worst filter", "worst search", "too few hits", "p50"),
)


class Cell(msgspec.Struct, frozen=True):
    """Searches of one kind: through one filter, on or off topic.

    Attributes:
        space: of embeddings.
        halved: every second message was deleted before.
        kind: of filter.
        share: of the rows that pass it.
        on_topic: the queries are near to some of these.
        recalls: of each search.
        short: searches that returned fewer hits than there are.
        seconds: of each search.
    """

    space: str
    halved: bool
    kind: str
    share: str
    on_topic: bool
    recalls: list[float]
    short: int
    seconds: list[float]


async def measure(url: str, spaces: Sequence[Space], rows: int, each: int) -> list[Cell]:
    """Search through every filter, before and after the deletion of every second message.

    Args:
        url: of the server.
        spaces: of embeddings, each in a database of its own.
        rows: of each.
        each: how many queries a filter gets on topic, and how many off topic.
    """
    cells: list[Cell] = []
    for space in spaces:
        corpus = Sliced(space, rows)
        there = await loaded(url, corpus)
        cells += [cell async for cell in _cells(there.url, corpus, each, halved=False)]
        async with copied(url, corpus.name) as copy:
            await hide_half(copy)
            cells += [cell async for cell in _cells(copy, corpus, each, halved=True)]
    return cells


async def _cells(url: str, corpus: Corpus, each: int, *, halved: bool) -> AsyncIterator[Cell]:
    async with store_on(url) as store:
        for part in corpus.slices():
            for on_topic in (True, False):
                yield await _cell(store, corpus, part, each, on_topic=on_topic, halved=halved)


async def _cell(
    store: ContextStore, corpus: Corpus, part: Slice, each: int, *, on_topic: bool, halved: bool
) -> Cell:
    asked = queries(corpus, part, each, on_topic=on_topic)
    # Versions count from 1, and the even ones are gone.
    rows = part.rows[part.rows % MESSAGES % 2 == 0] if halved else part.rows
    truth = Truth(corpus, rows, asked)
    recalls, seconds, short = [], [], 0
    tenant = store.for_tenant(part.tenant_id)
    for place, query in enumerate(asked.tolist()):
        started = time.perf_counter()
        hits = await tenant.search(query, mode="vector", limit=K, **part.filters)
        seconds.append(time.perf_counter() - started)
        recalls.append(truth.recall(place, (row_of(hit.message.id) for hit in hits)))
        short += len(hits) < truth.expected
    return Cell(
        *(corpus.space.name, halved, part.kind, part.share, on_topic),
        *(recalls, short, seconds),
    )


def compare(cells: Sequence[Cell]) -> list[Comparison]:
    """Hold the worst filter, and the number of hits, against what is there."""
    worst = min(cells, key=lambda cell: statistics.mean(cell.recalls))
    searches = sum(len(cell.recalls) for cell in cells)
    topic = "on topic" if worst.on_topic else "off topic"
    where = f"{worst.space}, {worst.kind} {worst.share}, {topic}"
    return [
        Comparison(
            what=f"recall@10, the worst of {len(cells)} filters and topics ({where})",
            against="what is there",
            ours=statistics.mean(worst.recalls),
            theirs=1,
            floor=RECALL_FLOOR,
            unit="",
        ),
        Comparison(
            what="searches that return k hits where k exist",
            against="searches",
            ours=searches - sum(cell.short for cell in cells),
            theirs=searches,
            floor=1,
            unit="",
        ),
    ]


def table(cells: Sequence[Cell]) -> str:
    """Return a row for each selectivity, over all kinds of filters."""
    groups: dict[tuple[str, bool, str, bool], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.space, cell.halved, cell.share, cell.on_topic), []).append(cell)
    return aligned([HEADER, *(_row(group) for group in groups.values())])


def _row(group: Sequence[Cell]) -> tuple[str, ...]:
    recalls = np.concatenate([cell.recalls for cell in group])
    first, milliseconds = group[0], np.concatenate([cell.seconds for cell in group]) * 1_000
    worst = min(group, key=lambda cell: statistics.mean(cell.recalls))
    return (
        *(first.space, "yes" if first.halved else "no", first.share),
        *("on" if first.on_topic else "off", f"{len(recalls):,}", f"{recalls.mean():.4f}"),
        f"{statistics.mean(worst.recalls):.3f} ({worst.kind})",
        *(f"{recalls.min():.1f}", str(sum(cell.short for cell in group))),
        f"{number(float(np.median(milliseconds)))} ms",
    )
