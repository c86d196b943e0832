"""Bring a database to the schema this code is written for, and back: Alembic as a library.

Everything goes over the direct URL, in one transaction that is kept as a whole or not at all, and
behind one advisory lock, so that two migrations at once do the work once. Before anything is
changed the server is looked at, and what would fail is refused in one sentence that says what to
run. The functions block, also when they are called where an event loop runs.

`python -m pgcontext.migrate` upgrades the database that the environment names.
"""

from pgcontext.migrate.commands import (
    MigrationStatus,
    check,
    downgrade,
    drop,
    generate,
    push,
    status,
    upgrade,
)
from pgcontext.migrate.dimensions import DimensionsPlan, change_dimensions, plan_dimensions
from pgcontext.migrate.language import LanguagePlan, change_language, plan_language
from pgcontext.migrate.scripts import migrations_folder, revisions

__all__ = [
    "DimensionsPlan",
    "LanguagePlan",
    "MigrationStatus",
    "change_dimensions",
    "change_language",
    "check",
    "downgrade",
    "drop",
    "generate",
    "migrations_folder",
    "plan_dimensions",
    "plan_language",
    "push",
    "revisions",
    "status",
    "upgrade",
]
