"""What Alembic runs for every command: the settings, the connection and what is compared.

`pgcontext.migrate` hands over an open connection that it has prepared. Plain `alembic ...` in a
checkout hands over nothing; then the connection is made here, from the environment.
"""

import logging
import warnings

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from pgcontext.errors import ContextStoreError
from pgcontext.functions.text import TEXT_LANGUAGE_DEFAULT
from pgcontext.migrate import comparison
from pgcontext.migrate.connection import run
from pgcontext.migrate.preflight import make_room, prepare, settled
from pgcontext.migrate.scripts import VERSION_TABLE, revisions
from pgcontext.schema import build_metadata
from pgcontext.settings import Settings

config = context.config


def configure(settings: Settings, connection: Connection | None = None) -> None:
    """Tell Alembic what to compare; without a connection, what to print as SQL."""
    describe = config.attributes.get("describe", build_metadata)
    metadata = comparison.describe_by(describe, settings)
    config.attributes["schema"] = settings.schema
    context.configure(
        connection=connection,
        dialect_name=None if connection else "postgresql",
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        version_table_schema=settings.schema,
        include_schemas=True,
        include_name=comparison.only_ours(settings.schema, metadata),
        render_item=comparison.render_item,
        process_revision_directives=comparison.number_revision,
        compare_type=True,
        compare_server_default=True,
        dimensions=settings.dimensions,
        text_language=settings.text_language or TEXT_LANGUAGE_DEFAULT,
    )


def migrate_online(settings: Settings, connection: Connection) -> None:
    """Run the command on a connection whose transaction its owner ends."""
    configure(settings, connection)
    with warnings.catch_warnings(), context.begin_transaction():
        # It is named with its schema by us and without by the server, which is no difference.
        warnings.filterwarnings("ignore", "Computed default on messages.text_search")
        context.run_migrations()


def migrate_alone(settings: Settings, connection: Connection) -> None:
    """Run the command as `alembic ...`, on a connection that nobody has prepared."""
    server = prepare(connection, settings)
    if server.revision != revisions()[-1]:
        make_room(connection, server, settings)
    migrate_online(settled(settings, server), connection)


def migrate_offline(settings: Settings) -> None:
    """Print the SQL instead of running it (`--sql`)."""
    configure(settings)
    with context.begin_transaction():
        for statement in comparison.offline_preamble(settings.schema):
            context.execute(statement)
        context.run_migrations()


def main() -> None:
    """Find the settings and the connection, then run."""
    given = config.attributes.get("connection")
    if given is not None:
        migrate_online(config.attributes["settings"], given)
        return
    # As Alembic's own template has it: say which migrations run.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    try:
        settings = Settings.from_env()
        if context.is_offline_mode():
            migrate_offline(settings)
        else:
            run(lambda connection: migrate_alone(settings, connection), settings)
    except ContextStoreError as error:
        # The one class whose text the command prints without a traceback.
        raise CommandError(str(error)) from error


main()
