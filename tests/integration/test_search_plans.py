"""Which way a search over a tenant takes through 200,000 messages, as the server counts it.

What PostgreSQL plans inside the functions can't be explained from outside; which indexes it went
to, how many entries it read there and how many rows it fetched for them is counted.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
import pytest

from pgcontext import ContextStore, limits, statements
from pgcontext.functions.nearest import GRAPH_CANDIDATES, SCAN_DEPTH_MIN
from tests.conftest import VERSION
from tests.support.bulk import MESSAGES, Rows, fill, moment
from tests.support.postgres import migrate
from tests.support.sql import all_statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from pgcontext import Hit
    from tests.support.postgres import Server

DIMENSIONS: Final = 64
LARGE, MIDDLING, SMALL = 1, 2, 3
ROWS: Final = {LARGE: 150_000, MIDDLING: 40_000, SMALL: 10_000}
RARE_CONTEXTS: Final = 20
RARE_ROLE_EVERY: Final = 1_000
AMBER_EVERY: Final = 5_000
DELETED_CONTEXTS: Final = 100
HITS: Final = 10
NEVER: Final = 10**9  # more messages than there are: always one by one
ROUGHLY: Final = "m = 8, ef_construction = 24"  # a graph that is built in seconds
COUNTED: Final = """
SELECT indexrelname AS name, idx_scan AS scans, idx_tup_read AS entries, idx_tup_fetch AS fetched
FROM pg_stat_user_indexes
UNION ALL
SELECT relname, seq_scan, seq_tup_read, seq_tup_read FROM pg_stat_user_tables
"""
# The counters of a connection's own work are shown to others at the end of this.
SHOW: Final = """-- pgcontext.show
SELECT pg_stat_force_next_flush() WHERE $1::uuid IS NOT NULL"""

STOP_PLANNING: Final = """-- pgcontext.stop_planning
SELECT set_config('plan_cache_mode', 'force_generic_plan', false) WHERE $1::uuid IS NOT NULL"""


def rows_of(tenant: int) -> Rows:
    rng = np.random.default_rng(tenant)
    count = ROWS[tenant]
    topics = np.random.default_rng(0).standard_normal((500, DIMENSIONS), dtype=np.float32)
    noise = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
    numbers = np.arange(count)
    return Rows(
        tenant=tenant,
        vectors=topics[rng.integers(len(topics), size=count)] + 0.6 * noise,
        roles=np.where(numbers % RARE_ROLE_EVERY == 7, "tool", "user"),
        models=np.where(numbers % 2 == 0, "even", "odd"),
        groups=np.where(np.arange(count // MESSAGES) < RARE_CONTEXTS, "rare", "other"),
        contents=[f"order {n} of {material(tenant, n)}" for n in range(count)],
    )


def material(tenant: int, number: int) -> str:
    """Say what was ordered: little amber by anybody, much stone by one tenant alone."""
    if number % AMBER_EVERY == 0:
        return "amber"
    return "stone" if tenant == MIDDLING and number % 4 == 0 else "wood"


@pytest.fixture(scope="module")
def filled_url(server: Callable[[int], Server]) -> Iterator[str]:
    """A database of 200,000 messages of three tenants, some contexts of the largest deleted."""
    running = server(VERSION)
    url = running.create_database(migrated=False)
    migrate(url, dimensions=DIMENSIONS)

    async def work() -> None:
        await fill(url, *map(rows_of, ROWS), hnsw=ROUGHLY)
        connection = await asyncpg.connect(url)
        await connection.execute(
            "UPDATE contexts SET deleted_at = now() WHERE (tenant_id, id) IN ("
            "SELECT tenant_id, id FROM contexts ORDER BY tenant_id, id DESC LIMIT $1)",
            DELETED_CONTEXTS,
        )
        await connection.close()

    with ThreadPoolExecutor(1) as threads:  # in this one a test's loop may be running
        threads.submit(asyncio.run, work()).result()
    yield url
    running.drop_database(url)


class Use(msgspec.Struct, frozen=True):
    """What was done with an index, or with a whole table.

    Attributes:
        scans: how often it was gone to.
        entries: what was read there.
        fetched: rows of the table that were looked at for these.
    """

    scans: int = 0
    entries: int = 0
    fetched: int = 0


UNUSED: Final = Use()
Uses = dict[str, Use]
Counts = dict[str, tuple[int, ...]]


@pytest.fixture
async def connection(filled_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the driver, past the store."""
    opened = await asyncpg.connect(filled_url)
    yield opened
    await opened.close()


@pytest.fixture
async def make_store(filled_url: str) -> AsyncIterator[Callable[..., ContextStore]]:
    """Make a tenant's store, over a single connection: `make_store(LARGE, exact_rows=NEVER)`."""
    made: list[ContextStore] = []

    def make(tenant: int, *, exact_rows: int, **overrides: Any) -> ContextStore:
        store = ContextStore.from_env(
            url=filled_url,
            dimensions=DIMENSIONS,
            exact_rows=exact_rows,
            pool_size=1,
            statement_cache="on",
            tenant_id=UUID(int=tenant),
            **overrides,
        )
        made.append(store)
        return store

    yield make
    for store in made:
        await store.aclose()


@pytest.fixture
def scanning(make_store: Callable[..., ContextStore]) -> ContextStore:
    """A store of the largest tenant that goes through its messages one by one."""
    return make_store(LARGE, exact_rows=NEVER)


async def used(
    store: ContextStore, connection: asyncpg.Connection, search: Awaitable[list[Hit]]
) -> Uses:
    """Make a search and return what it used: indexes and whole tables, by name."""
    before = await counted(store, connection)
    assert len(await search) == HITS
    return changes(before, await counted(store, connection))


def changes(before: Counts, after: Counts) -> Uses:
    """Return what is counted after and was not before, by name."""
    uses = {
        name: Use(*(now - then for now, then in zip(row, before[name], strict=True)))
        for name, row in after.items()
    }
    return {name: use for name, use in uses.items() if use != UNUSED}


async def counted(store: ContextStore, connection: asyncpg.Connection) -> Counts:
    await store._fetch(SHOW)
    return await uses_so_far(connection)


async def uses_so_far(connection: asyncpg.Connection) -> Counts:
    return {name: tuple(counts) for name, *counts in await connection.fetch(COUNTED)}


def inside(use: Use) -> bool:
    """Say whether an index told all; a page that was in use is left out by the vacuum before."""
    return use.fetched <= use.entries / 20


def query_of(tenant: int, row: int = 7_777) -> list[float]:
    vector: list[float] = rows_of(tenant).vectors[row].tolist()
    return vector


async def test_a_scan_stays_inside_the_signatures_of_the_tenant(
    scanning: ContextStore, connection: asyncpg.Connection
) -> None:
    """All of them, no row of the table for them; the likeliest are then looked up by their key."""
    uses = await used(scanning, connection, scanning.search(query_of(LARGE)))
    assert uses["messages_signature_idx"].entries == ROWS[LARGE]
    assert inside(uses["messages_signature_idx"])
    assert SCAN_DEPTH_MIN < uses["messages_pkey"].fetched < ROWS[LARGE] / 20
    assert not {"messages", "messages_embedding_idx", "messages_version_key"} & set(uses)


async def test_the_tenants_beside_it_cost_a_small_one_nothing(
    make_store: Callable[..., ContextStore], connection: asyncpg.Connection
) -> None:
    """A scan reads what the tenant has."""
    small = make_store(SMALL, exact_rows=limits.EXACT_ROWS_DEFAULT)
    uses = await used(small, connection, small.search(query_of(SMALL)))
    assert uses["messages_signature_idx"].entries == ROWS[SMALL]
    assert not {"messages", "messages_embedding_idx"} & set(uses)


async def test_a_query_far_from_everything_still_goes_by_keys(
    scanning: ContextStore, connection: asyncpg.Connection
) -> None:
    """However deep a scan has to look, it never reads the whole table."""
    query = [-value for value in query_of(LARGE)]
    uses = await used(scanning, connection, scanning.search(query))
    assert inside(uses["messages_signature_idx"])
    assert not {"messages", "messages_embedding_idx"} & set(uses)


@pytest.mark.parametrize(
    ("filters", "entries"),
    [
        ({"roles": ["tool"]}, ROWS[LARGE] // RARE_ROLE_EVERY),
        ({"since": moment(1_000), "until": moment(3_000)}, 2_000),
        ({"roles": ["tool"], "since": moment(1_000), "until": moment(91_000)}, 90),
    ],
    ids=["role", "time", "role and time"],
)
async def test_role_and_time_are_looked_up_among_the_signatures(
    scanning: ContextStore, connection: asyncpg.Connection, filters: dict[str, Any], entries: int
) -> None:
    """No entry is read that the filter doesn't let through."""
    uses = await used(scanning, connection, scanning.search(query_of(LARGE), **filters))
    assert uses["messages_signature_idx"].entries % entries == 0  # should it look twice
    assert uses["messages_signature_idx"].entries <= 2 * entries
    assert inside(uses["messages_signature_idx"])
    assert not {"messages", "messages_embedding_idx"} & set(uses)


async def test_a_model_is_filtered_among_the_signatures(
    scanning: ContextStore, connection: asyncpg.Connection
) -> None:
    """Without a look at the table."""
    uses = await used(scanning, connection, scanning.search(query_of(LARGE), model="even"))
    assert uses["messages_signature_idx"].entries == ROWS[LARGE]
    assert inside(uses["messages_signature_idx"])
    assert not {"messages", "messages_embedding_idx"} & set(uses)


@pytest.mark.parametrize(("group", "contexts"), [("rare", RARE_CONTEXTS), ("other", None)])
async def test_metadata_goes_by_the_contexts_that_have_it(
    scanning: ContextStore, connection: asyncpg.Connection, group: str, contexts: int | None
) -> None:
    """Their messages are read by the key of context and version, be it few or nearly all."""
    contexts = contexts or ROWS[LARGE] // MESSAGES - RARE_CONTEXTS
    search = scanning.search(query_of(LARGE), metadata={"group": group})
    uses = await used(scanning, connection, search)
    assert 0 < uses["messages_version_key"].entries <= 2 * contexts * MESSAGES
    assert not {"messages", "messages_embedding_idx", "messages_signature_idx"} & set(uses)


async def test_the_graph_is_walked_instead_where_a_scan_would_read_too_much(
    make_store: Callable[..., ContextStore], connection: asyncpg.Connection
) -> None:
    """And what it comes upon is looked up by its key, unless it lost its way, as it may."""
    store = make_store(LARGE, exact_rows=100_000)
    for row in range(7):
        uses = await used(store, connection, store.search(query_of(LARGE, row)))
        assert uses["messages_embedding_idx"].scans == 1
        if "messages_signature_idx" not in uses:
            break
    assert uses["messages_pkey"].fetched == GRAPH_CANDIDATES + HITS
    assert not {"messages", "messages_signature_idx", "messages_version_key"} & set(uses)


@pytest.mark.parametrize(
    "filters",
    [
        {"roles": ["user", "tool"]},
        {"since": moment(0)},
        {"until": moment(10**6)},
        {"metadata": {}},
        {"model": "even"},
    ],
    ids=lambda filters: next(iter(filters)),
)
async def test_what_is_filtered_is_never_left_to_the_graph(
    make_store: Callable[..., ContextStore],
    connection: asyncpg.Connection,
    filters: dict[str, Any],
) -> None:
    """It would give what is near first, and filter afterwards, until nothing is left."""
    store = make_store(LARGE, exact_rows=0)
    uses = await used(store, connection, store.search(query_of(LARGE), **filters))
    assert "messages_embedding_idx" not in uses


@pytest.mark.parametrize(
    ("tenant", "exact_rows", "prefers"),
    [
        (LARGE, 0, True),
        (LARGE, 100_000, True),
        (LARGE, 120_000, False),  # of 200,000 rows three quarters, squared, are 112,500
        (LARGE, ROWS[LARGE], False),
        (LARGE, NEVER, False),
        (MIDDLING, 5_000, True),
        (MIDDLING, 10_000, False),
        (SMALL, 1_000, False),  # its twentieth of the graph would have to be searched for
        (4, 0, False),  # nobody
    ],
)
async def test_the_graph_is_preferred_above_the_threshold_only(
    connection: asyncpg.Connection, tenant: int, exact_rows: int, *, prefers: bool
) -> None:
    """By the planner's statistics; the smaller a tenant's share, the later."""
    assert await prefers_graph(connection, tenant, exact_rows) == prefers


async def prefers_graph(connection: asyncpg.Connection, tenant: int, exact_rows: int) -> bool:
    answer: bool = await connection.fetchval(
        "SELECT prefers_graph FROM pgcontext_size($1, $2)", UUID(int=tenant), exact_rows
    )
    return answer


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM pg_statistic WHERE starelid = 'messages'::regclass",
        "UPDATE pg_class SET reltuples = -1 WHERE oid = 'messages_signature_idx'::regclass",
        "DROP INDEX messages_embedding_idx",
    ],
    ids=["no statistics", "never counted", "no graph"],
)
async def test_without_statistics_or_a_graph_messages_are_gone_through(
    connection: asyncpg.Connection, change: str
) -> None:
    """What isn't known can't be preferred."""
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(change)
    assert not await prefers_graph(connection, LARGE, 0)
    assert not await prefers_graph(connection, LARGE, 100_000)
    await transaction.rollback()
    assert await prefers_graph(connection, LARGE, 0)


async def test_words_are_looked_up_in_their_index(
    scanning: ContextStore, connection: asyncpg.Connection
) -> None:
    """And what they are found in, by its key."""
    uses = await used(scanning, connection, scanning.search("amber", mode="text"))
    assert uses["messages_text_idx"].scans >= 1
    assert not {"messages", "messages_embedding_idx", "messages_signature_idx"} & set(uses)


async def test_what_only_others_say_is_looked_up_in_the_index_of_words(
    connection: asyncpg.Connection,
) -> None:
    """And not among all messages, where the planner expects to come upon it soon."""
    flush = "SELECT pg_stat_force_next_flush()"
    await connection.execute(flush)
    before = await uses_so_far(connection)
    found = await connection.fetch(
        "SELECT * FROM pgcontext_matching($1, 'amber | stone', '{amber,stone}', 1,"
        " NULL, NULL, NULL, NULL, NULL)",
        UUID(int=LARGE),
    )
    assert len(found) >= 1
    await connection.execute(flush)
    uses = changes(before, await uses_so_far(connection))
    assert [name for name in uses if name.startswith("messages")] == ["messages_text_idx"]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
@pytest.mark.parametrize("exact_rows", [NEVER, 100_000], ids=["scan", "graph"])
async def test_a_plan_for_all_calls_goes_the_same_way(
    make_store: Callable[..., ContextStore],
    connection: asyncpg.Connection,
    mode: Any,
    exact_rows: int,
) -> None:
    """Whether PostgreSQL plans a prepared statement anew, has stopped to, or is told to stop."""
    store = make_store(LARGE, exact_rows=exact_rows)
    nameless: Any = Constant(query_of(LARGE))  # as the embeddings here; a store takes none such
    store._embedder = nameless
    ways: set[frozenset[str]] = set()
    for number in range(8):
        if number == 7:
            await store._fetch(STOP_PLANNING)
        search = store.search("amber", mode=mode, neighbors=1)
        uses = await used(store, connection, search)
        # By signature some are equally near: which of them come first isn't said, nor how many
        # have to be looked up. What is read for them all is.
        assert uses["messages_pkey"].fetched < 10_000
        assert uses.get("messages_signature_idx", UNUSED).entries in {0, ROWS[LARGE]}
        ways.add(frozenset(uses))
    assert len(ways) == 1
    assert "messages" not in ways.pop()


class Constant:
    """An embedder to which all texts are one."""

    model = None

    def __init__(self, vector: list[float]) -> None:
        self.vector = vector

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Return the vector for each text."""
        return [self.vector for _ in texts]


@pytest.mark.parametrize("name", [name for name in all_statements() if name.startswith("SEARCH_")])
async def test_a_query_is_read_once_and_not_for_each_row(
    connection: asyncpg.Connection, name: str
) -> None:
    """In a plan for all calls, an embedding's text and a query's words are parameters."""
    statement = statements.in_schema(all_statements()[name], "public")
    await connection.execute(f"PREPARE asked AS {statement}")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    values = ", ".join(["NULL"] * 16)
    plan = await connection.fetch(f"EXPLAIN (VERBOSE, COSTS OFF) EXECUTE asked({values})")
    text = "\n".join(line for (line,) in plan)
    assert text.count("($2)::vector") == ("_TEXT" not in name)
    assert text.count("pgcontext_text_query($3)") == ("_VECTOR" not in name)
