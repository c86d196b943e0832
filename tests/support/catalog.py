"""What a schema of a database is made of, read from PostgreSQL's own catalog.

Two databases whose catalogs are equal behave alike: it holds everything about tables, columns,
constraints, indexes, policies and functions that PostgreSQL can be asked for, by name.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

import asyncpg

from pgcontext.migrate.scripts import VERSION_TABLE

Catalog: TypeAlias = dict[str, dict[str, str]]
"""For each kind of object: its name, and all that defines it as text."""

# $1 the schema, $2 Alembic's own table, which create_all does not make.
OURS: Final = """
WITH ours AS (
    SELECT c.* FROM pg_class AS c
    WHERE c.relnamespace = $1::regnamespace AND c.relname NOT LIKE $2 || '%'
      AND NOT EXISTS (
          SELECT FROM pg_depend AS d
          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
      )
)"""

QUERIES: Final = {
    "relations": """
        SELECT o.relname AS name,
               concat_ws(' ', o.relkind, o.relpersistence, a.amname, o.reloptions::text,
                         'rls', o.relrowsecurity, o.relforcerowsecurity, 'acl', o.relacl::text,
                         'replica', o.relreplident) AS definition
        FROM ours AS o LEFT JOIN pg_am AS a ON a.oid = o.relam
        WHERE o.relkind <> 'i'""",
    "columns": """
        SELECT o.relname || '.' || a.attname AS name,
               concat_ws(' ',
                   row_number() OVER (PARTITION BY o.oid ORDER BY a.attnum),
                   format_type(a.atttypid, a.atttypmod),
                   CASE WHEN a.attnotnull THEN 'not null' END,
                   'default', pg_get_expr(d.adbin, d.adrelid),
                   'generated', a.attgenerated, 'identity', a.attidentity,
                   'storage', a.attstorage, a.attcompression,
                   'collation', a.attcollation::regcollation) AS definition
        FROM ours AS o
        JOIN pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = o.oid AND d.adnum = a.attnum
        WHERE o.relkind IN ('r', 'p', 'v', 'm')""",
    "constraints": """
        SELECT o.relname || '.' || c.conname AS name,
               concat_ws(' ', c.contype, pg_get_constraintdef(c.oid), c.convalidated,
                         c.condeferrable, c.condeferred) AS definition
        FROM ours AS o JOIN pg_constraint AS c ON c.conrelid = o.oid""",
    "indexes": """
        SELECT o.relname AS name,
               concat_ws(' ', pg_get_indexdef(o.oid), i.indisunique, i.indisvalid,
                         i.indnullsnotdistinct, i.indisreplident, o.reloptions::text,
                         ARRAY(SELECT c.opcname::text
                               FROM unnest(i.indclass) WITH ORDINALITY AS u (class, place)
                               JOIN pg_opclass AS c ON c.oid = u.class
                               ORDER BY u.place)) AS definition
        FROM ours AS o JOIN pg_index AS i ON i.indexrelid = o.oid""",
    "policies": """
        SELECT o.relname || '.' || p.polname AS name,
               concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[],
                         'using', pg_get_expr(p.polqual, p.polrelid),
                         'check', pg_get_expr(p.polwithcheck, p.polrelid)) AS definition
        FROM ours AS o JOIN pg_policy AS p ON p.polrelid = o.oid""",
    "triggers": """
        SELECT o.relname || '.' || t.tgname AS name, pg_get_triggerdef(t.oid) AS definition
        FROM ours AS o JOIN pg_trigger AS t ON t.tgrelid = o.oid
        WHERE NOT t.tgisinternal""",
    "functions": """
        SELECT p.oid::regprocedure::text AS name,
               concat_ws(' ', pg_get_functiondef(p.oid), p.proconfig::text, p.provolatile,
                         p.proparallel, p.prosecdef, p.proleakproof, p.procost, p.prorows,
                         'acl', p.proacl::text) AS definition
        FROM pg_proc AS p
        WHERE p.pronamespace = $1::regnamespace AND p.prokind = 'f'
          AND NOT EXISTS (
              SELECT FROM pg_depend AS d
              WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          )
          -- Only there so that all queries take the same parameters.
          AND $2::text IS NOT NULL""",
}


async def read_catalog(url: str, schema: str = "public") -> Catalog:
    """Read what is in a schema, extensions' own objects and Alembic's table left out."""
    connection = await asyncpg.connect(url)
    try:
        return {
            kind: {
                row["name"]: row["definition"]
                for row in await connection.fetch(OURS + query, schema, VERSION_TABLE)
            }
            for kind, query in QUERIES.items()
        }
    finally:
        await connection.close()


def catalog(url: str, schema: str = "public") -> Catalog:
    """Do what `read_catalog` does where no event loop runs."""
    return asyncio.run(read_catalog(url, schema))


def differences(one: Catalog, other: Catalog) -> list[str]:
    """Say what differs, one line each, so that a failing test tells what to mend."""
    return [
        f"{kind} {name}: {one[kind].get(name)} != {other[kind].get(name)}"
        for kind in one
        for name in sorted(one[kind].keys() | other[kind].keys())
        if one[kind].get(name) != other[kind].get(name)
    ]
