"""The migration files: where they are and what is in them."""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alembic.config import Config
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from pgcontext.settings import Settings

# Not Alembic's usual name: the application's own migrations may live in the same schema.
VERSION_TABLE: Final = "pgcontext_alembic_version"

_PACKAGED: Final = Path(__file__).parents[1] / "_migrations"
_CHECKOUT: Final = Path(__file__).parents[3] / "migrations"


def migrations_folder() -> Path:
    """Return the folder of env.py and versions/: in the package, or at the top of a checkout."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def in_checkout() -> bool:
    """Tell whether migrations are those of a checkout, where they can be written."""
    return migrations_folder() == _CHECKOUT


def revisions() -> list[str]:
    """Return every revision this code knows, oldest first; the last one is the head."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def applied(revision: str | None) -> list[str]:
    """Return the revisions a database has been through; none for one we do not know."""
    known = revisions()
    return known[: known.index(revision) + 1] if revision in known else []


def alembic_config(
    connection: Connection | None = None,
    settings: Settings | None = None,
    **attributes: Any,  # noqa: ANN401 (whatever env.py reads)
) -> Config:
    """Make the configuration of one Alembic command, with what env.py is to use."""
    config = Config(stdout=io.StringIO(), cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.attributes.update(connection=connection, settings=settings, **attributes)
    return config
