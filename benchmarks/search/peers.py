"""Asks other stores on pgvector what ours is asked: the same data, server, filters and queries."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import msgspec
import numpy as np

from benchmarks.report import aligned, number
from benchmarks.search.corpus import (
    MESSAGES,
    K,
    Sliced,
    Truth,
    context_id,
    message_id,
    queries,
    row_of,
)
from benchmarks.search.latency import SAME_RECALL, finding
from benchmarks.search.loading import (
    BUILDING,
    loaded,
    note_on,
    noted,
    of_database,
    store_on,
    texts,
    timed,
)
from benchmarks.search.vectors import DIMENSIONS
from benchmarks.server import environment, run
from benchmarks.timing import Comparison

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence

    from benchmarks.search.corpus import Corpus, Slice
    from benchmarks.search.latency import Find
    from benchmarks.search.vectors import Space

    Ask = Callable[[list[float]], Awaitable[tuple[float, list[UUID]]]]  # seconds, and ids

FOLDER: Final = Path(__file__).parents[1] / "peers"
ENVIRONMENTS: Final = Path(__file__).parents[2] / "build" / "peers"
PEERS: Final = {
    "langchain_pgvector": "LangChain PGVectorStore",
    "mem0_pgvector": "mem0",
    "llamaindex_pgvector": "LlamaIndex PGVectorStore",
}
QUERIES: Final = 15
WARM_UP_QUERIES: Final = 3
HEADER: Final = ("messages", "searched", "topic")


class Manner(msgspec.Struct, frozen=True):
    """How the peers' databases are set.

    Attributes:
        name: for the table.
        ef_search: handed to the peers that have an option for it.
        settings: of the database, which no peer sets by itself.
    """

    name: str
    ef_search: int | None
    settings: dict[str, str]


MANNERS: Final = (
    Manner("as documented", None, {}),
    Manner(
        "ef_search 400, iterative_scan relaxed",
        400,
        {"hnsw.ef_search": "400", "hnsw.iterative_scan": "relaxed_order"},
    ),
    # The distance of every row that passes the filter, as without the index.
    Manner("without the HNSW index", None, {"enable_indexscan": "off"}),
)
OURS: Final = "pgcontext"


class Asked(msgspec.Struct, frozen=True):
    """What one store answered to the queries of one tenant.

    Attributes:
        rows: of the whole table.
        share: of them that is searched, the tenant's or a conversation.
        on_topic: whether the queries are near to some of these.
        store: who answered.
        manner: see there.
        recall: mean.
        fewest: hits of a query.
        milliseconds: median.
    """

    rows: int
    share: str
    on_topic: bool
    store: str
    manner: str
    recall: float
    fewest: int
    milliseconds: float

    @property
    def where(self) -> tuple[int, str, bool, str]:
        """What all stores are compared in."""
        return self.rows, self.share, self.on_topic, self.manner


class Process:
    """A peer's adapter, running in the peer's own environment."""

    def __init__(self, name: str) -> None:
        self._running = subprocess.Popen(
            [str(ENVIRONMENTS / name / "bin" / "python"), str(FOLDER / name / "adapter.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def __enter__(self) -> Self:
        """Return it; it is waiting for requests."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let it end."""
        self._running.communicate()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 (to JSON)
        """Send a request and wait for the answer.

        Raises:
            RuntimeError: it ended instead; what it said is above.
        """
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        self._running.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._running.stdin.flush()
        answer = self._running.stdout.readline()
        if not answer:
            msg = f"A peer's adapter ended with {self._running.wait()}."
            raise RuntimeError(msg)
        found: dict[str, Any] = json.loads(answer)
        return found


def install() -> None:
    """Make the environments that are not there yet."""
    for name in PEERS:
        if not (ENVIRONMENTS / name / "installed").exists():
            python = ENVIRONMENTS / name / "bin" / "python"
            run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENTS / name)])
            required = FOLDER / name / "requirements.txt"
            pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
            run([*pip, "--no-input", "--requirement", str(required)])
            (ENVIRONMENTS / name / "installed").touch()


def installed() -> bool:
    """Whether each peer has its environment."""
    return all((ENVIRONMENTS / name / "installed").exists() for name in PEERS)


async def measure(url: str, space: Space, sizes: Sequence[int]) -> list[Asked]:
    """Search tables of these sizes with every store, in turn.

    Args:
        url: of the server.
        space: of embeddings.
        sizes: of the tables, rows.
    """
    asked: list[Asked] = []
    for rows in sizes:
        corpus = Sliced(space, rows)
        ours = (await loaded(url, corpus)).url
        databases = {name: f"{name}_{rows}" for name in PEERS}
        for name, database in databases.items():
            await _loaded(url, corpus, name, database)
        for manner in MANNERS:
            for database in databases.values():
                await _set(url, database, manner.settings)
            with _opened(url, databases, manner) as processes:
                asked += await _in_turn(ours, corpus, processes, manner)
    return asked


@contextmanager
def _opened(url: str, databases: dict[str, str], manner: Manner) -> Generator[dict[str, Process]]:
    processes = {name: Process(name) for name in databases}
    try:
        for name, process in processes.items():
            process.ask("open", **_where(url, databases[name]), ef_search=manner.ef_search)
        yield processes
    finally:
        for process in processes.values():
            process.__exit__()


async def _in_turn(
    url: str, corpus: Corpus, processes: dict[str, Process], manner: Manner
) -> list[Asked]:
    asked: list[Asked] = []
    async with store_on(url) as store:
        tenants = [part for part in corpus.slices() if part.kind == "tenant"]
        for part in (*tenants, corpus.conversation(0)):
            ask = {OURS: _ours(finding(store.for_tenant(part.tenant_id), **part.filters))}
            for name, process in processes.items():
                ask[PEERS[name]] = _theirs(process, part)
            for on_topic in (True, False):
                answered = await _one(corpus, part, ask, on_topic=on_topic)
                asked += [
                    Asked(corpus.rows, part.share, on_topic, name, manner.name, *answer)
                    for name, answer in answered.items()
                ]
    return asked


async def _one(
    corpus: Corpus, part: Slice, ask: dict[str, Ask], *, on_topic: bool
) -> dict[str, tuple[float, int, float]]:
    """Ask all stores each query, one store after the other; return recall, hits and time."""
    vectors = queries(corpus, part, QUERIES, on_topic=on_topic)
    truth = Truth(corpus, part.rows, vectors)
    seconds: dict[str, list[float]] = {name: [] for name in ask}
    found: dict[str, list[list[UUID]]] = {name: [] for name in ask}
    lists = vectors.tolist()
    for query, call in itertools.product(lists[:WARM_UP_QUERIES], ask.values()):
        await call(query)
    for query in lists:
        for name, call in ask.items():
            taken, ids = await call(query)
            seconds[name].append(taken)
            found[name].append(ids)
    return {
        name: (
            statistics.mean(
                truth.recall(place, map(row_of, ids)) for place, ids in enumerate(found[name])
            ),
            min(len(ids) for ids in found[name]),
            statistics.median(taken) * 1_000,
        )
        for name, taken in seconds.items()
    }


def _ours(find: Find) -> Ask:
    async def ask(query: list[float]) -> tuple[float, list[UUID]]:
        started = time.perf_counter()
        ids = await find(query)
        return time.perf_counter() - started, ids

    return ask


def _theirs(process: Process, part: Slice) -> Ask:
    filters = {name.removesuffix("_id"): str(value) for name, value in part.filters.items()}
    filters = filters or {"tenant": _tenant(part.tenant_id)}

    async def ask(query: list[float]) -> tuple[float, list[UUID]]:
        answer = process.ask("search", embedding=query, filters=filters, limit=K)
        return answer["seconds"], [UUID(text) for text in answer["ids"]]

    return ask


def _tenant(tenant_id: UUID) -> str:
    return f"tenant {tenant_id.int}"


def _where(url: str, name: str) -> dict[str, Any]:
    parts = urlsplit(url)
    host = parse_qs(parts.query)["host"][0]
    user = parts.netloc.partition("@")[0]
    return {"database": {"host": host, "user": user, "name": name}, "dimensions": DIMENSIONS}


async def _set(url: str, database: str, settings: dict[str, str]) -> None:
    admin = await asyncpg.connect(of_database(url, database))
    try:
        await admin.execute("SELECT '[1]'::vector")  # makes hnsw.* known
        await admin.execute("ALTER DATABASE @ RESET ALL".replace("@", database))
        for name, value in settings.items():
            text = "ALTER DATABASE @database SET @name = '@value'"
            text = text.replace("@database", database).replace("@name", name)
            await admin.execute(text.replace("@value", value))
    finally:
        await admin.close()


async def _loaded(url: str, corpus: Corpus, name: str, database: str) -> None:
    """Let a peer store the corpus, unless an earlier run has; its index is built afterwards."""
    admin = await asyncpg.connect(url)
    try:
        if await noted(admin, database):
            return
        await admin.execute("DROP DATABASE IF EXISTS @ WITH (FORCE)".replace("@", database))
        await admin.execute("CREATE DATABASE @".replace("@", database))
        # Nobody waits for the disk at each message that a peer commits.
        await _prepare(url, database)
        with TemporaryDirectory() as folder, Process(name) as process:
            _write(corpus, Path(folder))
            process.ask("open", **_where(url, database), ef_search=None)
            definitions = await _drop_indexes(url, database)
            seconds = process.ask("load", folder=folder)["seconds"]
        built = await _build(url, database, definitions)
        await note_on(admin, database, {"load_seconds": seconds, "build_seconds": built})
    finally:
        await admin.close()


async def _prepare(url: str, database: str) -> None:
    admin = await asyncpg.connect(of_database(url, database))
    try:
        await admin.execute("CREATE EXTENSION vector")
    finally:
        await admin.close()
    await _set(url, database, {"synchronous_commit": "off", "maintenance_work_mem": "1GB"})


async def _drop_indexes(url: str, database: str) -> list[str]:
    """Drop the peer's own HNSW index, if it has made one, and return how it was made."""
    connection = await asyncpg.connect(of_database(url, database))
    try:
        indexes = await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes"
            " WHERE schemaname = 'public' AND indexdef LIKE '% USING hnsw %'"
        )
        for index in indexes:
            await connection.execute("DROP INDEX @".replace("@", index["indexname"]))
        return [index["indexdef"] for index in indexes]
    finally:
        await connection.close()


async def _build(url: str, database: str, definitions: list[str]) -> float:
    connection = await asyncpg.connect(of_database(url, database))
    try:
        for name, value in BUILDING.items():
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
        seconds = sum([await timed(connection, definition) for definition in definitions])
        await connection.execute("VACUUM (ANALYZE)")
        return seconds
    finally:
        await connection.close()


def _write(corpus: Corpus, folder: Path) -> None:
    """Write what the adapters read."""
    np.save(folder / "vectors.npy", corpus.vectors())
    lines = texts()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_lines(corpus, lines))


def _lines(corpus: Corpus, lines: list[tuple[str, int]]) -> Iterator[str]:
    for row in range(corpus.rows):
        context = row // MESSAGES
        metadata = {
            "tenant": _tenant(corpus.tenant(context)),
            "context": str(context_id(context)),
            "role": corpus.role(context),
        }
        text = lines[row % len(lines)][0]
        message = {"id": str(message_id(row)), "text": text, "metadata": metadata}
        yield json.dumps(message) + "\n"


def compare(asked: Sequence[Asked]) -> Iterator[Comparison]:
    """Hold our recall against each peer's, and our time against theirs where they find as much."""
    ours = {one.where: one for one in asked if one.store == OURS}
    documented = MANNERS[0].name
    for peer in PEERS.values():
        theirs = [one for one in asked if one.store == peer]
        plain = [one for one in theirs if one.manner == documented]
        least = min(plain, key=lambda one: ours[one.where].recall - one.recall)
        most = max(plain, key=lambda one: ours[one.where].recall - one.recall)
        for word, one in (("smallest", least), ("largest", most)):
            yield Comparison(
                what=f"recall@10, {_place(one)}, the {word} lead",
                against=peer,
                ours=ours[one.where].recall,
                theirs=max(one.recall, 0.001),
                floor=1 if word == "smallest" else None,
                unit="",
            )
        equal = [one for one in theirs if one.recall >= ours[one.where].recall - SAME_RECALL]
        if equal:
            slowest = max(equal, key=lambda one: ours[one.where].milliseconds / one.milliseconds)
            yield Comparison(
                what=f"search, {_place(slowest)}, the worst where recall is equal",
                against=f"{peer}, {slowest.manner}",
                ours=ours[slowest.where].milliseconds,
                theirs=slowest.milliseconds,
                target=1,
            )


def _place(one: Asked) -> str:
    topic = "on topic" if one.on_topic else "off topic"
    return f"{one.share} of {one.rows:,} messages, {topic}"


def table(asked: Sequence[Asked]) -> str:
    """Return every store's answers, a table for each manner."""
    stores = (OURS, *PEERS.values())
    tables: list[str] = []
    for manner in MANNERS:
        some = [one for one in asked if one.manner == manner.name]
        places = dict.fromkeys((one.rows, one.share, one.on_topic) for one in some)
        rows = [
            (
                *(f"{rows:,}", share, "on" if on_topic else "off"),
                *(_answer(some, (rows, share, on_topic, manner.name), store) for store in stores),
            )
            for rows, share, on_topic in places
        ]
        tables.append(f"Other stores {manner.name}:\n\n{aligned([(*HEADER, *stores), *rows])}")
    return "\n".join(tables)


def _answer(asked: Sequence[Asked], where: tuple[int, str, bool, str], store: str) -> str:
    (one,) = (one for one in asked if one.where == where and one.store == store)
    few = f" ({one.fewest} hits)" if one.fewest < K else ""
    return f"{one.recall:.3f}{few}, {number(one.milliseconds)} ms"
