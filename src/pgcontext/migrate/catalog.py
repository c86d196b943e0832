"""What a schema is made of, read from PostgreSQL's own catalog.

Alembic's comparison is blind to predicates and operator classes of indexes, to check constraints,
storage parameters, policies and functions. Here two schemas are equal when PostgreSQL describes
each of their objects in the same words. Privileges and owners are left out: those are the user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import sqlalchemy as sa

from pgcontext.migrate.scripts import VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

Catalog: TypeAlias = dict[str, str]
"""Each object by kind and name, such as `index messages_text_idx`, with all that defines it."""

FUNCTIONS: Final = r"pgcontext\_%"

READ: Final = sa.text("""
WITH ours AS (
    SELECT c.*
    FROM pg_class AS c
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    LEFT JOIN pg_class AS t ON t.oid = i.indrelid
    WHERE c.relnamespace = to_regnamespace(CAST(:schema AS text))
      AND coalesce(t.relname, c.relname) <> CAST(:versions AS text)
      AND (CAST(:tables AS text[]) IS NULL
           OR coalesce(t.relname, c.relname) = ANY (CAST(:tables AS text[])))
      AND NOT EXISTS (
          SELECT FROM pg_depend AS d
          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
      )
)
SELECT CASE o.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence'
            ELSE 'relation' END || ' ' || o.relname AS object,
       concat_ws(' ', o.relkind, o.relpersistence, a.amname, o.reloptions::text,
                 'row security', o.relrowsecurity, o.relforcerowsecurity,
                 'replica identity', o.relreplident) AS definition
FROM ours AS o LEFT JOIN pg_am AS a ON a.oid = o.relam
WHERE o.relkind NOT IN ('i', 'I')
UNION ALL
-- Without their order: a column that a migration adds is always the last one.
SELECT 'column ' || o.relname || '.' || a.attname,
       concat_ws(' ',
           format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
           'default', pg_get_expr(d.adbin, d.adrelid),
           'generated', a.attgenerated, 'identity', a.attidentity,
           'storage', a.attstorage, a.attcompression,
           'collation', a.attcollation::regcollation)
FROM ours AS o
JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = o.oid AND d.adnum = a.attnum
WHERE o.relkind IN ('r', 'p', 'v', 'm', 'f')
UNION ALL
-- Columns say whether they may be NULL; from version 18 on there are constraints for it, too.
SELECT 'constraint ' || o.relname || '.' || c.conname,
       concat_ws(' ', pg_get_constraintdef(c.oid), c.convalidated, c.condeferrable, c.condeferred)
FROM ours AS o JOIN pg_constraint AS c ON c.conrelid = o.oid AND c.contype <> 'n'
UNION ALL
SELECT 'index ' || o.relname,
       concat_ws(' ', pg_get_indexdef(o.oid), 'valid', i.indisvalid, o.reloptions::text,
                 ARRAY(SELECT c.opcname::text
                       FROM unnest(i.indclass) WITH ORDINALITY AS u (class, place)
                       JOIN pg_opclass AS c ON c.oid = u.class
                       ORDER BY u.place))
FROM ours AS o JOIN pg_index AS i ON i.indexrelid = o.oid
UNION ALL
SELECT 'policy ' || o.relname || '.' || p.polname,
       concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[],
                 'using', pg_get_expr(p.polqual, p.polrelid),
                 'check', pg_get_expr(p.polwithcheck, p.polrelid))
FROM ours AS o JOIN pg_policy AS p ON p.polrelid = o.oid
UNION ALL
SELECT 'trigger ' || o.relname || '.' || t.tgname, pg_get_triggerdef(t.oid)
FROM ours AS o JOIN pg_trigger AS t ON t.tgrelid = o.oid
WHERE NOT t.tgisinternal
UNION ALL
SELECT 'function ' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
       pg_get_functiondef(p.oid)
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace(CAST(:schema AS text)) AND p.prokind = 'f'
  AND (CAST(:tables AS text[]) IS NULL OR p.proname LIKE :functions)
  AND NOT EXISTS (
      SELECT FROM pg_depend AS d
      WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
  )
""")


def read_catalog(
    connection: Connection, schema: str, tables: Iterable[str] | None = None
) -> Catalog:
    """Read what is in a schema, without what belongs to extensions and Alembic's own table.

    Definitions name a schema where the search path does not lead to it; so it has to be the same
    path, but for the schema itself, when two are to be compared.

    Args:
        connection: to read over.
        schema: which one.
        tables: only these tables with all that is theirs, and pgcontext's functions; None reads
            everything.
    """
    found = connection.execute(
        READ,
        {
            "schema": schema,
            "versions": VERSION_TABLE,
            "tables": None if tables is None else list(tables),
            "functions": FUNCTIONS,
        },
    )
    return {row.object: row.definition for row in found}


def differences(found: Catalog, wanted: Catalog) -> list[str]:
    """Say what is missing, what is too much and what differs, one line each."""
    missing = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    surplus = [f"{name} is not described" for name in found.keys() - wanted.keys()]
    both = found.keys() & wanted.keys()
    differing = [f"{name} differs" for name in both if found[name] != wanted[name]]
    return sorted(missing + surplus + differing)
