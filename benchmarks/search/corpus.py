"""Which messages there are: whose, about what, when, and by which filter they are found.

A message belongs to a context of one topic. For each filter a few topics are kept out of what it
lets through, so that a query can be off topic: near to much in the table, and to nothing that
passes the filter. That is where an index that filters late loses what is there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
import numpy as np

from benchmarks.search.vectors import SEED, TOPICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from benchmarks.search.vectors import Space, Vectors

CHUNK_ROWS: Final = 10_000
REMEMBERED_ROWS_MAX: Final = 400_000  # 0.6 GB of embeddings; of more, each chunk is made again
MESSAGES: Final = 10  # of a context
SHARES: Final = {"20%": 0.2, "5%": 0.05, "1%": 0.01, "0.1%": 0.001, "0.01%": 0.0001}
ROLES: Final = {"20%": "user", "5%": "tool", "1%": "system", "0.1%": "developer"}
KINDS: Final = ("tenant", "role", "time", "metadata", "model")
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
NIL: Final = UUID(int=0)
K: Final = 10


class Slice(msgspec.Struct, frozen=True):
    """What one filter lets through.

    Attributes:
        kind: of filter.
        share: of the table's rows, as a percentage.
        tenant_id: to search in.
        filters: arguments of `ContextStore.search`.
        rows: their numbers, ascending.
        home: topics that the rows may have.
    """

    kind: str
    share: str
    tenant_id: UUID
    filters: dict[str, Any]
    rows: Any
    home: Any


class Corpus:
    """So many messages in a space; all that can be said of them without a database.

    Args:
        space: where the embeddings lie.
        rows: messages, a multiple of `MESSAGES`.
        name: of the database that holds them.
    """

    def __init__(self, space: Space, rows: int, name: str) -> None:
        self.space = space
        self.rows = rows
        self.name = name
        self.contexts = rows // MESSAGES
        self._rng = np.random.default_rng([SEED, rows])
        self.topic = self._rng.integers(TOPICS, size=self.contexts)
        self.order = self._rng.permutation(self.contexts)  # of the contexts in time
        self.labels = {kind: np.zeros(self.contexts, np.int8) for kind in KINDS}
        self.home = {kind: np.arange(TOPICS) for kind in KINDS}
        self._tenants: dict[int, UUID] = {0: NIL}
        self._remembered: Vectors | None = None

    def vectors(self, start: int = 0, stop: int | None = None) -> Vectors:
        """Return the embeddings of these rows."""
        stop = self.rows if stop is None else stop
        if self._remembered is None and self.rows <= REMEMBERED_ROWS_MAX:
            self._remembered = np.concatenate(
                [self._chunk(chunk) for chunk in range(-(-self.rows // CHUNK_ROWS))]
            )
        if self._remembered is not None:
            return self._remembered[start:stop]
        chunks = range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS))
        made = np.concatenate([self._chunk(chunk) for chunk in chunks])
        first = chunks[0] * CHUNK_ROWS
        return made[start - first : stop - first]

    def _chunk(self, chunk: int) -> Vectors:
        rows = np.arange(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, self.rows))
        rng = np.random.default_rng([SEED, self.rows, chunk])
        return self.space.draw(rng, self.topic[rows // MESSAGES])

    def tenant(self, context: int) -> UUID:
        """Return whose the context is."""
        return self._tenants[int(self.labels["tenant"][context])]

    @property
    def tenants(self) -> list[UUID]:
        """Everybody, the one without a share first."""
        return list(self._tenants.values())

    def role(self, context: int) -> str:
        """Return who wrote the context's messages."""
        return ["assistant", *ROLES.values()][int(self.labels["role"][context])]

    def metadata(self, context: int) -> dict[str, str]:
        """Return the context's metadata."""
        share = int(self.labels["metadata"][context])
        return {"channel": "web", "group": ("rest", *SHARES)[share]}

    def model(self, context: int) -> str:
        """Return the model that wrote the context's messages."""
        return f"model-{('rest', *SHARES)[int(self.labels['model'][context])]}"

    def moment(self, context: int) -> datetime:
        """Return when the context's first message was stored."""
        return START + timedelta(minutes=int(self.order[context]))

    def slices(self) -> list[Slice]:
        """Return what each filter lets through, where that is enough for a search."""
        return [
            self._slice(kind, place, share)
            for kind in KINDS
            for place, share in enumerate(SHARES, 1)
            if np.any(self.labels[kind] == place)
        ]

    def _slice(self, kind: str, place: int, share: str) -> Slice:
        contexts = np.flatnonzero(self.labels[kind] == place)
        moments = (
            START + timedelta(minutes=int(self.order[contexts].min())),
            START + timedelta(minutes=int(self.order[contexts].max()) + 1),
        )
        filters: dict[str, dict[str, Any]] = {
            "tenant": {},
            "role": {"roles": [self.role(int(contexts[0]))]},
            "time": {"since": moments[0], "until": moments[1]},
            "metadata": {"metadata": {"group": share}},
            "model": {"model": f"model-{share}"},
        }
        return Slice(
            kind=kind,
            share=share,
            tenant_id=self._tenants[place] if kind == "tenant" else NIL,
            filters=filters[kind],
            rows=rows_of(contexts),
            home=self.home[kind],
        )

    def whole(self, tenant_id: UUID) -> Slice:
        """Return all that a tenant has."""
        (place,) = (place for place, known in self._tenants.items() if known == tenant_id)
        contexts = np.flatnonzero(self.labels["tenant"] == place)
        home = self.home["tenant"]
        return Slice("tenant", "100%", tenant_id, {}, rows_of(contexts), home)

    def conversation(self, place: int) -> Slice:
        """Return one context of the tenant without a share."""
        context = np.flatnonzero(self.labels["tenant"] == 0)[[place]]
        filters = {"context_id": context_id(int(context[0]))}
        return Slice("context", "a context", NIL, filters, rows_of(context), self.topic[context])


class Sliced(Corpus):
    """One large tenant and small ones, with rows that each filter picks 20% to 0.01% of."""

    def __init__(self, space: Space, rows: int) -> None:
        super().__init__(space, rows, f"sliced_{space.name.replace('-', '_')}_{rows}")
        free = np.ones(self.contexts, bool)
        for kind in KINDS:
            self.home[kind] = np.sort(self._rng.choice(TOPICS, TOPICS * 6 // 10, replace=False))
            allowed = free & np.isin(self.topic, self.home[kind])
            self._label(kind, self._rng.permutation(np.flatnonzero(allowed)))
            if kind == "tenant":
                free = self.labels[kind] == 0
        self._tenants |= {place: UUID(int=place) for place in range(1, len(SHARES) + 1)}
        self._put_in_time()

    def _label(self, kind: str, contexts: NDArray[np.int64]) -> None:
        """Give each share its contexts; a share of less than one context stays away."""
        first = 0
        shares = ROLES if kind == "role" else SHARES
        for place, share in enumerate(shares, 1):
            count = int(SHARES[share] * self.contexts + 1e-9)
            self.labels[kind][contexts[first : first + count]] = place
            first += count

    def _put_in_time(self) -> None:
        """Let what a range of time picks be a range of time: the end of the year."""
        label = self.labels["time"]
        shuffled = self._rng.permutation(self.contexts)
        self.order[shuffled[np.argsort(label[shuffled], kind="stable")]] = np.arange(self.contexts)


class Sized(Corpus):
    """Tenants of these sizes side by side; none has a message in the second half of the topics."""

    def __init__(self, space: Space, sizes: Sequence[int], name: str) -> None:
        super().__init__(space, sum(sizes), name)
        self.home["tenant"] = np.arange(TOPICS // 2)
        self.topic %= TOPICS // 2
        self.sizes = dict(zip(sizes, map(UUID, _ids(len(sizes))), strict=True))
        self._tenants = dict(enumerate(self.sizes.values()))
        whose = np.repeat(np.arange(len(sizes), dtype=np.int8), np.array(sizes) // MESSAGES)
        # Side by side in time too, as tenants are.
        self.labels["tenant"] = self._rng.permutation(whose)


def _ids(count: int) -> Iterable[str]:
    return (str(UUID(int=place)) for place in range(count))


def context_id(context: int) -> UUID:
    """Return a context's id: as version 7 has them, one after the other, and known beforehand."""
    return _ordered(context, 0xC)


def message_id(row: int) -> UUID:
    """Return a message's id, from which `row_of` finds the row again."""
    return _ordered(row, 0xA)


def row_of(message: UUID) -> int:
    """Return the number of a message's row."""
    return message.int & (1 << 48) - 1


def _ordered(number: int, kind: int) -> UUID:
    milliseconds = int(START.timestamp() * 1_000) + number
    return UUID(int=milliseconds << 80 | 7 << 76 | 0b10 << 62 | kind << 48 | number)


def rows_of(contexts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of these contexts' rows."""
    return (contexts[:, None] * MESSAGES + np.arange(MESSAGES)).ravel()


def queries(corpus: Corpus, of: Slice, count: int, *, on_topic: bool) -> Vectors:
    """Make embeddings to search a slice with: near to some of its rows, or far from all of them."""
    rng = np.random.default_rng([SEED, corpus.rows, len(of.rows), int(on_topic)])
    if on_topic:
        chosen = rng.choice(of.rows, count)
        rows = np.concatenate([corpus.vectors(int(row), int(row) + 1) for row in chosen])
        return corpus.space.near(rng, rows)
    return corpus.space.draw(rng, rng.choice(np.setdiff1d(np.arange(TOPICS), of.home), count))


class Truth:
    """The exact distances between queries and a slice's rows."""

    def __init__(self, corpus: Corpus, rows: NDArray[np.int64], asked: Vectors) -> None:
        self._rows = rows
        parts = [
            1 - asked @ corpus.vectors(start, stop)[some - start].T
            for start in range(0, corpus.rows, CHUNK_ROWS)
            for stop in [min(start + CHUNK_ROWS, corpus.rows)]
            for some in [rows[(rows >= start) & (rows < stop)]]
            if len(some)
        ]
        self._distances = np.concatenate(parts, axis=1)
        self.expected = min(K, len(rows))
        nearest = np.partition(self._distances, self.expected - 1, axis=1)
        # A duplicate of the last is as good as the last; the margin is that of single precision.
        self._furthest = nearest[:, self.expected - 1] + 1e-5

    def recall(self, query: int, found: Iterable[int]) -> float:
        """Return the share of what is nearest that was found; what is not in the slice is wrong.

        Raises:
            ValueError: something was found twice, or does not pass the filter.
        """
        rows = np.fromiter(found, np.int64)
        places = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if len(np.unique(rows)) < len(rows) or not np.array_equal(self._rows[places], rows):
            msg = "A search found what its filter hides, or something twice."
            raise ValueError(msg)
        near = self._distances[query, places] <= self._furthest[query]
        return float(np.count_nonzero(near)) / self.expected
