"""The upgrade of an embedded PostgreSQL, where nobody is there to be asked."""

from __future__ import annotations

import msgspec

from pgcontext.migrate.commands import status, upgrade
from pgcontext.migrate.dimensions import change_dimensions, plan_dimensions
from pgcontext.settings import Settings


def upgrade_embedded() -> str:
    """Upgrade; where no embedding is stored or owed yet, their length follows the settings.

    Nothing is lost by that. It happens when the first program was one without an embedder, or an
    older version. Where some are owed, somebody may have given them that length on purpose.

    Returns:
        The revision the database has now.

    Raises:
        ContextStoreError: as for `upgrade`; ConfigError where embeddings of another length are, or
            are owed.
    """
    settings = Settings.from_env()
    held = status(settings=settings).dimensions
    if held not in {None, settings.dimensions}:
        former = msgspec.structs.replace(settings, dimensions=held)
        upgrade(settings=former)
        plan = plan_dimensions(settings.dimensions, settings=former)
        if not (plan.embedded or plan.owed or plan.lost):
            change_dimensions(settings.dimensions, settings=former)
    return upgrade(settings=settings)
