"""The command `doctor`: what it finds, what it advises, how it ends."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from pgcontext import limits
from pgcontext.cli.doctor import Server, check_connection, check_pgvector, check_server
from tests.support import DIMENSIONS
from tests.support.cli import Cli
from tests.support.embedding_server import EmbeddingServer

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "hunter2"  # noqa: S105 (never a real one)


def checks(cli: Cli, *, code: int = 0) -> dict[str, dict[str, Any]]:
    """Run doctor, and return its checks by name."""
    result = cli("doctor", "--json")
    assert result.code == code, result.out + result.err
    return {check["name"]: check for check in result.value}


def test_a_healthy_database_has_nothing_to_do(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line is ok, the versions are named, the exit code is 0."""
    cli = Cli(monkeypatch, database_url)
    found = checks(cli)
    assert {check["result"] for check in found.values()} == {"ok"}
    assert all(check["advice"] is None for check in found.values())
    assert re.fullmatch(r"1[68]\.\d+", found["PostgreSQL"]["found"])
    assert found["migrations"]["found"] == f"at {limits.SCHEMA_REVISION}, the newest"
    assert found["embeddings"]["found"] == f"{DIMENSIONS} dimensions"
    out = cli.ok("doctor").out
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == (
        ["ok"] * len(found)
    )


def test_an_empty_database_is_to_be_migrated(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing fails, each with the command to run; the exit code is 1."""
    found = checks(Cli(monkeypatch, empty_database_url), code=1)
    assert [name for name in found if found[name]["result"] == "failed"] == [
        "pgvector",
        "migrations",
        "tables",
    ]
    assert found["migrations"]["advice"] == "run: pgcontext db migrate"
    assert found["embeddings"]["result"] == "skipped"


def test_other_dimensions_are_found(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting differs from the column: says which value to set."""
    monkeypatch.setenv("PGCONTEXT_DIMENSIONS", "1536")
    found = checks(Cli(monkeypatch, database_url), code=1)
    assert found["embeddings"]["advice"].startswith(f"set PGCONTEXT_DIMENSIONS={DIMENSIONS}, or ")


def test_the_embedder_is_tried(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers is ok; one that doesn't take the key fails, and the key stays out."""
    with EmbeddingServer() as server:
        cli = Cli(monkeypatch, database_url)
        monkeypatch.setenv("PGCONTEXT_EMBEDDING_URL", server.url)
        monkeypatch.setenv("PGCONTEXT_EMBEDDING_KEY", PASSWORD)
        monkeypatch.setenv("PGCONTEXT_EMBEDDING_MODEL", "small")
        assert re.fullmatch(r"small; a search takes \d+ ms", checks(cli)["embedder"]["found"])
        server.key = "another"
        found = checks(cli, code=1)["embedder"]
    assert found["result"] == "failed"
    assert "HTTP 401" in found["found"]
    assert PASSWORD not in found["found"]


def test_a_newer_database_is_found(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that this code doesn't know: upgrade pgcontext."""

    async def make_newer() -> None:
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE pgcontext_alembic_version SET version_num = '9999'")
        await connection.close()

    asyncio.run(make_newer())
    found = checks(Cli(monkeypatch, database_url), code=1)
    assert found["migrations"]["advice"] == "upgrade pgcontext"


def test_a_role_without_rights_is_found(
    database_url: str, connection_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects, but the tables can't be read."""
    connection_of(database_url)("DROP ROLE IF EXISTS stranger")
    connection_of(database_url)("CREATE ROLE stranger LOGIN")
    try:
        stranger = database_url.replace("postgres@", "stranger@", 1)
        found = checks(Cli(monkeypatch, stranger), code=1)
        assert found["connection"]["result"] == "ok"
        assert found["tables"]["result"] == "failed"
        assert "may not use" in found["tables"]["found"]
    finally:
        connection_of(database_url)("DROP ROLE stranger")


@pytest.fixture
def connection_of() -> Callable[[str], Callable[[str], None]]:
    """Run a statement on a database, past the store."""

    def of(url: str) -> Callable[[str], None]:
        async def run(statement: str) -> None:
            connection = await asyncpg.connect(url)
            await connection.execute(statement)
            await connection.close()

        return lambda statement: asyncio.run(run(statement))

    return of


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        (f"postgresql://u:{PASSWORD}@127.0.0.1:1/d", "nothing listens"),
        (f"postgresql://u:{PASSWORD}@localhost:1/d", "nothing listens"),
        ("postgresql://u@%2Fnonexistent/d", "nothing listens"),
        (f"postgresql://u:{PASSWORD}@does-not-exist.invalid/d", "not known"),
    ],
)
def test_without_a_connection_the_cause_is_told(
    monkeypatch: pytest.MonkeyPatch, url: str, advice: str
) -> None:
    """What the address allows to be judged is judged; then the connection fails, with advice."""
    cli = Cli(monkeypatch, url)
    found = checks(cli, code=1)
    assert [*found][-1] == "connection"
    assert found["connection"]["result"] == "failed"
    assert advice in found["connection"]["advice"]
    result = cli("doctor")
    assert PASSWORD not in result.out + result.err


def test_a_url_that_cannot_be_used_is_the_only_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings don't parse: one failed line that says what is accepted, no password."""
    result = Cli(monkeypatch, f"postgresql://u:{PASSWORD}@db.example/d?color=red")("doctor")
    assert result.code == 1
    assert "color" in result.out
    assert PASSWORD not in result.out


@pytest.mark.parametrize(
    ("url", "name", "result", "said"),
    [
        ("ep-a-pooler.eu.aws.neon.tech/d", "database", "ok", "(Neon)"),
        ("ep-a-pooler.eu.aws.neon.tech/d", "pooler", "ok", "transaction mode; prepared statements"),
        ("ep-a-pooler.eu.aws.neon.tech/d", "TLS", "ok", "certificate and name are checked"),
        ("ep-a-pooler.eu.aws.neon.tech/d", "migration URL", "warning", "DATABASE_URL_UNPOOLED"),
        ("db.example:7777/d", "pooler", "warning", "does not tell"),
        ("db.example/d?sslmode=verify-ca", "TLS", "ok", "certificate are checked"),
    ],
)
def test_the_address_is_judged_without_a_connection(
    monkeypatch: pytest.MonkeyPatch, url: str, name: str, result: str, said: str
) -> None:
    """Provider, pooler, TLS and the URL for migrations are told from settings alone."""
    from pgcontext import Settings
    from pgcontext.cli.doctor import check_url

    settings = Settings.from_env(url=f"postgresql://u:{PASSWORD}@{url}")
    [check] = [check for check in check_url(settings) if check.name == name]
    assert check.result == result
    assert said in check.found
    assert PASSWORD not in check.found


@pytest.mark.parametrize(("mode", "advice"), [("disable", "unset"), ("require", "sslrootcert")])
def test_weaker_tls_is_pointed_out(mode: Any, advice: str) -> None:
    """It works, so it is no failure; but it says how to do better."""
    from pgcontext import Settings
    from pgcontext.cli.doctor import check_tls

    settings = Settings.from_env(url="postgresql://u@db.example/d", tls=mode)
    assert settings.url is not None
    check = check_tls(settings.url)
    assert (check.result, advice in (check.advice or "")) == ("warning", True)


def server(**fields: Any) -> Server:
    """Make what INSPECT would tell of a server."""
    usual: dict[str, Any] = {
        "version": "18.4",
        "version_number": 180004,
        "is_standby": False,
        "pgvector": "0.8.5",
        "pgvector_offered": "0.8.5",
        "dimensions": 8,
    }
    return Server(**(usual | fields))


def test_old_versions_and_standbys_are_found() -> None:
    """Servers that no test machine has: judged by what they would tell."""
    assert [c.result for c in check_server(server())] == ["ok", "ok"]
    [old, _] = check_server(server(version="14.2", version_number=140002))
    assert (old.result, "15" in (old.advice or "")) == ("failed", True)
    [standby, _] = check_server(server(is_standby=True))
    assert (standby.result, standby.advice) == ("failed", "connect to the primary")
    assert check_pgvector(server(pgvector="0.7.4")).result == "failed"
    assert check_pgvector(server(pgvector="0.8.1")).result == "warning"
    assert check_pgvector(server(pgvector="0.10.0")).result == "ok"
    missing = check_pgvector(server(pgvector=None, pgvector_offered=None))
    assert "on the server" in (missing.advice or "")


def test_a_distant_database_is_pointed_out() -> None:
    """Each statement costs a turn: many milliseconds are worth a look."""
    assert check_connection(0.4).result == "ok"
    assert check_connection(80.0).result == "warning"


def test_the_embedded_postgresql_is_examined_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DATABASE_URL it is started, and everything is ok."""
    found = checks(Cli(monkeypatch, None))
    assert {check["result"] for check in found.values()} == {"ok"}
    assert "embedded" in found["database"]["found"]
