"""Migrating forth and back, again, at once, elsewhere, and by Alembic's own command."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from pgcontext import ContextStore, Settings, limits, migrate
from pgcontext.errors import InvalidInputError, SchemaMismatchError, UnavailableError
from pgcontext.migrate.scripts import VERSION_TABLE
from pgcontext.schema import metadata
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences, names
from tests.support.migrations import VERSIONS, execute, fetch, program, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[2]
HEAD: Final = limits.SCHEMA_REVISION
NEWER: Final = "UPDATE pgcontext_alembic_version SET version_num = '9999'"


def environment_of(url: str, **variables: str) -> dict[str, str]:
    """The environment of a process that migrates this database."""
    ours = {"DATABASE_URL_UNPOOLED": url, "PGCONTEXT_DIMENSIONS": str(DIMENSIONS)}
    return os.environ | ours | variables


def start_migration(url: str, **variables: str) -> subprocess.Popen[str]:
    """Start `python -m pgcontext.migrate` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgcontext.migrate"],
        env=environment_of(url, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alembic(url: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic's own command at the top of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env=environment_of(url, **variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_up_down_up_leaves_nothing_and_makes_the_same(
    make_database: Callable[..., str], version: int
) -> None:
    """A downgrade undoes all but the extension, and another upgrade makes all of it again."""
    url = make_database(version=version, migrated=False)
    settings = settings_of(url)
    empty = catalog(url)
    assert migrate.upgrade(settings=settings) == HEAD
    migrated = catalog(url)
    assert migrate.downgrade(steps=len(migrate.revisions()), settings=settings) is None
    assert differences(empty, catalog(url)) == []
    assert fetch(url, "SELECT extname FROM pg_extension WHERE extname = 'vector'")
    assert migrate.upgrade(settings=settings) == HEAD
    assert differences(migrated, catalog(url)) == []


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    """The second run finds the work done: not one row of the catalog is written."""
    settings = settings_of(database_url)
    written = "SELECT max(xmin::text::bigint) FROM pg_class"
    before = fetch(database_url, written)
    assert migrate.upgrade(settings=settings) == HEAD
    assert fetch(database_url, written) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_two_migrations_at_once_do_the_work_once(
    make_database: Callable[..., str], version: int
) -> None:
    """Four processes start together on an empty database: all succeed, and one did it."""
    url = make_database(version=version, migrated=False)
    started = [start_migration(url) for _ in range(4)]
    for process in started:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert output == f"The database is at revision {HEAD}.\n"
    rows = fetch(url, "SELECT version_num, xmin::text AS by FROM pgcontext_alembic_version")
    assert [row["version_num"] for row in rows] == [HEAD]
    makers = "SELECT DISTINCT xmin::text FROM pg_class WHERE relname = 'messages'"
    assert [row[0] for row in fetch(url, makers)] == [rows[0]["by"]]
    assert migrate.check(settings=settings_of(url)) == []


def test_a_migration_waits_for_one_that_runs(empty_database_url: str) -> None:
    """While another holds the lock nothing is looked at; when it ends, what it did is seen."""

    async def scenario() -> str:
        other = await asyncpg.connect(empty_database_url)
        lock = other.transaction()
        await lock.start()
        await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('pgcontext', 0))")
        work = asyncio.create_task(
            asyncio.to_thread(migrate.upgrade, settings=settings_of(empty_database_url))
        )
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not await other.fetchval(waiting):
            assert not work.done()
            await asyncio.sleep(0.02)
        await lock.rollback()
        await other.close()
        return await work

    assert asyncio.run(scenario()) == HEAD


def test_a_migration_does_not_wait_behind_traffic_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that isn't granted in time ends it with a sentence, and nothing is changed."""
    monkeypatch.setattr(limits, "MIGRATION_LOCK_SECONDS_MAX", 1)
    settings = settings_of(database_url)

    async def scenario() -> None:
        reader = await asyncpg.connect(database_url)
        try:
            async with reader.transaction():
                await reader.execute("SELECT FROM messages")
                steps = len(migrate.revisions())
                await asyncio.to_thread(migrate.downgrade, steps=steps, settings=settings)
        finally:
            await reader.close()

    before = catalog(database_url)
    with pytest.raises(UnavailableError, match=r"nothing was changed.*\(SQLSTATE 55P03\)"):
        asyncio.run(scenario())
    assert migrate.status(settings=settings).revision == HEAD
    assert differences(before, catalog(database_url)) == []


def test_a_failed_migration_leaves_nothing_behind(empty_database_url: str) -> None:
    """It is one transaction: a table in the way at the end takes back the beginning too."""
    execute(empty_database_url, "CREATE TYPE tombstones AS ENUM ('in the way')")
    before = catalog(empty_database_url)
    with pytest.raises(Exception, match="nothing was changed"):
        migrate.upgrade(settings=settings_of(empty_database_url))
    assert differences(before, catalog(empty_database_url)) == []
    assert migrate.status(settings=settings_of(empty_database_url)).revision is None


def test_migrating_works_where_an_event_loop_runs(empty_database_url: str) -> None:
    """In a notebook or an application the functions are called from within a loop."""

    async def application() -> str:
        return migrate.upgrade(settings=settings_of(empty_database_url))

    assert asyncio.run(application()) == HEAD


def test_threads_migrate_different_databases(make_database: Callable[..., str]) -> None:
    """Alembic's module globals are kept from mixing two migrations of one process up."""
    urls = [make_database(migrated=False) for _ in range(3)]
    threads = [
        threading.Thread(target=migrate.upgrade, kwargs={"settings": settings_of(url)})
        for url in urls
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [migrate.status(settings=settings_of(url)).state for url in urls] == ["current"] * 3


def test_schemas_of_one_database_are_apart(empty_database_url: str) -> None:
    """Two schemas hold two stores: each is migrated, checked and dropped without the other."""
    public = settings_of(empty_database_url)
    chats = settings_of(empty_database_url, schema="chats", dimensions=3)
    assert migrate.upgrade(settings=public) == HEAD
    assert migrate.status(settings=chats).revision is None
    assert migrate.upgrade(settings=chats) == HEAD
    assert migrate.status(settings=chats).dimensions == 3
    before = catalog(empty_database_url)
    assert migrate.downgrade(steps=len(migrate.revisions()), settings=chats) is None
    assert differences(before, catalog(empty_database_url)) == []
    assert migrate.drop(settings=chats) == [VERSION_TABLE]
    assert migrate.status(settings=public).state == "current"


@pytest.mark.parametrize("dimensions", [1, 3, limits.EMBEDDING_DIMENSIONS_MAX])
@pytest.mark.parametrize("version", VERSIONS)
def test_embeddings_of_any_length_are_stored_and_found(
    make_database: Callable[..., str], version: int, dimensions: int
) -> None:
    """From one number to as many as an index can hold, in a schema of its own."""
    url = make_database(version=version, migrated=False)
    settings = Settings.from_env({}, url=url, schema="chats", dimensions=dimensions)
    migrate.upgrade(settings=settings)

    async def use() -> list[str | None]:
        async with ContextStore(settings=settings) as store:
            context = await store.create()
            for content, sign in (("near", 1.0), ("far", -1.0)):
                embedding = [sign] * dimensions
                message = {"role": "user", "content": content, "embedding": embedding}
                await store.append(context.id, message)
            hits = await store.search([0.5] * dimensions)
            hits += await store.search([0.5] * dimensions, context_id=context.id)
            return [hit.message.content for hit in hits]

    assert asyncio.run(use()) == ["near", "far"] * 2


def test_the_extension_may_live_in_a_schema_of_its_own(empty_database_url: str) -> None:
    """Some providers keep extensions apart; types and operators are found there all the same."""
    execute(
        empty_database_url,
        "CREATE SCHEMA extensions",
        "CREATE EXTENSION vector SCHEMA extensions",
    )
    settings = settings_of(empty_database_url, schema="chats")
    assert migrate.upgrade(settings=settings) == HEAD
    assert migrate.check(settings=settings) == []


def test_status_tells_what_is_to_come(empty_database_url: str) -> None:
    """Before, after, and after something newer, status says so and refuses nothing."""
    settings = settings_of(empty_database_url)
    before = migrate.status(settings=settings)
    assert (before.state, before.revision, before.dimensions) == ("behind", None, None)
    assert before.pending == tuple(migrate.revisions())
    assert (before.pgvector_version, before.head) == (None, HEAD)
    migrate.upgrade(settings=settings)
    after = migrate.status(settings=settings)
    assert (after.state, after.revision, after.pending) == ("current", HEAD, ())
    assert (after.dimensions, after.schema) == (DIMENSIONS, "public")
    assert after.server_version.startswith(("16.", "18."))
    execute(empty_database_url, NEWER)
    newer = migrate.status(settings=settings)
    assert (newer.state, newer.revision, newer.pending) == ("newer", "9999", ())


def test_revisions_and_steps_that_are_not_there_are_refused(database_url: str) -> None:
    """Neither an unknown revision nor more steps than were made."""
    settings = settings_of(database_url)
    with pytest.raises(InvalidInputError, match="There is no revision 'last'"):
        migrate.upgrade(revision="last", settings=settings)
    for steps in (-1, 0, len(migrate.revisions()) + 1):
        with pytest.raises(InvalidInputError, match=f"Cannot undo {steps} migrations"):
            migrate.downgrade(steps=steps, settings=settings)
    assert migrate.status(settings=settings).state == "current"


def test_drop_removes_what_is_ours_and_nothing_else(database_url: str) -> None:
    """The application's tables and functions stay, and the extension."""
    execute(
        database_url,
        "CREATE TABLE invoices (id integer)",
        "CREATE FUNCTION tax() RETURNS int LANGUAGE sql AS 'SELECT 19'",
    )
    settings = settings_of(database_url)
    functions = {name.partition("(")[0] for name in names(catalog(database_url), "function")}
    removed = migrate.drop(settings=settings)
    assert set(removed) == {*metadata.tables, *functions - {"tax"}, VERSION_TABLE}
    left = catalog(database_url)
    assert names(left, "table") == ["invoices"]
    assert names(left, "function") == ["tax()"]
    assert migrate.drop(settings=settings) == []
    assert migrate.upgrade(settings=settings) == HEAD


def test_drop_works_at_a_revision_that_is_not_known(database_url: str) -> None:
    """Whoever wants to be rid of it need not find the version that made it."""
    execute(database_url, NEWER)
    settings = settings_of(database_url, dimensions=3)
    with pytest.raises(SchemaMismatchError):
        migrate.downgrade(settings=settings)
    assert "messages" in migrate.drop(settings=settings)


def test_drop_leaves_tables_that_only_have_our_names(empty_database_url: str) -> None:
    """A table called messages that no migration made is somebody else's."""
    execute(empty_database_url, "CREATE TABLE messages (id integer)")
    assert migrate.drop(settings=settings_of(empty_database_url)) == []
    assert names(catalog(empty_database_url), "table") == ["messages"]


def test_the_module_is_a_command(empty_database_url: str) -> None:
    """`python -m pgcontext.migrate` needs the environment only, and says where it ended."""
    process = start_migration(empty_database_url)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (
        0,
        f"The database is at revision {HEAD}.\n",
        "",
    )


def test_alembics_own_command_works_in_a_checkout(empty_database_url: str) -> None:
    """upgrade, check, current and downgrade, with the URL from the environment."""
    url = empty_database_url
    upgraded = alembic(url, "upgrade", "head")
    assert upgraded.returncode == 0
    assert f"-> {HEAD}" in upgraded.stderr
    assert alembic(url, "check").stdout == "No new upgrade operations detected.\n"
    assert alembic(url, "current").stdout == f"{HEAD} (head)\n"
    assert migrate.check(settings=settings_of(url)) == []
    assert alembic(url, "downgrade", "base").returncode == 0
    assert migrate.status(settings=settings_of(url)).revision is None


def test_alembics_own_command_sees_a_change_and_explains_refusals(database_url: str) -> None:
    """A missing column is found; what our checks refuse is one line, without a traceback."""
    execute(database_url, "ALTER TABLE messages DROP COLUMN model")
    found = alembic(database_url, "check")
    assert (found.returncode, "add_column" in found.stderr) == (255, True)
    refused = alembic(database_url, "check", PGCONTEXT_DIMENSIONS="3")
    assert refused.returncode == 255
    assert "set PGCONTEXT_DIMENSIONS=8" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("schema", ["public", "chats"])
@pytest.mark.parametrize("version", VERSIONS)
def test_printed_sql_makes_the_same_as_the_migration(
    make_database: Callable[..., str], tmp_path: Path, version: int, schema: str
) -> None:
    """Who may not run migrations prints them, and an administrator runs them with psql."""
    migrated, printed = (make_database(version=version, migrated=False) for _ in range(2))
    migrate.upgrade(settings=settings_of(migrated, schema=schema))
    sql = alembic(printed, "upgrade", "head", "--sql", PGCONTEXT_SCHEMA=schema).stdout
    file = tmp_path / "upgrade.sql"
    file.write_text(sql)
    program("psql", version, "-v", "ON_ERROR_STOP=1", "-qf", str(file), printed)
    assert differences(catalog(migrated, schema), catalog(printed, schema)) == []
    assert migrate.status(settings=settings_of(printed, schema=schema)).state == "current"


def test_migrating_leaves_logging_as_it_is(empty_database_url: str) -> None:
    """A library doesn't turn its caller's loggers on or off."""
    levels = {name: logging.getLogger(name).level for name in ("", "alembic", "sqlalchemy")}
    handlers = list(logging.getLogger().handlers)
    migrate.upgrade(settings=settings_of(empty_database_url))
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert logging.getLogger().handlers == handlers
