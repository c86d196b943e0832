"""What a schema of a test's database is made of; two that are equal behave alike."""

from __future__ import annotations

from pgcontext.migrate.catalog import Catalog, differences, read_catalog
from pgcontext.migrate.connection import run
from tests.support.migrations import settings_of

__all__ = ["Catalog", "catalog", "differences", "names"]


def catalog(url: str, schema: str = "public") -> Catalog:
    """Read a whole schema; extensions' own objects and Alembic's table are left out."""
    return run(lambda connection: read_catalog(connection, schema), settings_of(url))


def names(found: Catalog, kind: str) -> list[str]:
    """The objects of a kind: table, column, constraint, index, policy, trigger, function, ..."""
    prefix = f"{kind} "
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))
