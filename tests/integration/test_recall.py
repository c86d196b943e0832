"""How much of what is nearest a search over the tenant finds, held against a computation by hand.

Real embeddings and hard ones, near to what a filter lets through and far from all of it, before
and after the deletion of half of what is there.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec
import numpy as np
import pytest

from benchmarks.search.loading import HIDE_HALF, of_database
from benchmarks.search.vectors import DIMENSIONS, RECORDED, TOPICS, Hard, RealLike, Space, unit
from pgcontext import ContextStore
from tests.conftest import VERSION
from tests.support.bulk import MESSAGES, Rows, fill, moment, row_of
from tests.support.postgres import migrate

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from pgcontext import Hit
    from tests.support.postgres import Server

K: Final = 10
RECALL_MIN: Final = 0.99
RECALL_SMALL_MIN: Final = 0.97
QUERIES: Final = 4  # without a filter, on topic and off; through each filter there is one of both
SHARES: Final = {"20%": 0.2, "5%": 0.05, "1%": 0.01, "0.1%": 0.001, "0.01%": 0.0001}
ROLES: Final = dict(zip(("user", "tool", "system", "developer"), SHARES.values(), strict=False))
SEED: Final = 20_260_102


class Tenant(msgspec.Struct, frozen=True):
    """Messages, and what to ask for.

    Attributes:
        rows: the messages; those that filters let through are among the first `home`.
        home: how many messages are not about what `off` asks for.
        on: from rows to what one would ask who looks for them.
        off: queries near to the other messages only.
    """

    rows: Rows
    home: int
    on: Callable[[Any], Any]
    off: Any

    def filters(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Give arguments of `search`, and which rows they let through."""
        count, rows = len(self.rows.vectors), self.rows
        yield {}, np.ones(count, bool)
        for role in ROLES:
            yield {"roles": [role]}, rows.roles == role
        for share, part in SHARES.items():
            yield {"model": share}, rows.models == share
            yield {"metadata": {"group": share}}, np.repeat(rows.groups == share, MESSAGES)
            until = self.home // 2
            since = until - max(1, int(part * count))
            between = {"since": moment(since), "until": moment(until)}
            yield between, (np.arange(count) >= since) & (np.arange(count) < until)


def labelled(rng: Any, count: int, home: int, shares: dict[str, float], rest: str) -> Any:
    """Give each share its label, at least once, among the first `home` of `count`."""
    labels = np.full(count, rest, dtype=object)
    places, first = rng.permutation(home), 0
    for label, share in shares.items():
        last = first + max(1, int(share * count))
        labels[places[first:last]] = label
        first = last
    return labels


def rows_of(number: int, vectors: Any, home: int) -> Rows:
    """Make the messages of a tenant."""
    rng = np.random.default_rng([SEED, number])
    count = len(vectors)
    return Rows(
        tenant=number,
        vectors=vectors,
        roles=labelled(rng, count, home, ROLES, "assistant"),
        models=labelled(rng, count, home, SHARES, "other"),
        groups=labelled(rng, count // MESSAGES, home // MESSAGES, SHARES, "other"),
    )


def made(number: int, space: Space, count: int) -> Tenant:
    """Make a tenant of vectors drawn from a space, whose last topics no filter lets through."""
    rng = np.random.default_rng([SEED, number, 1])
    home, home_topics = count * 3 // 5, TOPICS * 3 // 5
    topics = np.concatenate(
        [
            rng.integers(home_topics, size=home),
            rng.integers(home_topics, TOPICS, size=count - home),
        ]
    )
    off = space.draw(rng, rng.integers(home_topics, TOPICS, size=QUERIES))
    rows = rows_of(number, space.draw(rng, topics), home)
    return Tenant(rows, home, lambda vectors: space.near(rng, vectors), off)


def recorded(number: int) -> Tenant:
    """Real conversations, and real questions; those about the last conversation are off topic."""
    rng = np.random.default_rng([SEED, number, 1])
    with np.load(RECORDED) as file:
        turns, asked = (unit(file[f"{name}_vecs"].astype("f4")) for name in ("turn", "question"))
        turn_of, asked_of = (
            np.array([id.partition("/")[0] for id in file[f"{name}_ids"]])
            for name in ("turn", "question")
        )
    last = turn_of[-1]
    home = int(np.count_nonzero(turn_of != last))
    count = len(turns) // MESSAGES * MESSAGES
    on, off = asked[asked_of != last], asked[asked_of == last]

    def questions(vectors: Any) -> Any:
        return rng.choice(on, len(vectors))

    return Tenant(rows_of(number, turns[:count], home), home, questions, rng.choice(off, QUERIES))


def repeated(number: int) -> Tenant:
    """A tenant most of whose messages say the very same."""
    tenant = made(number, RealLike(), 3_000)
    vectors = tenant.rows.vectors.copy()
    same = np.random.default_rng([SEED, number, 2]).random(len(vectors)) < 0.7
    vectors[same] = vectors[-1]
    return msgspec.structs.replace(
        tenant,
        rows=msgspec.structs.replace(tenant.rows, vectors=vectors),
        off=np.concatenate([vectors[-1:], tenant.off[1:]]),
    )


@pytest.fixture(scope="module")
def tenants() -> dict[str, Tenant]:
    """The same in every run."""
    all_of_them = {
        "like real": made(1, RealLike(), 6_000),
        "hard": made(2, Hard(), 6_000),
        "repeated": repeated(3),
    }
    if RECORDED.exists():
        all_of_them["real"] = recorded(4)
    return all_of_them


@pytest.fixture(scope="module")
def filled_url(server: Callable[[int], Server], tenants: dict[str, Tenant]) -> Iterator[str]:
    """All of them in one table."""
    running = server(VERSION)
    url = running.create_database(migrated=False)
    migrate(url, dimensions=DIMENSIONS)
    apart(fill(url, *(tenant.rows for tenant in tenants.values())))
    yield url
    running.drop_database(url)


DELETIONS: Final = {
    "all there": "SELECT",
    "half the messages deleted": HIDE_HALF,
    "half the contexts deleted": """
        UPDATE contexts SET deleted_at = now() WHERE right(id::text, 1) IN (
            '0', '2', '4', '6', '8', 'a', 'c', 'e'
        )""",
}


class Place(msgspec.Struct, frozen=True):
    """A database in which something was deleted, and never vacuumed."""

    url: str
    deleted: str

    def live(self, rows: Any) -> Any:
        """Say which rows are still there."""
        if self.deleted == "half the messages deleted":
            return rows % MESSAGES % 2 == 0  # versions count from 1, and the even ones are gone
        if self.deleted == "half the contexts deleted":
            return rows // MESSAGES % 2 == 1
        return rows >= 0


@pytest.fixture(scope="module", params=DELETIONS)
def place(
    request: pytest.FixtureRequest, server: Callable[[int], Server], filled_url: str
) -> Iterator[Place]:
    """A copy of the database after a deletion."""
    running = server(VERSION)
    url = of_database(filled_url, "recall_" + request.param.replace(" ", "_"))

    async def copy() -> None:
        admin = await asyncpg.connect(of_database(filled_url, "postgres"))
        names = [there.partition("?")[0].rpartition("/")[2] for there in (url, filled_url)]
        await admin.execute("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY".format(*names))
        await admin.close()
        connection = await asyncpg.connect(url)
        await connection.execute(DELETIONS[request.param])
        await connection.close()

    apart(copy())
    yield Place(url, request.param)
    running.drop_database(url)


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Run in another thread: in this one a test's loop may be running."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, work).result()


def share_found(hits: list[Hit], vectors: Any, query: Any, passing: Any) -> float:
    """Return the recall of a search, once all else about its hits is right."""
    rows = [row_of(hit.message.id) for hit in hits]
    expected = min(K, len(passing))
    assert len(rows) == len(set(rows)) == expected
    assert set(rows) <= set(passing.tolist())
    distances = 1 - vectors.astype(np.float64) @ query
    found = [hit.distance for hit in hits]
    assert found == sorted(found, key=lambda distance: distance or 0)
    assert found == pytest.approx(distances[rows].tolist(), abs=1e-5)
    if not expected:
        return 1.0
    # A duplicate of the last is as good as the last.
    furthest = np.partition(distances[passing], expected - 1)[expected - 1] + 1e-5
    return float(np.count_nonzero(distances[rows] <= furthest)) / expected


async def recalls(
    place: Place, tenants: dict[str, Tenant], exact_rows: int, *, filtered: bool
) -> dict[str, list[float]]:
    """Search on topic and off, and return the recall of each search."""
    found: dict[str, list[float]] = defaultdict(list)
    async with ContextStore.from_env(
        url=place.url, dimensions=DIMENSIONS, exact_rows=exact_rows, statement_cache="on"
    ) as root:
        for name, tenant in tenants.items():
            store = root.for_tenant(tenant.rows.tenant_id)
            vectors = tenant.rows.vectors
            for arguments, through in tenant.filters():
                passing = np.flatnonzero(through & place.live(np.arange(len(vectors))))
                count = 1 if arguments else QUERIES
                near = passing[:: max(1, len(passing) // count)][:count]
                for topic, queries in {
                    "on topic": tenant.on(vectors[near]),
                    "off topic": tenant.off[:count],
                }.items():
                    for query in queries:
                        hits = await store.search(query, limit=K, **arguments)
                        found[f"{name}, {topic}"].append(share_found(hits, vectors, query, passing))
                if not filtered:
                    break
    return found


def too_low(found: dict[str, list[float]]) -> dict[str, float]:
    means = {what: float(np.mean(recalls)) for what, recalls in found.items()}
    return {what: mean for what, mean in means.items() if mean < RECALL_MIN}


async def test_a_scan_finds_what_is_nearest_through_every_filter(
    place: Place, tenants: dict[str, Tenant]
) -> None:
    """At each selectivity, on topic and off, and never fewer than there are."""
    before = await scans_of("messages_embedding_idx", place)
    assert too_low(await recalls(place, tenants, 10**9, filtered=True)) == {}
    assert await scans_of("messages_embedding_idx", place) == before


async def test_the_graph_finds_what_is_nearest_or_leaves_it_to_a_scan(
    place: Place, tenants: dict[str, Tenant]
) -> None:
    """Whose best hits are not where they should be is not believed.

    These tenants are a part of a small table: the store would scan them. A graph is built by
    chance, so one of them may miss a hit or two that the graph of a large tenant finds.
    """
    before = await scans_of("messages_embedding_idx", place)
    found = await recalls(place, tenants, 0, filtered=False)
    assert np.mean(np.concatenate(list(found.values()))) >= RECALL_MIN
    assert min(float(np.mean(each)) for each in found.values()) >= RECALL_SMALL_MIN
    searches = sum(map(len, found.values()))
    assert await scans_of("messages_embedding_idx", place) == before + searches


async def scans_of(index: str, place: Place) -> int:
    """Say how often an index was used in a database."""
    connection = await asyncpg.connect(place.url)
    try:
        scans: int = await connection.fetchval(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = $1", index
        )
        return scans
    finally:
        await connection.close()
