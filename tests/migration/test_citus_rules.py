"""Nothing in the schema or in the statements stands in the way of distributing by tenant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from pgcontext.schema import metadata
from tests.support.migrations import execute, fetch
from tests.support.sql import all_statements, recursive_ctes

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

# Alembic's own table is one row, and stays on one node.
TABLES: Final = """
WITH tables AS (
    SELECT oid, relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
      AND relname <> 'pgcontext_alembic_version'
)
"""
TABLE: Final = re.compile(r"\b(?:FROM|JOIN|USING|UPDATE|INTO)\s+@\w+")
REFERENCE: Final = re.compile(r"\b(?:FROM|JOIN|USING)\s+@(\w+)(?:\s+AS\s+(\w+))?")


def offenders(url: str, query: str) -> list[str]:
    """What breaks a rule, by name."""
    rows: list[asyncpg.Record] = fetch(url, TABLES + query)
    return [row[0] for row in rows]


def keys_without_tenant(url: str) -> list[str]:
    """Primary keys, unique constraints and unique indexes that do not start with the tenant."""
    return offenders(
        url,
        """
        SELECT i.indexrelid::regclass::text
        FROM tables AS t JOIN pg_index AS i ON i.indrelid = t.oid
        LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
        WHERE i.indisunique AND a.attname IS DISTINCT FROM 'tenant_id'
        """,
    )


def tables_without_key(url: str) -> list[str]:
    """Tables without a primary key."""
    return offenders(
        url,
        """
        SELECT t.relname FROM tables AS t
        WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = t.oid AND contype = 'p')
        """,
    )


def foreign_keys_without_tenant(url: str) -> list[str]:
    """Foreign keys that do not refer from tenant to tenant, at their first place."""
    return offenders(
        url,
        """
        SELECT c.conname
        FROM tables AS t JOIN pg_constraint AS c ON c.conrelid = t.oid AND c.contype = 'f'
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        JOIN pg_attribute AS b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1]
        WHERE a.attname <> 'tenant_id' OR b.attname <> 'tenant_id'
        """,
    )


def foreign_keys_that_set(url: str) -> list[str]:
    """Foreign keys that set columns to NULL or to a default; the tenant is one of them."""
    return offenders(
        url,
        """
        SELECT c.conname
        FROM tables AS t JOIN pg_constraint AS c ON c.conrelid = t.oid AND c.contype = 'f'
        WHERE c.confdeltype IN ('n', 'd') OR c.confupdtype IN ('n', 'd')
        """,
    )


def tenants_of_another_type(url: str) -> list[str]:
    """Tables whose tenant_id is missing, may be NULL, or is not a uuid."""
    return offenders(
        url,
        """
        SELECT t.relname FROM tables AS t LEFT JOIN pg_attribute AS a
            ON a.attrelid = t.oid AND a.attname = 'tenant_id' AND a.attnotnull
            AND a.atttypid = 'uuid'::regtype AND a.attnum = 1
        WHERE a.attname IS NULL
        """,
    )


def triggers(url: str) -> list[str]:
    """Triggers, but those that hold foreign keys."""
    return offenders(
        url,
        """
        SELECT g.tgname FROM tables AS t JOIN pg_trigger AS g ON g.tgrelid = t.oid
        WHERE NOT g.tgisinternal
        """,
    )


def policies_that_are_not_bare(url: str) -> list[str]:
    """Policies that are anything but the tenant compared with the setting."""
    return offenders(
        url,
        """
        SELECT p.polname FROM tables AS t JOIN pg_policy AS p ON p.polrelid = t.oid
        WHERE pg_get_expr(p.polqual, p.polrelid) <> '(tenant_id = (NULLIF(current_setting('
            || '''pgcontext.tenant_id''::text, true), ''''::text))::uuid)'
        """,
    )


def tables_without_policy(url: str) -> list[str]:
    """Tables that row-level security does not stand behind."""
    return offenders(
        url,
        """
        SELECT t.relname FROM tables AS t JOIN pg_class AS c ON c.oid = t.oid
        WHERE NOT c.relrowsecurity
           OR (SELECT count(*) FROM pg_policy WHERE polrelid = t.oid) <> 1
        """,
    )


def relations_of_other_kinds(url: str) -> list[str]:
    """Sequences, views and the like: numbers come from counters, ids from the client."""
    return offenders(
        url,
        """
        SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'p', 'i', 'I')
        """,
    )


RULES: dict[str, Callable[[str], list[str]]] = {
    "ALTER TABLE messages ADD UNIQUE (id)": keys_without_tenant,
    "CREATE UNIQUE INDEX ON contexts (id, tenant_id)": keys_without_tenant,
    "CREATE TABLE labels (tenant_id uuid)": tables_without_key,
    "ALTER TABLE contexts ADD UNIQUE (id); ALTER TABLE tombstones "
    "ADD FOREIGN KEY (context_id) REFERENCES contexts (id)": foreign_keys_without_tenant,
    "ALTER TABLE contexts ADD UNIQUE (id, tenant_id); ALTER TABLE tombstones ADD FOREIGN KEY "
    "(context_id, tenant_id) REFERENCES contexts (id, tenant_id)": foreign_keys_without_tenant,
    "ALTER TABLE tombstones ADD FOREIGN KEY (tenant_id, context_id) "
    "REFERENCES contexts ON DELETE SET NULL": foreign_keys_that_set,
    "ALTER TABLE tombstones ADD FOREIGN KEY (tenant_id, context_id) "
    "REFERENCES contexts ON UPDATE SET DEFAULT": foreign_keys_that_set,
    "CREATE TABLE labels (tenant_id text PRIMARY KEY)": tenants_of_another_type,
    "CREATE TABLE labels (id uuid PRIMARY KEY)": tenants_of_another_type,
    "CREATE TRIGGER touch BEFORE UPDATE ON contexts FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()": triggers,
    "ALTER POLICY contexts_tenant ON contexts USING (tenant_id = "
    "(SELECT current_setting('pgcontext.tenant_id')::uuid))": policies_that_are_not_bare,
    "CREATE TABLE labels (tenant_id uuid PRIMARY KEY)": tables_without_policy,
    "ALTER TABLE contexts DISABLE ROW LEVEL SECURITY": tables_without_policy,
    "CREATE SEQUENCE numbers": relations_of_other_kinds,
}


@pytest.mark.parametrize(
    "rule", list(dict.fromkeys(RULES.values())), ids=lambda rule: rule.__name__
)
def test_the_schema_keeps_the_rule(database_url: str, rule: Callable[[str], list[str]]) -> None:
    """Read from the catalog of the migrated database: nothing breaks it."""
    assert rule(database_url) == []


@pytest.mark.parametrize(("breach", "rule"), RULES.items())
def test_a_breach_of_the_rule_is_seen(
    database_url: str, breach: str, rule: Callable[[str], list[str]]
) -> None:
    """Each rule means something, since such a change breaks it."""
    execute(database_url, breach)
    assert rule(database_url) != []


def volatile_calls(url: str, text: str) -> set[str]:
    """The volatile functions that a statement calls."""
    names = fetch(url, "SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v'")
    called = set(re.findall(r"\b(\w+)\s*\(", text))
    return called & {row["proname"] for row in names}


def test_no_statement_calls_a_volatile_function(database_url: str) -> None:
    """A distributed UPDATE may not, so none does; now() is the transaction's and stays the same."""
    assert volatile_calls(database_url, "SET updated_at = clock_timestamp(), x = random ()") == {
        "clock_timestamp",
        "random",
    }
    for name, text in all_statements().items():
        if TABLE.search(text):
            assert not volatile_calls(database_url, text), name


def without_tenant(text: str) -> set[str]:
    """Which of the tables a text reads are not asked for the tenant."""
    aliases = [
        found[2] or found[1]
        for found in REFERENCE.finditer(text)
        if found[1] in metadata.tables  # not Alembic's own, nor the function
    ]
    return {
        alias
        for alias in aliases
        if len(re.findall(rf"\b{alias}\.tenant_id = (?:\$1|\w+\.tenant_id)(?!\w)", text))
        < aliases.count(alias)
    }


def test_recursions_ask_for_the_tenant() -> None:
    """Each table that a recursive CTE reads is asked for the tenant, inside the CTE."""
    bodies = {
        name: body for name, text in all_statements().items() for body in recursive_ctes(text)
    }
    assert {"HISTORY", "WINDOW", "FORKS", "ERASE"} <= set(bodies)
    for name, body in bodies.items():
        assert REFERENCE.search(body), name
        assert not without_tenant(body), name
        assert without_tenant(body.replace("tenant_id = $1", "id IS NOT NULL")), name


def test_every_table_of_a_statement_is_asked_for_the_tenant() -> None:
    """So that a router finds the one node that has the rows, and nobody sees another's."""
    for name, text in all_statements().items():
        assert not without_tenant(text), name


def test_targets_of_inserts_have_an_alias() -> None:
    """INSERT … SELECT … RETURNING needs one on distributed tables."""
    for name, text in all_statements().items():
        for found in re.finditer(r"INSERT INTO @\w+( AS \w+)?", text):
            assert found[1], name
