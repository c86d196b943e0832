"""Taking the texts of a database to be in another language, beside the traffic.

The language stands in one function of the database. Once that says another, new messages and
queries follow it; then the words of the messages that are stored are made anew, batch by batch.
Which are still to be done shows in themselves, so whatever interrupts this, it goes on when it is
run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from pgcontext import limits
from pgcontext.functions.text import TEXT_LANGUAGE_DEFAULT, language_function
from pgcontext.migrate.connection import run
from pgcontext.migrate.preflight import expect_head, prepare, quote, refuse_language

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Connection

    from pgcontext.migrate.preflight import Server
    from pgcontext.settings import Settings

_COUNT: Final = "SELECT count(*) FROM {schema}.messages"

# By the primary key, over all tenants. Assigning the content makes what is generated from it anew.
_BATCH: Final = """
WITH batch AS MATERIALIZED (
    SELECT m.tenant_id, m.id FROM {schema}.messages AS m
    WHERE {after}
    ORDER BY m.tenant_id, m.id
    LIMIT :rows
),
changed AS (
    UPDATE {schema}.messages AS m SET content = m.content
    FROM batch
    WHERE m.tenant_id = batch.tenant_id AND m.id = batch.id
      AND m.text_search IS DISTINCT FROM {schema}.pgcontext_text_vector(m.content)
    RETURNING 1
)
SELECT batch.tenant_id, batch.id, (SELECT count(*) FROM batch) AS seen,
       (SELECT count(*) FROM changed) AS changed
FROM batch
ORDER BY batch.tenant_id DESC, batch.id DESC
LIMIT 1
"""


class LanguagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What changing the language would do.

    Attributes:
        before: the language now.
        after: the language to be.
        messages: how many there are.
    """

    before: str
    after: str
    messages: int


class _Batch(NamedTuple):
    tenant_id: UUID
    id: UUID
    seen: int
    changed: int


def plan_language(language: str, *, settings: Settings) -> LanguagePlan:
    """Look at what changing the language would do. It counts the messages, and changes nothing.

    Raises:
        ContextStoreError: as for `change_language`.
    """

    def work(connection: Connection) -> LanguagePlan:
        server = _prepare(connection, language, settings)
        count = connection.exec_driver_sql(_COUNT.replace("{schema}", _schema(settings)))
        return LanguagePlan(
            before=server.language or TEXT_LANGUAGE_DEFAULT,
            after=language,
            messages=count.scalar_one(),
        )

    return run(work, settings, keep=False)


def change_language(
    language: str, *, settings: Settings, report: Callable[[int], object] = lambda _seen: None
) -> int:
    """Take the texts to be in another language, those that are stored included.

    Everybody reads and writes meanwhile, but for the moment in which the language itself changes.
    A message whose words are still those of the other language is found by words that both reduce
    to the same stem. With the language that the database has already, it does what was left.

    Args:
        language: a text search configuration of PostgreSQL's own, such as `german`.
        settings: of the database; their own language is not looked at.
        report: told after each batch how many messages have been looked at.

    Returns:
        How many messages got other words.

    Raises:
        ConfigError: there is no such language, or the role may not do this.
        SchemaMismatchError: the database is not at this version's schema.
        UnavailableError: no connection, or a lock was not granted in time; run it again.
    """

    def announce(connection: Connection) -> None:
        server = _prepare(connection, language, settings)
        if server.language == language:
            return
        # Who writes at this moment ends first, and would be missed otherwise.
        connection.exec_driver_sql(
            f"LOCK TABLE {_schema(settings)}.messages IN SHARE ROW EXCLUSIVE MODE"
        )
        connection.exec_driver_sql(language_function(language, f"{_schema(settings)}."))

    run(announce, settings)
    seen = changed = 0
    batch: _Batch | None = None
    while batch := _renew(batch, language, settings):
        seen += batch.seen
        changed += batch.changed
        report(seen)
    return changed


def _prepare(connection: Connection, language: str, settings: Settings) -> Server:
    server = prepare(connection, msgspec.structs.replace(settings, text_language=None))
    expect_head(server)
    refuse_language(server, msgspec.structs.replace(settings, text_language=language))
    return server


def _renew(before: _Batch | None, language: str, settings: Settings) -> _Batch | None:
    """Make the words of the messages behind a batch anew, in a transaction of their own."""
    after = "true" if before is None else "(m.tenant_id, m.id) > (:tenant_id, :id)"
    query = _BATCH.replace("{schema}", _schema(settings)).replace("{after}", after)
    key = {} if before is None else {"tenant_id": before.tenant_id, "id": before.id}

    def work(connection: Connection) -> _Batch | None:
        _prepare(connection, language, settings)
        found = connection.execute(
            sa.text(query), {"rows": limits.LANGUAGE_BATCH_MESSAGES_MAX, **key}
        )
        row = found.one_or_none()
        return None if row is None else _Batch(*row)

    return run(work, settings)


def _schema(settings: Settings) -> str:
    return quote(settings.schema)
