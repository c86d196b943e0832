"""What cannot be migrated is refused in one sentence that says what to run; nothing is changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pgcontext import migrate
from pgcontext.cli.output import EXIT_CODES
from pgcontext.errors import (
    ConfigError,
    ContextStoreError,
    SchemaMismatchError,
    UnavailableError,
)
from pgcontext.migrate import __main__ as command
from pgcontext.migrate import preflight
from pgcontext.migrate.connection import run
from pgcontext.migrate.preflight import Server
from pgcontext.settings import Settings
from tests.support.catalog import catalog
from tests.support.migrations import VERSIONS, as_role, execute, fetch, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROLE = "pgcontext_test_plain"


@pytest.fixture
def plain_role(make_database: Callable[..., str]) -> Iterator[None]:
    """A role that may connect, and nothing else, on each server that a test may use."""
    urls = [make_database(version=version, migrated=False) for version in VERSIONS]
    for url in urls:
        execute(url, f"DROP ROLE IF EXISTS {ROLE}", f"CREATE ROLE {ROLE} LOGIN")
    yield
    for url in urls:
        # Its privileges in databases that are gone went with them.
        execute(url, f"DROP ROLE {ROLE}")


@pytest.fixture
def owned_url(empty_database_url: str, plain_role: None) -> Iterator[str]:
    """An empty database, for statements of its administrator."""
    yield empty_database_url
    execute(empty_database_url, f"DROP OWNED BY {ROLE} CASCADE")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_role_that_may_not_create_the_extension(
    make_database: Callable[..., str], plain_role: None, version: int
) -> None:
    """It hears who must run what, and when that was run, the same role can migrate."""
    url = make_database(version=version, migrated=False)
    execute(url, f"GRANT CREATE ON SCHEMA public TO {ROLE}")
    settings = settings_of(as_role(url, ROLE))
    with pytest.raises(
        ConfigError, match=r"superuser.* run CREATE EXTENSION vector; in this database"
    ) as caught:
        migrate.upgrade(settings=settings)
    assert caught.value.sqlstate == "42501"
    assert catalog(url) == {}
    execute(url, "CREATE EXTENSION vector")
    migrate.upgrade(settings=settings)
    assert migrate.check(settings=settings_of(url)) == []
    execute(url, f"DROP OWNED BY {ROLE} CASCADE")


def test_a_role_that_may_not_create_tables(owned_url: str) -> None:
    """The grant that is missing stands in the sentence, and running it is enough."""
    execute(owned_url, "CREATE EXTENSION vector")
    settings = settings_of(as_role(owned_url, ROLE))
    grant = f"GRANT CREATE ON SCHEMA public TO {ROLE};"
    with pytest.raises(ConfigError, match=grant):
        migrate.upgrade(settings=settings)
    execute(owned_url, grant)
    migrate.upgrade(settings=settings)


def test_a_role_that_may_not_create_the_schema(owned_url: str) -> None:
    """A schema that is missing is made, and where that isn't allowed the command is named."""
    execute(owned_url, "CREATE EXTENSION vector")
    settings = settings_of(as_role(owned_url, ROLE), schema="chats")
    make = f"CREATE SCHEMA chats AUTHORIZATION {ROLE};"
    with pytest.raises(ConfigError, match=make):
        migrate.upgrade(settings=settings)
    execute(owned_url, make)
    migrate.upgrade(settings=settings)


def test_a_role_that_may_not_make_the_schema_to_compare_in(owned_url: str) -> None:
    """check says what it wants to do and which grant lets it, and then leaves nothing behind."""
    migrate.upgrade(settings=settings_of(owned_url))
    execute(owned_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE}")
    settings = settings_of(as_role(owned_url, ROLE))
    name = owned_url.partition("?")[0].rpartition("/")[2]
    grant = f"GRANT CREATE ON DATABASE {name} TO {ROLE};"
    with pytest.raises(ConfigError, match=grant):
        migrate.check(settings=settings)
    execute(owned_url, grant)
    assert migrate.check(settings=settings) == []
    assert not fetch(owned_url, "SELECT FROM pg_namespace WHERE nspname ~ 'scratch'")


def test_a_role_that_does_not_own_the_tables(owned_url: str) -> None:
    """It may see that all is migrated, and can undo nothing."""
    migrate.upgrade(settings=settings_of(owned_url))
    execute(owned_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE}")
    settings = settings_of(as_role(owned_url, ROLE))
    assert migrate.upgrade(settings=settings) == migrate.revisions()[-1]
    with pytest.raises(ConfigError, match="migrate as the role that owns them"):
        migrate.downgrade(settings=settings)


def test_objects_that_depend_on_the_tables_are_kept(database_url: str) -> None:
    """A foreign key of the application's own table stops a downgrade and a drop."""
    execute(
        database_url,
        "CREATE TABLE tickets (tenant_id uuid, context_id uuid, "
        "FOREIGN KEY (tenant_id, context_id) REFERENCES contexts)",
    )
    settings = settings_of(database_url)
    sentence = "of your own depend on pgcontext's tables"
    with pytest.raises(ConfigError, match=sentence):
        migrate.downgrade(steps=len(migrate.revisions()), settings=settings)
    with pytest.raises(ConfigError, match=sentence):
        migrate.drop(settings=settings)
    assert migrate.status(settings=settings).state == "current"


def test_only_what_depends_on_a_column_is_called_so(database_url: str) -> None:
    """PostgreSQL has one SQLSTATE for that and for all else that it can't do."""
    execute(database_url, "CREATE VIEW shown AS SELECT embedding_model FROM messages")

    def refused(statement: str) -> str:
        with pytest.raises(ContextStoreError, match="0A000") as caught:
            run(
                lambda connection: connection.exec_driver_sql(statement),
                settings_of(database_url),
            )
        return str(caught.value)

    depends = "of your own depend on pgcontext's tables"
    assert depends in refused("ALTER TABLE messages ALTER COLUMN embedding_model TYPE varchar")
    other = refused("SELECT count(*) FROM messages FOR UPDATE")
    assert other.startswith("The database refused")
    assert depends not in other


def extension_path(url: str, path: Path | str) -> None:
    """Let the server look for extensions elsewhere in this database; PostgreSQL 18 can do that."""
    name = url.partition("?")[0].rpartition("/")[2]
    execute(url, f"ALTER DATABASE {name} SET extension_control_path = '{path}'")


def make_old_pgvector(folder: Path) -> None:
    """Put an extension called vector, version 0.7.4, into a folder."""
    (folder / "extension").mkdir()
    control = "default_version = '0.7.4'\nrelocatable = true\n"
    (folder / "extension" / "vector.control").write_text(control)
    script = "CREATE FUNCTION vector_marker() RETURNS int LANGUAGE sql AS 'SELECT 1';\n"
    (folder / "extension" / "vector--0.7.4.sql").write_text(script)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that the server's own user can read."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def database18_url(make_database: Callable[..., str]) -> str:
    """An empty database on PostgreSQL 18."""
    return make_database(version=18, migrated=False)


def test_a_server_without_pgvector(database18_url: str, readable_folder: Path) -> None:
    """The package to install is named for the server's own version."""
    extension_path(database18_url, readable_folder)
    with pytest.raises(ConfigError, match=r"does not have pgvector.*postgresql-18-pgvector"):
        migrate.upgrade(settings=settings_of(database18_url))
    assert catalog(database18_url) == {}
    assert migrate.status(settings=settings_of(database18_url)).state == "behind"


def test_a_server_that_offers_an_old_pgvector(database18_url: str, readable_folder: Path) -> None:
    """Below 0.8.0 a filtered search loses rows, so it isn't even created."""
    make_old_pgvector(readable_folder)
    extension_path(database18_url, readable_folder)
    with pytest.raises(ConfigError, match=r"The server's pgvector 0\.7\.4 is too old.*0\.8\.0"):
        migrate.upgrade(settings=settings_of(database18_url))
    assert not fetch(database18_url, "SELECT FROM pg_extension WHERE extname = 'vector'")


def test_a_database_with_an_old_pgvector(database18_url: str, readable_folder: Path) -> None:
    """Where the server offers a newer one, the command that takes it is named."""
    make_old_pgvector(readable_folder)
    extension_path(database18_url, readable_folder)
    execute(database18_url, "CREATE EXTENSION vector")
    extension_path(database18_url, "$system")
    with pytest.raises(ConfigError, match="have the extension's owner run ALTER EXTENSION vector"):
        migrate.upgrade(settings=settings_of(database18_url))
    assert migrate.status(settings=settings_of(database18_url)).pgvector_version == "0.7.4"


def server(**changes: object) -> Server:
    """What a look at a good server finds, with changes; for versions that are not at hand."""
    found: dict[str, object] = {
        "version_number": 150013,
        "version": "15.13",
        "is_standby": False,
        "role": "app",
        "database": "chats",
        "pgvector": "0.8.5",
        "pgvector_schema": "public",
        "pgvector_offered": "0.8.5",
        "schema_exists": True,
        "may_create": True,
        "may_make_schemas": True,
        "tables": [],
        "dimensions": None,
        "encoding": "UTF8",
        "language": None,
        "languages": ["english", "german", "simple"],
        "has_versions": False,
    }
    return Server(**found | changes)  # type: ignore[arg-type]


def test_a_good_server_passes(caplog: pytest.LogCaptureFixture) -> None:
    """The oldest version that is supported is neither refused nor warned about."""
    preflight.refuse_server(server())
    preflight.refuse_server(server(pgvector=None, pgvector_offered="0.8.4"))
    preflight.refuse_server(server(pgvector="0.8.5", pgvector_offered="0.7.4"))
    assert not caplog.records


def test_an_old_postgresql() -> None:
    """Version 14 and below are refused by number."""
    with pytest.raises(ConfigError, match=r"PostgreSQL 14\.18 is too old: pgcontext needs 15"):
        preflight.refuse_server(server(version_number=140018, version="14.18"))


def test_a_standby() -> None:
    """A replica can't be written to; its primary is asked for."""
    with pytest.raises(ConfigError, match="read-only standby: name the primary"):
        preflight.refuse_server(server(is_standby=True))


@pytest.mark.parametrize(
    ("installed", "offered"), [("0.8.0", "0.8.5"), ("0.8.3", None), (None, "0.8.2")]
)
def test_a_pgvector_with_known_defects_is_warned_about(
    caplog: pytest.LogCaptureFixture, installed: str | None, offered: str | None
) -> None:
    """From 0.8.0 to 0.8.3 it works, and the log says what to do."""
    preflight.refuse_server(server(pgvector=installed, pgvector_offered=offered))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "ALTER EXTENSION vector UPDATE" in caplog.text


def test_a_read_only_database_is_refused(database_url: str) -> None:
    """A server that refuses to write says so in its own code, and ours is a sentence."""
    name = database_url.partition("?")[0].rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(UnavailableError, match="SQLSTATE 25006"):
        migrate.downgrade(settings=settings_of(database_url))


def test_a_database_that_a_newer_version_migrated(database_url: str) -> None:
    """Its revision isn't known here, so nothing is done to it but to say so."""
    execute(database_url, "UPDATE pgcontext_alembic_version SET version_num = '9999'")
    settings = settings_of(database_url)
    for work in (migrate.upgrade, migrate.downgrade, migrate.check, migrate.push):
        with pytest.raises(SchemaMismatchError, match=r"revision 9999.*upgrade pgcontext"):
            work(settings=settings)


def test_another_dimension_than_the_first_migrations(database_url: str) -> None:
    """It is fixed in the columns, so another setting is refused with the one to use."""
    settings = settings_of(database_url, dimensions=1536)
    for work in (migrate.upgrade, migrate.check, migrate.push):
        with pytest.raises(ConfigError, match="set PGCONTEXT_DIMENSIONS=8"):
            work(settings=settings)
    assert migrate.status(settings=settings).dimensions == 8


def test_tables_of_somebody_else_are_in_the_way(empty_database_url: str) -> None:
    """A table called messages is common; another schema is the way out, and works."""
    execute(empty_database_url, "CREATE TABLE messages (id integer)")
    with pytest.raises(ConfigError, match=r"did not make: messages.*PGCONTEXT_SCHEMA"):
        migrate.upgrade(settings=settings_of(empty_database_url))
    assert migrate.upgrade(settings=settings_of(empty_database_url, schema="chats"))


def test_a_transaction_pooler() -> None:
    """Locks and settings of a migration need a session, so the direct URL is asked for."""
    pooler = "postgresql://a:b@db.example.com:6432/app"
    for given in ({"unpooled_url": pooler}, {"url": pooler}):
        with pytest.raises(ConfigError, match="set DATABASE_URL_UNPOOLED"):
            migrate.upgrade(settings=Settings.from_env({}, **given))


def test_no_database_at_all() -> None:
    """Without any URL the variable to set is named."""
    with pytest.raises(ConfigError, match="No database is named: set DATABASE_URL_UNPOOLED"):
        migrate.upgrade(settings=Settings.from_env({}))


def test_a_server_that_does_not_answer() -> None:
    """Nobody listens there: that is no traceback, but an error that may be retried."""
    with pytest.raises(UnavailableError, match="connection to the database failed"):
        migrate.upgrade(settings=settings_of("postgresql://localhost:1/app"))


def test_a_server_that_goes_away(database_url: str) -> None:
    """A connection that is cut in the middle is one sentence too."""

    def work(connection: object) -> None:
        import sqlalchemy as sa

        assert isinstance(connection, sa.Connection)
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(UnavailableError):
        run(work, settings_of(database_url))


def run_module(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgcontext.migrate"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "code", "sentence"),
    [
        ({}, 5, "No database is named"),
        ({"DATABASE_URL": "mysql://localhost/app"}, 5, "must start with postgresql://"),
        ({"DATABASE_URL": "postgresql://a:secret@h:6432/app"}, 5, "transaction pooler"),
        ({"DATABASE_URL": "postgresql://a:secret@localhost:1/app"}, 6, "connection"),
    ],
)
def test_the_module_says_one_line_and_ends_with_a_code(
    variables: dict[str, str], code: int, sentence: str
) -> None:
    """`python -m pgcontext.migrate` never shows a traceback, nor a password."""
    done = run_module(**variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("pgcontext: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr


def test_the_module_ends_with_the_codes_of_the_command_line() -> None:
    """Both tables of exit codes say the same about every error a migration can raise."""
    of_commands = dict(EXIT_CODES)
    assert {kind: int(of_commands[kind]) for kind, _ in command.EXIT_CODES} == dict(
        command.EXIT_CODES
    )
    assert command.exit_code(ContextStoreError("?")) == command.UNEXPECTED


def test_the_module_hides_what_it_did_not_expect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong inside is one line and a code, and its text is not repeated."""

    def broken() -> str:
        raise RuntimeError("a secret")

    monkeypatch.setattr(command, "upgrade", broken)
    assert command.main() == command.UNEXPECTED
    assert capsys.readouterr().err == ("pgcontext: Unexpected RuntimeError; nothing was changed.\n")
