"""What can be done to a database: the functions that `pgcontext db` calls."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from pgcontext.errors import ConfigError, InvalidInputError, SchemaMismatchError
from pgcontext.migrate.catalog import FUNCTIONS
from pgcontext.migrate.comparison import SCRATCH_PREFIX, describe_by, drift, operations, said
from pgcontext.migrate.connection import direct_url, run
from pgcontext.migrate.preflight import (
    expect_head,
    look,
    make_room,
    make_scratch,
    prepare,
    quote,
    settled,
    take_turn,
)
from pgcontext.migrate.scripts import (
    VERSION_TABLE,
    alembic_config,
    applied,
    in_checkout,
    revisions,
)
from pgcontext.schema import build_metadata
from pgcontext.settings import Settings
from pgcontext.url import parse

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pgcontext.migrate.comparison import Describe


TEXT_FUNCTIONS: Final = "pgcontext_text_"


class MigrationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database stands.

    Attributes:
        state: "current"; "behind", when `pending` is to be applied; "newer", when the database was
            migrated by a version of pgcontext that this code does not know.
        revision: the database's revision; None before the first migration.
        head: the revision this code is written for.
        pending: the revisions to apply, oldest first.
        schema: the schema of the tables.
        dimensions: the length of the embeddings in the database; None before the first migration.
        language: what text search takes texts to be in; None before the first migration.
        server_version: of PostgreSQL, as it says it.
        pgvector_version: of the extension in this database; None where it is not created.
    """

    state: Literal["current", "behind", "newer"]
    revision: str | None
    head: str
    pending: tuple[str, ...]
    schema: str
    dimensions: int | None
    language: str | None
    server_version: str
    pgvector_version: str | None


def upgrade(
    url: str | None = None, *, revision: str = "head", settings: Settings | None = None
) -> str:
    """Bring the database to a revision; one that is there already is left alone.

    Args:
        url: the direct URL; None takes it from the settings.
        revision: a revision's number, or "head" for the newest.
        settings: instead of those of the environment.

    Returns:
        The revision the database has now.

    Raises:
        ConfigError: server, extension, privileges or settings do not allow it; says what to run.
        SchemaMismatchError: the database is newer than this code.
        InvalidInputError: there is no such revision.
        UnavailableError: no connection, or a lock was not granted in time.
    """
    settings = _settings(url, settings)
    known = revisions()
    target = known[-1] if revision == "head" else revision
    if target not in known:
        raise InvalidInputError(f"There is no revision {target!r}; there are: {', '.join(known)}.")

    def work(connection: Connection) -> str:
        server = prepare(connection, settings)
        if server.revision is not None and known.index(server.revision) >= known.index(target):
            return server.revision
        make_room(connection, server, settings)
        command.upgrade(alembic_config(connection, settled(settings, server)), target)
        return target

    return run(work, settings)


def downgrade(
    url: str | None = None, steps: int = 1, *, settings: Settings | None = None
) -> str | None:
    """Undo the newest migrations. The first one's tables go with everything in them.

    The extension stays: it may serve other tables, and be somebody else's.

    Args:
        url: the direct URL; None takes it from the settings.
        steps: how many migrations to undo.
        settings: instead of those of the environment.

    Returns:
        The revision the database has now; None when nothing is left of pgcontext.

    Raises:
        InvalidInputError: fewer migrations are applied than are to be undone.
        ContextStoreError: as for `upgrade`.
    """
    settings = _settings(url, settings)

    def work(connection: Connection) -> str | None:
        server = prepare(connection, settings)
        steps_done = applied(server.revision)
        if not 1 <= steps <= len(steps_done):
            raise InvalidInputError(
                f"Cannot undo {steps} migrations: {len(steps_done)} are applied here."
            )
        target = [None, *steps_done][-1 - steps]
        command.downgrade(alembic_config(connection, settled(settings, server)), target or "base")
        return target

    return run(work, settings)


def status(url: str | None = None, *, settings: Settings | None = None) -> MigrationStatus:
    """Look where the database stands, without a lock and without refusing anything."""
    settings = _settings(url, settings)
    server = run(lambda connection: look(connection, settings), settings)
    known = revisions()
    newer = server.revision is not None and server.revision not in known
    pending = () if newer else tuple(known[len(applied(server.revision)) :])
    return MigrationStatus(
        state="newer" if newer else "behind" if pending else "current",
        revision=server.revision,
        head=known[-1],
        pending=pending,
        schema=settings.schema,
        dimensions=server.dimensions,
        language=server.language,
        server_version=server.version,
        pgvector_version=server.pgvector,
    )


def check(
    url: str | None = None,
    *,
    settings: Settings | None = None,
    describe: Describe = build_metadata,
) -> list[str]:
    """Compare pgcontext's tables and functions in the database with `pgcontext.schema`.

    Everything that PostgreSQL says about them counts, except privileges and owners.

    Args:
        url: the direct URL; None takes it from the settings.
        settings: instead of those of the environment.
        describe: makes the metadata to compare with from the dimension and the schema.

    Returns:
        What is missing, too much or different, one line each; empty when they agree.

    Raises:
        SchemaMismatchError: migrations are pending.
        ContextStoreError: as for `upgrade`.
    """
    settings = _settings(url, settings)

    def work(connection: Connection) -> list[str]:
        server = prepare(connection, settings)
        expect_head(server)
        return drift(connection, server, settled(settings, server), describe)

    return run(work, settings, keep=False)


def push(
    url: str | None = None,
    *,
    settings: Settings | None = None,
    describe: Describe = build_metadata,
) -> list[str]:
    """Bring a development database to `pgcontext.schema` without a migration file.

    An empty one is made as described. One that is there is migrated, then changed by what Alembic
    finds to be different, and gets its policies and functions anew.

    Returns:
        What was changed beyond the migrations, one line each.

    Raises:
        ConfigError: the database is not on this machine.
        SchemaMismatchError: something differs that cannot be changed in place; says what.
        ContextStoreError: as for `upgrade`.
    """
    settings = _settings(url, settings)
    if not direct_url(settings).is_local:
        raise ConfigError(
            "db push is for a development database on this machine; for others write a "
            "migration with 'pgcontext db generate' and run 'pgcontext db migrate'."
        )

    def work(connection: Connection) -> list[str]:
        server = prepare(connection, settings)
        decided = settled(settings, server)
        described = describe_by(describe, decided)
        config = alembic_config(connection, decided)
        if server.revision is None:
            make_room(connection, server, settings)
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
            described.create_all(connection, checkfirst=False)
            command.stamp(config, "head")
            return []
        command.upgrade(config, "head")
        found = operations(connection, decided, describe)
        for operation in found:
            Operations(MigrationContext.configure(connection)).invoke(operation)
        _make_policies_and_functions(connection, described)
        if left := drift(connection, server, decided, describe):
            raise SchemaMismatchError(
                f"Nothing was changed, since this cannot be changed in place: {', '.join(left)}; "
                "start anew with 'pgcontext db drop' and 'pgcontext db push'."
            )
        return [said(operation) for operation in found]

    return run(work, settings)


def drop(
    url: str | None = None, *, not_local: bool = False, settings: Settings | None = None
) -> list[str]:
    """Remove pgcontext's tables and functions, with everything in them, at any revision.

    The schema and the extension stay.

    Args:
        url: the direct URL; None takes it from the settings.
        not_local: also where the database is on another machine.
        settings: instead of those of the environment.

    Returns:
        The names of what was removed.

    Raises:
        ConfigError: the database is not on this machine, or other objects depend on the tables.
        ContextStoreError: as for `upgrade`.
    """
    settings = _settings(url, settings)
    if not (not_local or direct_url(settings).is_local):
        raise ConfigError(
            "The database is on another machine: dropping pgcontext's tables there needs "
            "--yes and --not-local."
        )

    def work(connection: Connection) -> list[str]:
        take_turn(connection)
        server = look(connection, settings)
        # Before the first migration, tables of these names are somebody else's.
        ours = server.tables if server.revision is not None else []
        functions = _functions(connection, settings.schema) if server.revision is not None else []
        tables = ours + ([VERSION_TABLE] if server.has_versions else [])
        # The tables first: a column of theirs is generated by a function.
        _drop(connection, "TABLE", [_qualified(settings.schema, table) for table in tables])
        _drop(connection, "FUNCTION", functions)
        return [function.partition("(")[0] for function in functions] + tables

    return run(work, settings)


def generate(
    message: str,
    url: str | None = None,
    *,
    empty: bool = False,
    settings: Settings | None = None,
    describe: Describe = build_metadata,
) -> Path | None:
    """Write a migration from what the migrations make to what `pgcontext.schema` says.

    Both are compared in a schema made for it, in a transaction that is rolled back; so the
    database's own tables do not matter and nothing of it changes.

    Args:
        message: the migration's first line, and its file's name.
        url: of any database that could be migrated; None takes it from the settings.
        empty: write a file to be filled by hand even when there is no difference.
        settings: instead of those of the environment.
        describe: makes the metadata to compare with from the dimension and the schema.

    Returns:
        The new file; None when there is no difference.

    Raises:
        ConfigError: this is an installed package, not a checkout.
        ContextStoreError: as for `upgrade`.
    """
    if not message.strip():
        raise InvalidInputError("A migration needs a message that says what it does.")
    if not in_checkout():
        raise ConfigError("Migrations are written in a checkout of pgcontext, not in a package.")
    scratch = SCRATCH_PREFIX + secrets.token_hex(4)
    settings = msgspec.structs.replace(_settings(url, settings), schema=scratch)

    def work(connection: Connection) -> Path | None:
        server = prepare(connection, settings)
        make_scratch(connection, server, scratch)
        decided = settled(settings, server)
        config = alembic_config(connection, decided, describe=describe, skip_empty=not empty)
        command.upgrade(config, "head")
        script = command.revision(config, message.strip().rstrip("."), autogenerate=True)
        return Path(script.path) if script and not isinstance(script, list) else None

    return run(work, settings, keep=False)


def _settings(url: str | None, settings: Settings | None) -> Settings:
    if url is None:
        return settings or Settings.from_env()
    if settings is None:
        return Settings.from_env(unpooled_url=url)
    return msgspec.structs.replace(settings, unpooled_url=parse(url, tls=settings.tls))


def _make_policies_and_functions(connection: Connection, described: sa.MetaData) -> None:
    """Make anew what `create_all` makes beside tables and indexes, and Alembic does not see."""
    for table in described.sorted_tables:
        name = _qualified(table.schema, table.name)
        for policy in _policies(connection, table):
            _drop(connection, "POLICY", [f"{quote(policy)} ON {name}"])
        table.dispatch.after_create(table, connection)
    functions = _functions(connection, described.schema)
    # Those that make the words are made over, since a column is generated by them.
    _drop(connection, "FUNCTION", [name for name in functions if TEXT_FUNCTIONS not in name])
    described.dispatch.before_create(described, connection)
    described.dispatch.after_create(described, connection)


def _policies(connection: Connection, table: sa.Table) -> list[str]:
    query = sa.text(
        "SELECT policyname::text FROM pg_policies WHERE schemaname = :schema AND tablename = :table"
    )
    return list(connection.scalars(query, {"schema": table.schema, "table": table.name}))


def _functions(connection: Connection, schema: str | None) -> list[str]:
    """List pgcontext's functions with their argument types, as DROP FUNCTION wants them."""
    query = sa.text(
        "SELECT oid::regprocedure::text FROM pg_proc"
        " WHERE pronamespace = to_regnamespace(CAST(:schema AS text)) AND proname LIKE :functions"
    )
    return list(connection.scalars(query, {"schema": schema, "functions": FUNCTIONS}))


def _drop(connection: Connection, kind: str, names: list[str]) -> None:
    if names:
        connection.exec_driver_sql(f"DROP {kind} {', '.join(names)}")


def _qualified(schema: str | None, name: str) -> str:
    return f"{quote(schema)}.{quote(name)}" if schema else quote(name)
