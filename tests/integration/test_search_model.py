"""Searches by chance, each held against the same search in plain Python over what history shows."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import pytest

from tests.support.embedders import Words, with_embedder

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import asyncpg

    from pgcontext import Context, ContextStore, Hit, Message

WORDS: Final = ("amber", "birch", "cobalt", "dune", "ember", "falcon")
ROLES: Final = ("user", "assistant", "system", "developer")
MODELS: Final = (None, "gpt", "claude")
METADATA: Final[tuple[dict[str, Any], ...]] = (
    {"user": 1, "tags": ["a", "b"]},
    {"user": 2, "tags": ["b"]},
    {},
)
SEARCHES: Final = 120
CONTEXTS: Final = 8
FORKS: Final = 6
LIVE_MIN: Final = 30


@dataclass
class Side:
    """A tenant's conversations, and the views that their histories show.

    Attributes:
        store: with an embedder, whose vectors most messages have.
        contexts: those that live.
        views: of each, what it shows.
    """

    store: ContextStore
    embedder: Words
    contexts: list[Context] = field(default_factory=list)
    views: dict[UUID, list[Message]] = field(default_factory=dict)

    def live(self) -> list[Message]:
        """Return what each context's head shows of what it wrote itself."""
        return [m for id, view in self.views.items() for m in view if m.context_id == id]

    def metadata(self, context_id: UUID) -> dict[str, Any]:
        return next(c.metadata for c in self.contexts if c.id == context_id)


@dataclass
class Asked:
    """The arguments of a search, and what they mean."""

    query: str
    mode: Any
    context_id: UUID | None
    limit: int
    filters: dict[str, Any]
    neighbors: int
    max_distance: float | None

    def arguments(self) -> dict[str, Any]:
        return {
            "context_id": self.context_id,
            "mode": self.mode,
            "limit": self.limit,
            "neighbors": self.neighbors,
            "max_distance": self.max_distance,
            **self.filters,
        }

    def passes(self, side: Side, message: Message) -> bool:
        """Whether the filters let a message through."""
        f = self.filters
        scope = self.context_id or message.context_id
        return (
            ("roles" not in f or message.role in f["roles"])
            and ("model" not in f or message.model == f["model"])
            and ("since" not in f or message.created_at >= f["since"])
            and ("until" not in f or message.created_at < f["until"])
            and ("at_version" not in f or message.version <= f["at_version"])
            and ("metadata" not in f or contains(side.metadata(scope), f["metadata"]))
        )

    def matches(self, message: Message) -> bool:
        """Whether a message has one of the words, or the words of the quotation in a row."""
        said = f" {message.content} "
        if self.query.startswith('"'):
            return f" {self.query[1:-1]} " in said
        return any(f" {word} " in said for word in self.query.split())

    def distance(self, side: Side, message: Message) -> float | None:
        """How far a message is from the query, if its embedding can be compared with it."""
        if message.embedding_model != side.embedder.model or message.embedding_pending:
            return None
        a, b = side.embedder.vector(self.query), side.embedder.vector(str(message.content))
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def contains(whole: Any, part: Any) -> bool:
    """Say whether JSON contains JSON, as PostgreSQL means it."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return all(any(contains(one, item) for one in whole) for item in part)
    return bool(whole == part)


async def talk(side: Side, other: ContextStore, id: UUID, chance: random.Random) -> None:
    """Say a few things: embedded by the store's model, by another, later, or never."""
    for _ in range(chance.randint(2, 4)):
        batch = [
            {
                "role": chance.choice(ROLES),
                "content": " ".join(chance.choices(WORDS, k=chance.randint(1, 4))),
                "model": chance.choice(MODELS),
            }
            for _ in range(chance.randint(1, 3))
        ]
        ways: list[tuple[ContextStore, Any]] = [(side.store, True)] * 4
        ways += [(other, True), (side.store, "later"), (side.store, False)]
        store, embed = chance.choice(ways)
        await store.append(id, batch, embed=embed)


async def made(store: ContextStore, chance: random.Random) -> Side:
    """Make conversations with forks, hide some messages and delete some contexts."""
    embedder = Words("mine")
    side = Side(with_embedder(store, embedder), embedder)
    other = with_embedder(store, Words("other"))
    ids = []
    for _ in range(CONTEXTS):
        context = await store.create(metadata=chance.choice(METADATA))
        await talk(side, other, context.id, chance)
        ids.append(context.id)
    for _ in range(FORKS):
        parent = await store.get(chance.choice(ids))
        fork = await store.fork(
            parent.id,
            at_version=chance.randint(0, parent.latest_version),
            metadata=chance.choice(METADATA),
        )
        await talk(side, other, fork.id, chance)
        ids.append(fork.id)
        for id in chance.sample(ids, 2):
            seen = await store.history(id)
            if len(seen) > 2:
                await store.delete_messages(id, [chance.choice(seen).version])
    for id in chance.sample(ids, 2):
        await store.delete(id)
    side.contexts = (await store.list(limit=200)).items
    side.views = {c.id: await store.history(c.id, limit=1_000) for c in side.contexts}
    return side


def drawn(side: Side, chance: random.Random) -> Asked:
    """Draw a search."""
    scope = chance.choice([None, chance.choice(side.contexts).id])
    moments = [message.created_at for message in side.live()]
    filters: dict[str, Any] = {
        "roles": chance.sample(ROLES, chance.randint(1, 2)),
        "model": chance.choice(["gpt", "claude", "nobody"]),
        "since": chance.choice(moments),
        "until": chance.choice(moments),
        "metadata": chance.choice([{"user": 1}, {"tags": ["b"]}, {}, {"user": 3}]),
    }
    if scope is not None:
        filters["at_version"] = chance.randint(0, 12)
    some = chance.sample(sorted(filters), chance.choice([0, 0, 1, 1, 2]))
    mode = chance.choice(["vector", "text", "hybrid", "auto"])
    query = " ".join(chance.sample(WORDS, chance.randint(1, 3)))
    return Asked(
        query=f'"{query}"' if chance.random() < 0.2 else query,
        mode=mode,
        context_id=scope,
        limit=chance.choice([1, 3, 10, 200]),
        filters={name: filters[name] for name in some},
        neighbors=chance.choice([0, 0, 1, 3]),
        max_distance=None if mode == "text" else chance.choice([None, None, 0.3, 0.8, 1.2]),
    )


def check(side: Side, asked: Asked, hits: list[Hit]) -> None:
    """Hold a search against a look at everything."""
    by_vector, by_text = asked.mode != "text", asked.mode != "vector"
    view = side.live() if asked.context_id is None else side.views[asked.context_id]
    passing = {m.id: m for m in view if asked.passes(side, m)}
    distances = {
        id: distance
        for id, m in passing.items()
        if by_vector
        and (distance := asked.distance(side, m)) is not None
        and (asked.max_distance is None or distance <= asked.max_distance)
    }
    matching = {id for id, m in passing.items() if by_text and asked.matches(m)}
    if asked.max_distance is not None:
        matching &= distances.keys()
    there = distances.keys() | matching
    assert len(hits) == min(asked.limit, len(there))
    assert len({hit.message.id for hit in hits}) == len(hits)
    for hit in hits:
        id = hit.message.id
        assert hit.message == passing[id]
        found_by = [("vector", id in distances), ("text", id in matching)]
        assert hit.found_by == tuple(name for name, found in found_by if found)
        assert hit.distance == pytest.approx(distances.get(id), abs=1e-5)
        assert (hit.text_score is not None) == (id in matching)
        assert hit.text_score is None or 0 < hit.text_score <= 1
        assert hit.neighbors == around(side, asked, hit.message)
    check_order(asked, hits, distances, len(matching))


def check_order(asked: Asked, hits: list[Hit], distances: dict[UUID, float], matching: int) -> None:
    """Hold the scores against their formula, and the order against the scores."""
    if asked.mode == "vector":
        assert [hit.distance for hit in hits] == pytest.approx(
            sorted(distances.values())[: asked.limit], abs=1e-5
        )
        assert hits == sorted(hits, key=lambda hit: (hit.distance, *newest(hit)))
        assert all(hit.score == pytest.approx(1 - (hit.distance or 0)) for hit in hits)
        return
    assert hits == sorted(hits, key=lambda hit: (hit.score, *newest(hit)), reverse=True)
    if asked.mode == "text":
        assert all(hit.score == hit.text_score for hit in hits)
        return
    near, far = min(distances.values(), default=0), max(distances.values(), default=0)
    scores = [hit.text_score for hit in hits if hit.text_score is not None]
    for hit in hits:
        if hit.distance is not None:
            least = most = (far - hit.distance) / (far - near) if far > near else 1.0
        else:  # as near as its words rank; matches beyond the limit may be better by words, or not
            least = sum(score <= (hit.text_score or 0) for score in scores) / matching
            most = least + (matching - len(scores)) / matching
        nearness = (hit.score - 0.7 * (hit.text_score or 0)) / 0.3
        assert least - 1e-5 <= nearness <= most + 1e-5


def newest(hit: Hit) -> tuple[datetime, int]:
    return hit.message.created_at, hit.message.version


def around(side: Side, asked: Asked, message: Message) -> list[Message]:
    """Return what the view shows before and after a message."""
    at_version = asked.filters.get("at_version", 2**63) if asked.context_id else 2**63
    view = [
        m for m in side.views[asked.context_id or message.context_id] if m.version <= at_version
    ]
    place = view.index(message)
    return view[max(0, place - asked.neighbors) : place] + view[place + 1 :][: asked.neighbors]


@pytest.mark.parametrize("exact_rows", [10**9, 0], ids=["scan", "graph"])
@pytest.mark.parametrize("seed", range(3))
async def test_every_search_finds_what_a_look_at_everything_finds(
    make_store: Callable[..., ContextStore],
    connection: asyncpg.Connection,
    seed: int,
    exact_rows: int,
) -> None:
    """By any mode and through any filters, in a context or over a tenant, beside another tenant."""
    chance = random.Random(f"{seed} {exact_rows}")
    root = make_store(exact_rows=exact_rows)
    await made(root.for_tenant(uuid4()), chance)
    side = await made(root.for_tenant(uuid4()), chance)
    await connection.execute("ANALYZE")
    assert LIVE_MIN < len(side.live()) < 100  # so all are among the nearest that are looked at
    for _ in range(SEARCHES):
        asked = drawn(side, chance)
        hits = await side.store.search(asked.query, **asked.arguments())
        check(side, asked, hits)
