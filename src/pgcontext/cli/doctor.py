"""The command `doctor`: looks at everything between the settings and the tables."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from pgcontext import limits
from pgcontext.cli.output import Exit, JsonOption, Output
from pgcontext.errors import ConfigError, ContextStoreError, EmbeddingError
from pgcontext.pool import Pool
from pgcontext.statements import in_schema
from pgcontext.statements.inspecting import INSPECT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from pgcontext import ContextStore
    from pgcontext.settings import Settings
    from pgcontext.url import DatabaseUrl

Result = Literal["ok", "warning", "failed", "skipped"]
MARKS: Final[dict[Result, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "warning": ("look", "yellow"),
    "failed": ("FAIL", "bold red"),
    "skipped": ("-", "dim"),
}
SLOW_STATEMENT_MILLISECONDS: Final = 20
STATEMENTS_TIMED: Final = 5


class Check(msgspec.Struct, frozen=True):
    """One line of the report.

    Attributes:
        name: what was looked at.
        result: "warning" is for what works but could be better.
        found: what is there.
        advice: what to do about it; None when nothing.
    """

    name: str
    result: Result
    found: str
    advice: str | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A row of INSPECT.

    Attributes:
        version: of PostgreSQL, as it says it.
        version_number: as a number: 180004.
        is_standby: it can't be written to.
        pgvector: the extension's version in this database; None when it wasn't created.
        pgvector_offered: the version that could be created.
        dimensions: of the embeddings; None before the first migration.
    """

    version: str
    version_number: int
    is_standby: bool
    pgvector: str | None
    pgvector_offered: str | None
    dimensions: int | None


def doctor(*, as_json: JsonOption = False) -> None:
    """Check URL, TLS, pooler, server, extension and migrations, and say what to do."""
    out = Output(as_json=as_json)
    checks = out.run(examine())
    out.emit(checks, text=lambda: report(checks))
    if any(check.result == "failed" for check in checks):
        raise SystemExit(Exit.CHECK_FAILED)


async def examine() -> list[Check]:
    """Look at everything, as far as it goes: without a connection there is no server to judge."""
    from pgcontext import ContextStore

    try:
        store = ContextStore.from_env()
    except ConfigError as error:
        return [Check("settings", "failed", str(error))]
    settings = store.settings
    checks = [Check("settings", "ok", "all understood"), *check_url(settings)]
    async with store:
        try:
            server, milliseconds = await inspect(settings)
        except ContextStoreError as error:
            return [*checks, Check("connection", "failed", str(error), cause_advice(error))]
        return [
            *checks,
            check_connection(milliseconds),
            *check_server(server),
            await check_migrations(settings),
            check_dimensions(server, settings),
            await check_tables(store),
            await check_embedder(store),
        ]


def check_url(settings: Settings) -> Iterator[Check]:
    """Judge the URL's address without any I/O."""
    url = settings.url
    if url is None:
        yield Check("database", "ok", "the embedded PostgreSQL, as DATABASE_URL is not set")
        return
    verdict = url.verdict
    provider = f" ({verdict.provider})" if verdict.pooling != "unknown" else ""
    yield Check("database", "ok", f"{url.masked()}{provider}")
    pooling = settings.pooling
    if pooling == "unknown":
        yield Check(
            "pooler",
            "warning",
            "the address does not tell whether a pooler stands between",
            "say it: PGCONTEXT_POOLER=transaction, session or direct",
        )
    else:
        cached = "kept" if settings.caches_statements else "not kept"
        kind = "none, a direct connection" if pooling == "direct" else f"one in {pooling} mode"
        yield Check("pooler", "ok", f"{kind}; prepared statements are {cached}")
    yield check_tls(url)
    yield check_direct_url(settings)


def check_tls(url: DatabaseUrl) -> Check:
    """Say what protects the connection; that it is spoken shows when connecting."""
    roots = url.sslrootcert or "the system's authorities"
    if url.tls == "disable":
        if url.is_local:
            return Check("TLS", "ok", "not needed, the server is on this machine")
        return Check(
            "TLS", "warning", "off: everything crosses the network readable", "unset PGCONTEXT_TLS"
        )
    if url.tls == "require":
        return Check(
            "TLS",
            "warning",
            "encrypted, but anybody could pose as the server",
            "unset PGCONTEXT_TLS, and name the server's authority with sslrootcert",
        )
    whose = "certificate and name" if url.tls == "verify-full" else "certificate"
    return Check("TLS", "ok", f"the server's {whose} are checked against {roots}")


def check_direct_url(settings: Settings) -> Check:
    """Tell whether migrations know where to connect."""
    try:
        url = settings.direct_url
    except ConfigError as error:
        return Check("migration URL", "warning", str(error))
    found = "the same" if url is None or url == settings.url else url.masked()
    return Check("migration URL", "ok", found)


async def inspect(settings: Settings) -> tuple[Server, float]:
    """Connect and ask; return the answer, and the milliseconds of a warm statement."""
    pool = Pool(settings)
    statement = in_schema(INSPECT, settings.schema)
    try:
        found, _ = await pool.fetch(statement)
        taken: list[float] = []
        for _ in range(STATEMENTS_TIMED):
            started = time.perf_counter()
            await pool.fetch(statement)
            taken.append((time.perf_counter() - started) * 1_000)
    finally:
        await pool.aclose()
    return msgspec.convert(dict(found[0]), Server), min(taken)


def cause_advice(error: ContextStoreError) -> str | None:
    """Say what to look at when there was no connection; the error itself names no cause."""
    cause = error.__cause__
    if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
        return "nothing listens at that address: is the server running, and the port right?"
    if isinstance(cause, socket.gaierror):
        return "that host name is not known: is it spelled right?"
    if isinstance(cause, TimeoutError):
        return "nobody answered: does a firewall or an allow-list of addresses stand between?"
    return None


def check_connection(milliseconds: float) -> Check:
    """Judge how far away the database is."""
    found = f"works; a statement takes {milliseconds:.1f} ms"
    if milliseconds > SLOW_STATEMENT_MILLISECONDS:
        return Check("connection", "warning", found, "run it in the same region as the database")
    return Check("connection", "ok", found)


def check_server(server: Server) -> Iterator[Check]:
    """Judge the versions of PostgreSQL and pgvector."""
    least = limits.POSTGRESQL_VERSION_MIN
    if server.version_number // 10_000 < least:
        advice = f"upgrade to {least} or newer"
        yield Check("PostgreSQL", "failed", f"{server.version} is too old", advice)
    elif server.is_standby:
        advice = "connect to the primary"
        yield Check("PostgreSQL", "failed", f"{server.version}, a read-only standby", advice)
    else:
        yield Check("PostgreSQL", "ok", server.version)
    yield check_pgvector(server)


def check_pgvector(server: Server) -> Check:
    """Judge the extension: offered by the server, created in this database, new enough."""
    if server.pgvector is None:
        if server.pgvector_offered is None:
            advice = "install the package pgvector on the server"
            return Check("pgvector", "failed", "not on this server", advice)
        found = f"{server.pgvector_offered} is on the server, not yet in this database"
        return Check("pgvector", "failed", found, "run: pgcontext db migrate")
    version = tuple(int(number) for number in re.findall(r"[0-9]+", server.pgvector)[:3])
    advised = ".".join(map(str, limits.PGVECTOR_VERSION_ADVISED))
    advice = f"get {advised} or newer, then run: ALTER EXTENSION vector UPDATE;"
    if version < limits.PGVECTOR_VERSION_MIN:
        return Check("pgvector", "failed", f"{server.pgvector} is too old", advice)
    if version < limits.PGVECTOR_VERSION_ADVISED:
        found = f"{server.pgvector} works, with known defects"
        return Check("pgvector", "warning", found, advice)
    return Check("pgvector", "ok", server.pgvector)


async def check_migrations(settings: Settings) -> Check:
    """Compare the database's revision with this version's; over the URL for migrations."""
    if settings.url is None:
        return Check("migrations", "ok", f"at {limits.SCHEMA_REVISION}; they run by themselves")
    try:
        settings.direct_url  # noqa: B018 (it raises when there is none)
    except ConfigError:
        return Check("migrations", "skipped", "not visible without a URL for migrations")
    from pgcontext import migrate

    try:
        status = await asyncio.to_thread(migrate.status, settings=settings)
    except ContextStoreError as error:
        return Check("migrations", "failed", str(error), cause_advice(error))
    if status.state == "newer":
        found = f"at {status.revision}, made by a newer pgcontext"
        return Check("migrations", "failed", found, "upgrade pgcontext")
    if status.state == "behind":
        found = f"at {status.revision or 'none'}; this version needs {status.head}"
        return Check("migrations", "failed", found, "run: pgcontext db migrate")
    return Check("migrations", "ok", f"at {status.revision}, the newest")


def check_dimensions(server: Server, settings: Settings) -> Check:
    """Compare the length of the embeddings with the setting."""
    if server.dimensions is None:
        return Check("embeddings", "skipped", "no tables yet")
    if server.dimensions != settings.dimensions:
        return Check(
            "embeddings",
            "failed",
            f"the database has {server.dimensions:,} dimensions, the settings say "
            f"{settings.dimensions:,}",
            f"set PGCONTEXT_DIMENSIONS={server.dimensions}, or change the database: pgcontext db "
            f"dimensions {settings.dimensions}",
        )
    return Check("embeddings", "ok", f"{server.dimensions:,} dimensions")


async def check_tables(store: ContextStore) -> Check:
    """Read through the store, as an application does."""
    try:
        await store.list(limit=1)
    except ContextStoreError as error:
        return Check("tables", "failed", str(error))
    return Check("tables", "ok", "readable")


async def check_embedder(store: ContextStore) -> Check:
    """Search by meaning through the store: the embedder is asked, and its vector compared."""
    if store.embedder is None:
        return Check("embedder", "ok", "none; search finds words")
    started = time.perf_counter()
    try:
        await store.search("ready", mode="vector", limit=1)
    except EmbeddingError as error:
        return Check("embedder", "failed", str(error), "see docs/embeddings.md")
    except ContextStoreError:
        return Check("embedder", "skipped", "nothing to search in")
    milliseconds = (time.perf_counter() - started) * 1_000
    return Check("embedder", "ok", f"{store.embedder.model}; a search takes {milliseconds:.0f} ms")


def report(checks: list[Check]) -> RenderableType:
    """Lay the checks out, one a line, with what to do below it."""
    from rich.table import Table
    from rich.text import Text

    from pgcontext.cli.output import printable

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        found = Text(printable(check.found))
        if check.advice:
            found.append(f"\n{check.advice}", "bold")
        table.add_row(Text(*MARKS[check.result]), check.name, found)
    return table
