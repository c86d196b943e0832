"""Giving the embeddings of a database another length, in place.

Vectors of one length are of no use in another, so none is kept: the messages that had one are
marked, and `pgcontext embed` makes new ones. What depends on the length - columns, indexes,
functions - is not listed here: tables are described twice, with the old length and with the new,
in a schema that is rolled back, and what PostgreSQL says differently of the two is made anew, in
its own words.

Everything that must be done at once is one transaction. What may come later, a text index, is built
after it, beside the traffic. How far it has come stands in the catalog: run again, it goes on.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from pgcontext import limits
from pgcontext.errors import InvalidInputError
from pgcontext.migrate.comparison import SCRATCH_PREFIX, describe_by
from pgcontext.migrate.connection import run, run_alone
from pgcontext.migrate.preflight import (
    expect_head,
    look,
    make_scratch,
    prepare,
    quote,
    settled,
)
from pgcontext.schema import build_metadata
from pgcontext.statements.embedding import MEANING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from pgcontext.migrate.preflight import Server
    from pgcontext.settings import Settings

    Report = Callable[[str, float | None], None]

TABLE: Final = "messages"


class DimensionsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What changing the length of the embeddings would do.

    Attributes:
        before: the length now.
        after: the length to be.
        messages: how many rows are rewritten, about.
        embedded: how many of them lose their embedding, to be embedded anew.
        owed: how many wait for one already.
        lost: how many lose it for good, since they have no text to be embedded, or only blanks.
        table_bytes: how large the table is, vectors and indexes included.
        indexes: what is yet to be built after the rewrite.
    """

    before: int
    after: int
    messages: int
    embedded: int
    owed: int
    lost: int
    table_bytes: int
    indexes: tuple[str, ...]


class _Piece(NamedTuple):
    """One object that belongs to the table, or one of pgcontext's functions.

    Attributes:
        kind: column, constraint, index or function; in the order in which they are made.
        name: with its argument types, if it is a function.
        definition: as PostgreSQL writes it down.
        is_ready: False for an index whose building was cut off.
        is_slow: an index that takes long to build, also when no message has an embedding.
        is_generated: a column made of others.
    """

    kind: str
    name: str
    definition: str
    is_ready: bool
    is_slow: bool
    is_generated: bool


_PIECES: Final = sa.text(r"""
WITH t AS (
    SELECT c.* FROM pg_class AS c
    WHERE c.relnamespace = to_regnamespace(CAST(:schema AS text)) AND c.relname = :table
)
SELECT 'column' AS kind, quote_ident(a.attname) AS name,
       format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attgenerated = 's' THEN format(
           ' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(d.adbin, d.adrelid)
       ) ELSE '' END AS definition,
       true AS is_ready, false AS is_slow, a.attgenerated <> '' AS is_generated
FROM t
JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = t.oid AND d.adnum = a.attnum
UNION ALL
SELECT 'constraint', quote_ident(c.conname), pg_get_constraintdef(c.oid), true, false, false
FROM t JOIN pg_constraint AS c ON c.conrelid = t.oid AND c.contype <> 'n'
UNION ALL
SELECT 'index', quote_ident(x.relname), pg_get_indexdef(x.oid), i.indisvalid, m.amname = 'gin',
       false
FROM t
JOIN pg_index AS i ON i.indrelid = t.oid
JOIN pg_class AS x ON x.oid = i.indexrelid
JOIN pg_am AS m ON m.oid = x.relam
WHERE NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = x.oid AND c.conrelid = t.oid)
UNION ALL
SELECT 'function', format('%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)),
       pg_get_functiondef(p.oid), true, false, false
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace(CAST(:schema AS text)) AND p.prokind = 'f'
  AND p.proname LIKE 'pgcontext\_%'
ORDER BY kind, name
""")

_COUNT: Final = """
SELECT count(*) AS messages,
       count(*) FILTER (WHERE embedding IS NOT NULL AND content ~ '{meaning}') AS embedded,
       count(*) FILTER (WHERE embed_after IS NOT NULL) AS owed,
       count(*) FILTER (
           WHERE embedding IS NOT NULL AND (content ~ '{meaning}') IS NOT TRUE
       ) AS lost,
       pg_total_relation_size('{table}') AS table_bytes
FROM {table}
""".replace("{meaning}", MEANING)

# Each sees the row as it was before.
_MARKS: Final = {
    "embed_after": "timestamptz USING CASE WHEN embedding IS NOT NULL AND content ~ '{meaning}' "
    "THEN now() ELSE embed_after END".replace("{meaning}", MEANING),
    "embedding_model": "text USING CASE WHEN embedding IS NULL THEN embedding_model END",
}


def plan_dimensions(dimensions: int, *, settings: Settings) -> DimensionsPlan:
    """Look at what changing the length would do. It reads all messages, and changes nothing.

    Args:
        dimensions: the length to be, 1 to `EMBEDDING_DIMENSIONS_MAX`.
        settings: of the database; their own dimensions are not looked at.

    Raises:
        InvalidInputError: there is no such length.
        ContextStoreError: as for `change_dimensions`.
    """
    _check(dimensions)

    def work(connection: Connection) -> DimensionsPlan:
        server, decided = _prepare(connection, settings)
        table = f"{quote(decided.schema)}.{TABLE}"
        count = connection.exec_driver_sql(_COUNT.replace("{table}", table)).mappings().one()
        return DimensionsPlan(
            before=decided.dimensions,
            after=dimensions,
            indexes=tuple(_unbuilt(connection, server, _to(decided, dimensions))),
            **count,
        )

    return run(work, settings, keep=False)


def change_dimensions(
    dimensions: int, *, settings: Settings, report: Report = lambda _step, _part: None
) -> None:
    """Give the database's embeddings another length, and mark what had one to be embedded anew.

    The table of messages is rewritten in one transaction, during which nobody reads or writes it:
    the vectors aren't copied, but all else is, and its small indexes are made. It is kept as a
    whole or not at all. Then the text index is built, while everybody works on, and search by words
    is slow until it is there. Interrupted, nothing is changed, or that index is missing; run again,
    it does the rest.

    Args:
        dimensions: the length to be, 1 to `EMBEDDING_DIMENSIONS_MAX`.
        settings: of the database; their own dimensions are not looked at.
        report: told what is begun; and of building the index also which part is done, 0 to 1.

    Raises:
        InvalidInputError: there is no such length.
        ConfigError: the role may not do this; objects of your own depend on what is made anew.
        SchemaMismatchError: the database is not at this version's schema.
        UnavailableError: no connection, or the table's lock was not granted in time; nothing was
            changed.
    """
    _check(dimensions)

    def rewrite(connection: Connection) -> dict[str, str]:
        server, decided = _prepare(connection, settings)
        if decided.dimensions != dimensions:
            report("rewriting the messages; nobody reads or writes them meanwhile", None)
            _rewrite(connection, server, decided, dimensions)
        return _unbuilt(connection, server, _to(decided, dimensions))

    unbuilt = run(rewrite, settings)
    for name, definition in unbuilt.items():
        step = f"building {name}; search by words is slow meanwhile"
        report(step, 0.0)
        run_alone(
            [
                f"DROP INDEX CONCURRENTLY IF EXISTS {quote(settings.schema)}.{name}",
                definition.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1),
            ],
            settings,
            watch=partial(report, step),
        )
    report("gathering statistics", None)
    run_alone([f"ANALYZE {quote(settings.schema)}.{TABLE}"], settings)


def _check(dimensions: int) -> None:
    if not 1 <= dimensions <= limits.EMBEDDING_DIMENSIONS_MAX:
        msg = f"Dimensions must be 1 to {limits.EMBEDDING_DIMENSIONS_MAX:,}."
        raise InvalidInputError(msg)


def _to(settings: Settings, dimensions: int) -> Settings:
    return msgspec.structs.replace(settings, dimensions=dimensions)


def _prepare(connection: Connection, settings: Settings) -> tuple[Server, Settings]:
    """Take the turn, refuse what can't work, and settle on what the database has."""
    found = look(connection, settings)
    if found.dimensions is not None:
        settings = _to(settings, found.dimensions)
    server = prepare(connection, settings)
    expect_head(server)
    return server, settled(settings, server)


def _rewrite(connection: Connection, server: Server, old: Settings, dimensions: int) -> None:
    table = f"{quote(old.schema)}.{TABLE}"
    before = _pieces(connection, old.schema)
    described, wanted = (
        _described(connection, server, _to(old, length)) for length in (old.dimensions, dimensions)
    )
    sized = {key for key, piece in wanted.items() if described.get(key) != piece} & before.keys()
    for kind, name in sorted(before):
        if kind == "index" and ((kind, name) in sized or before[kind, name].is_slow):
            connection.exec_driver_sql(f"DROP INDEX {quote(old.schema)}.{name}")
        if kind == "function" and (kind, name) in sized:
            connection.exec_driver_sql(f"DROP FUNCTION {quote(old.schema)}.{name}")
    changes = _changes(wanted[key] for key in sorted(sized) if key[0] == "column")
    connection.exec_driver_sql(f"ALTER TABLE {table} {', '.join(changes)}")
    gone = before.keys() - _pieces(connection, old.schema).keys()
    for key in sorted(gone & wanted.keys()):
        piece = wanted[key]
        if piece.kind == "constraint":
            connection.exec_driver_sql(
                f"ALTER TABLE {table} ADD CONSTRAINT {piece.name} {piece.definition}"
            )
        elif not piece.is_slow:
            connection.exec_driver_sql(piece.definition)


def _changes(columns: Iterable[_Piece]) -> list[str]:
    """Write what one rewrite of the table does to its columns, and to the marks beside them."""
    changes = [f"ALTER COLUMN {name} TYPE {type_}" for name, type_ in _MARKS.items()]
    for column in columns:
        type_ = column.definition
        if column.is_generated:
            changes += [f"DROP COLUMN {column.name}", f"ADD COLUMN {column.name} {type_}"]
        else:
            changes.append(f"ALTER COLUMN {column.name} TYPE {type_} USING NULL::{type_}")
    return changes


def _described(
    connection: Connection, server: Server, settings: Settings
) -> dict[tuple[str, str], _Piece]:
    """Return the pieces that `schema.py` describes, as they would be called in the real schema."""
    scratch = SCRATCH_PREFIX + secrets.token_hex(4)
    described = describe_by(build_metadata, msgspec.structs.replace(settings, schema=scratch))
    with connection.begin_nested() as savepoint:
        make_scratch(connection, server, scratch)
        described.create_all(connection, checkfirst=False)
        found = _pieces(connection, scratch)
        savepoint.rollback()
    return {
        key: piece._replace(
            definition=piece.definition.replace(scratch, quote(settings.schema)), is_ready=True
        )
        for key, piece in found.items()
    }


def _unbuilt(connection: Connection, server: Server, settings: Settings) -> dict[str, str]:
    """Return the slow indexes that are described and not there, or not ready, with their DDL."""
    found = _pieces(connection, settings.schema)
    return {
        piece.name: piece.definition
        for key, piece in _described(connection, server, settings).items()
        if piece.is_slow and not (key in found and found[key].is_ready)
    }


def _pieces(connection: Connection, schema: str) -> dict[tuple[str, str], _Piece]:
    rows = connection.execute(_PIECES, {"schema": schema, "table": TABLE})
    pieces = (_Piece(*row) for row in rows)
    return {(piece.kind, piece.name): piece for piece in pieces}
