"""A look at the server before anything is changed, and the sentences for what cannot work."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.base import PGDialect

from pgcontext import limits
from pgcontext.errors import ConfigError, SchemaMismatchError
from pgcontext.functions.text import TEXT_LANGUAGE_DEFAULT
from pgcontext.migrate.scripts import VERSION_TABLE, revisions
from pgcontext.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pgcontext.settings import Settings

logger: Final = logging.getLogger("pgcontext.migrate")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the server finds, before anything is changed."""

    version_number: int
    version: str
    encoding: str
    is_standby: bool
    role: str
    database: str
    pgvector: str | None
    pgvector_schema: str | None
    pgvector_offered: str | None
    schema_exists: bool
    may_create: bool
    may_make_schemas: bool
    tables: list[str]
    dimensions: int | None
    language: str | None
    languages: list[str]
    has_versions: bool
    revision: str | None = None


LOOK: Final = sa.text("""
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS is_standby,
    current_user::text AS role,
    current_database()::text AS database,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
    (SELECT n.nspname::text FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
     WHERE e.extname = 'vector') AS pgvector_schema,
    (SELECT default_version FROM pg_available_extensions
     WHERE name = 'vector') AS pgvector_offered,
    s.oid IS NOT NULL AS schema_exists,
    coalesce(has_schema_privilege(s.oid, 'CREATE'),
             has_database_privilege(current_database(), 'CREATE')) AS may_create,
    has_database_privilege(current_database(), 'CREATE') AS may_make_schemas,
    ARRAY(SELECT c.relname::text FROM pg_class AS c
          WHERE c.relnamespace = s.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
            AND c.relname = ANY (CAST(:tables AS text[])) ORDER BY c.relname) AS tables,
    (SELECT a.atttypmod FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
     WHERE c.relnamespace = s.oid AND c.relname = 'messages'
       AND a.attname = 'embedding' AND NOT a.attisdropped) AS dimensions,
    (SELECT substring(pg_get_functiondef(p.oid) FROM '''([a-z_]+)''') FROM pg_proc AS p
     WHERE p.pronamespace = s.oid AND p.proname = 'pgcontext_text_language') AS language,
    ARRAY(SELECT t.cfgname::text FROM pg_ts_config AS t
          WHERE t.cfgnamespace = 'pg_catalog'::regnamespace ORDER BY t.cfgname) AS languages,
    EXISTS (SELECT FROM pg_class AS c
            WHERE c.relnamespace = s.oid AND c.relname = :versions) AS has_versions
FROM (SELECT to_regnamespace(CAST(:schema AS text))::oid AS oid) AS s
""")


def prepare(connection: Connection, settings: Settings) -> Server:
    """Take the lock, look at the server and refuse what cannot work."""
    take_turn(connection)
    server = look(connection, settings)
    refuse_server(server)
    refuse_language(server, settings)
    if server.revision is not None:
        refuse_database(server, settings)
    set_search_path(connection, settings.schema, server)
    return server


def set_search_path(connection: Connection, schema: str, server: Server) -> None:
    """Let types and operators be found; everything else is named with its schema."""
    path = dict.fromkeys([schema, server.pgvector_schema or "public"])
    _set_local(connection, "search_path", ", ".join(map(quote, path)))


def take_turn(connection: Connection) -> None:
    """Wait for a migration that runs already; after it, for nobody long."""
    # Alembic would compare the default schema instead of the one that is configured.
    connection.dialect.default_schema_name = None
    _set_local(connection, "statement_timeout", "0")
    _set_local(connection, "lock_timeout", f"{limits.MIGRATION_TURN_SECONDS_MAX}s")
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('pgcontext', 0))"))
    _set_local(connection, "lock_timeout", f"{limits.MIGRATION_LOCK_SECONDS_MAX}s")


def _set_local(connection: Connection, name: str, value: str) -> None:
    connection.execute(
        sa.text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value}
    )


def look(connection: Connection, settings: Settings) -> Server:
    """Look at the server, the extension and the tables; take no lock."""
    found = (
        connection.execute(
            LOOK,
            {
                "schema": settings.schema,
                "tables": [table.name for table in metadata.sorted_tables],
                "versions": VERSION_TABLE,
            },
        )
        .mappings()
        .one()
    )
    server = msgspec.convert(dict(found), Server)
    if not server.has_versions:
        return server
    versions = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text), schema=settings.schema)
    revision = connection.scalar(sa.select(versions.c.version_num))
    return msgspec.structs.replace(server, revision=revision)


def refuse_server(server: Server) -> None:
    """Refuse a server that is too old, or that lacks what pgcontext needs."""
    if server.is_standby:
        raise ConfigError("This server is a read-only standby: name the primary instead.")
    major = server.version_number // 10_000
    if major < limits.POSTGRESQL_VERSION_MIN:
        raise ConfigError(
            f"PostgreSQL {server.version} is too old: pgcontext needs "
            f"{limits.POSTGRESQL_VERSION_MIN} or newer; upgrade the server."
        )
    if server.encoding != "UTF8":
        raise ConfigError(
            f"This database's encoding is {server.encoding}, and text search folds accents in UTF8 "
            "only: make another with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0;"
        )
    _refuse_pgvector(server, major)
    if _is_below(server.pgvector or server.pgvector_offered, limits.PGVECTOR_VERSION_ADVISED):
        logger.warning(
            "pgvector %s has defects that %s mends; upgrade it on the server and run "
            "ALTER EXTENSION vector UPDATE;",
            server.pgvector or server.pgvector_offered,
            ".".join(map(str, limits.PGVECTOR_VERSION_ADVISED)),
        )


def _refuse_pgvector(server: Server, major: int) -> None:
    package = f"postgresql-{major}-pgvector"
    if server.pgvector is None and server.pgvector_offered is None:
        raise ConfigError(
            f"The server does not have pgvector: install it there (Debian: apt install {package}; "
            "macOS: brew install pgvector; Docker: the image "
            f"pgvector/pgvector:pg{major}), then run this again."
        )
    if not _is_below(server.pgvector or server.pgvector_offered, limits.PGVECTOR_VERSION_MIN):
        return
    least = ".".join(map(str, limits.PGVECTOR_VERSION_MIN))
    if _is_below(server.pgvector_offered, limits.PGVECTOR_VERSION_MIN):
        raise ConfigError(
            f"The server's pgvector {server.pgvector_offered} is too old: pgcontext needs {least} "
            f"or newer; upgrade it there (Debian: apt install {package})."
        )
    raise ConfigError(
        f"This database's pgvector {server.pgvector} is too old: pgcontext needs {least} or "
        "newer; have the extension's owner run ALTER EXTENSION vector UPDATE; in it."
    )


def _is_below(version: str | None, least: tuple[int, ...]) -> bool:
    return version is not None and tuple(map(int, re.findall(r"\d+", version)[:3])) < least


def refuse_language(server: Server, settings: Settings) -> None:
    """Refuse a language that PostgreSQL has no configuration for."""
    if settings.text_language not in {None, *server.languages}:
        raise ConfigError(
            f"PostgreSQL {server.version} has no text search for "
            f"PGCONTEXT_TEXT_LANGUAGE={settings.text_language}; it has: "
            f"{', '.join(server.languages)}."
        )


def refuse_database(server: Server, settings: Settings) -> None:
    """Refuse a database that newer code migrated, or that holds other embeddings."""
    if server.revision not in revisions():
        raise SchemaMismatchError(
            f"The database is at revision {server.revision}, which this version of pgcontext does "
            "not know: a newer one migrated it; upgrade pgcontext."
        )
    if server.dimensions not in {None, settings.dimensions}:
        raise ConfigError(
            f"The database holds embeddings of {server.dimensions} dimensions, and "
            f"PGCONTEXT_DIMENSIONS says {settings.dimensions}: set PGCONTEXT_DIMENSIONS="
            f"{server.dimensions}, or change the database with: pgcontext db dimensions "
            f"{settings.dimensions}"
        )
    if server.language is not None and settings.text_language not in {None, server.language}:
        raise ConfigError(
            f"The database's text search is for the language {server.language}, and "
            f"PGCONTEXT_TEXT_LANGUAGE says {settings.text_language}: it is fixed by the first "
            "migration, so leave it unset, or change the database with: pgcontext db language "
            f"{settings.text_language}"
        )


def settled(settings: Settings, server: Server) -> Settings:
    """Return the settings with the language: the one named, the database's, or the default."""
    language = settings.text_language or server.language or TEXT_LANGUAGE_DEFAULT
    return msgspec.structs.replace(settings, text_language=language)


def make_room(connection: Connection, server: Server, settings: Settings) -> None:
    """Make the schema where it is missing; refuse it where tables cannot be made in it."""
    schema = quote(settings.schema)
    if not server.may_create:
        grant = (
            f"GRANT CREATE ON SCHEMA {schema} TO {quote(server.role)};"
            if server.schema_exists
            else f"CREATE SCHEMA {schema} AUTHORIZATION {quote(server.role)};"
        )
        raise ConfigError(
            f"The role {server.role} may not create tables in the schema {settings.schema}: have "
            f"the database's owner run {grant} then run this again."
        )
    if server.revision is None and server.tables:
        raise ConfigError(
            f"The schema {settings.schema} has tables that pgcontext did not make: "
            f"{', '.join(server.tables)}. Choose another schema with PGCONTEXT_SCHEMA."
        )
    if not server.schema_exists:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")


def make_scratch(connection: Connection, server: Server, schema: str) -> None:
    """Make a schema to compare in. Whoever makes it rolls back.

    Raises:
        ConfigError: the role may not make schemas.
    """
    if not server.may_make_schemas:
        raise ConfigError(
            "To compare, a schema is made and rolled back, which the role "
            f"{server.role} may not do: have the database's owner run GRANT CREATE ON DATABASE "
            f"{quote(server.database)} TO {quote(server.role)};"
        )
    connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    set_search_path(connection, schema, server)


def expect_head(server: Server) -> None:
    """Refuse a database that migrations are pending for, or that is newer."""
    head = revisions()[-1]
    if server.revision != head:
        raise SchemaMismatchError(
            f"The database is at revision {server.revision or 'none'}, and this version of "
            f"pgcontext needs {head}; run: pgcontext db migrate"
        )


def quote(name: str) -> str:
    """Write an identifier as SQL wants it, in quotes where it needs them."""
    return PGDialect().identifier_preparer.quote(name)  # type: ignore[no-untyped-call]
