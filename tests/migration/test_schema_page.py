"""docs/schema.md: its tables are complete, and its example makes what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgcontext import ContextStore, ContextStoreError, Settings
from pgcontext.schema import NIL_TENANT, metadata
from tests.support import page
from tests.support.catalog import catalog, names
from tests.support.migrations import as_role, execute, fetch

if TYPE_CHECKING:
    import sqlalchemy as sa

PAGE: Final = Path(__file__).parents[2] / "docs" / "schema.md"
ROLE: Final = "pgcontext_test_reader"


@pytest.fixture
def described_url(database_url: str) -> str:
    """A database on which the example of the page was run, word for word."""
    done = subprocess.run(
        [sys.executable, "-W", "error", page.__file__, str(PAGE)],
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return database_url


def section(table: str) -> str:
    """What the page says about one table."""
    text = PAGE.read_text("utf-8").split(f"**{table}**", 1)[1]
    return re.split(r"\n\*\*|\n## ", text)[0]


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: str(table.name))
def test_the_page_names_every_column(table: sa.Table) -> None:
    """No column is missing from the page, and none is made up."""
    first_cells = re.findall(r"^\| (`.*?) \|", section(table.name), re.MULTILINE)
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(table.columns.keys())


def test_the_page_names_every_index(database_url: str) -> None:
    """What an index is for stands there; an index without a use would be noticed."""
    text = PAGE.read_text("utf-8").split("## Indexes")[1].split("\n## ")[0]
    tables = "|".join(metadata.tables)
    named = set(re.findall(rf"`((?:{tables})_\w+)`", text))
    assert named == set(names(catalog(database_url), "index"))


def test_mixins_give_a_users_table_the_same_columns(described_url: str) -> None:
    """Tenant, times and soft delete are those of contexts, and the tenant leads the key."""
    found = catalog(described_url)

    for column in ("tenant_id", "created_at", "updated_at", "deleted_at"):
        assert found[f"column tickets.{column}"] == found[f"column contexts.{column}"]
    assert "PRIMARY KEY (tenant_id, id)" in found["constraint tickets.tickets_pkey"]
    assert found["policy tickets.tickets_tenant"] == found["policy contexts.contexts_tenant"]
    reference = found["constraint tickets.tickets_tenant_id_context_id_fkey"]
    assert "(tenant_id, context_id) REFERENCES contexts(tenant_id, id)" in reference


def test_a_users_table_is_behind_the_same_policy(described_url: str) -> None:
    """A role sees the tickets of the tenant that it has set, and none otherwise."""
    execute(
        described_url,
        f"DROP ROLE IF EXISTS {ROLE}",
        f"CREATE ROLE {ROLE} LOGIN",
        f"GRANT SELECT ON tickets TO {ROLE}",
    )
    try:
        url = as_role(described_url, ROLE)
        assert fetch(url, "SELECT FROM tickets") == []
        execute(described_url, f"ALTER ROLE {ROLE} SET pgcontext.tenant_id = '{NIL_TENANT}'")
        assert len(fetch(url, "SELECT FROM tickets")) == 1
    finally:
        execute(described_url, f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


async def purge(url: str) -> int:
    """Delete every context, and remove what is deleted; return how many contexts went."""
    async with ContextStore(settings=Settings.from_env({}, url=url)) as store:
        for context in (await store.list()).items:
            await store.delete(context.id)
        return (await store.purge(older_than=timedelta(0))).contexts


def test_purge_takes_a_users_row_along(described_url: str) -> None:
    """ON DELETE CASCADE, as in the example, lets purge remove the context and the ticket."""
    assert asyncio.run(purge(described_url)) == 1
    assert fetch(described_url, "SELECT FROM tickets") == []


def test_purge_stops_at_a_users_row_that_must_stay(described_url: str) -> None:
    """Without it, the reference is stronger: nothing is removed."""
    execute(
        described_url,
        "ALTER TABLE tickets DROP CONSTRAINT tickets_tenant_id_context_id_fkey, "
        "ADD FOREIGN KEY (tenant_id, context_id) REFERENCES contexts",
    )
    with pytest.raises(ContextStoreError) as caught:
        asyncio.run(purge(described_url))
    assert caught.value.sqlstate == "23503"
    assert len(fetch(described_url, "SELECT FROM contexts")) == 1


def test_the_filter_of_the_page_keeps_our_tables_out() -> None:
    """Alembic asked with it sees a user's tables, and none of pgcontext's."""
    namespace: dict[str, Any] = {}
    *_, last = page.blocks(PAGE.read_text("utf-8"))
    exec(last.code, namespace)  # noqa: S102 (the project's own page)
    include_name = namespace["include_name"]
    tables = [*metadata.tables, "pgcontext_alembic_version"]
    assert not any(include_name(name, "table", {}) for name in tables)
    assert include_name("tickets", "table", {})
    assert include_name("id", "column", {"table_name": "contexts"})


def test_create_all_makes_only_the_users_own(described_url: str) -> None:
    """The example made one table beside pgcontext's own."""
    made = names(catalog(described_url), "table")
    assert made == sorted([*metadata.tables, "tickets"])
