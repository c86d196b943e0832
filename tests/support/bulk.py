"""Messages by the thousand: written by COPY past the store, their indexes built afterwards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import asyncpg
import msgspec

from benchmarks.search.loading import CONTEXT_COLUMNS, INDEXES, MESSAGE_COLUMNS, binary

if TYPE_CHECKING:
    from collections.abc import Iterator

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGES: Final = 10  # of a context
VACUUMS_MAX: Final = 10
ALL_VISIBLE: Final = "SELECT relallvisible = relpages FROM pg_class WHERE relname = 'messages'"
MEMORY: Final = "256MB"  # for the HNSW index while it is built
CONTEXT_BITS: Final = 1 << 40  # set in the number of a context's id, so that it is no message's


class Rows(msgspec.Struct, frozen=True):
    """A tenant's messages, ten to a context, a second between two of them.

    Attributes:
        tenant: its number.
        vectors: `float32[rows, dimensions]`.
        roles: of each row.
        models: of each row.
        groups: of each context, in its metadata.
        contents: of each row; None writes the row's number.
    """

    tenant: int
    vectors: Any
    roles: Any
    models: Any
    groups: Any
    contents: list[str] | None = None

    @property
    def tenant_id(self) -> UUID:
        return UUID(int=self.tenant)

    def context_id(self, context: int) -> UUID:
        return UUID(int=self.tenant << 64 | CONTEXT_BITS | context)

    def records(self) -> tuple[Iterator[tuple[Any, ...]], Iterator[tuple[Any, ...]]]:
        """Give the rows of contexts and of messages, as COPY takes them."""
        return self._contexts(), self._messages()

    def _contexts(self) -> Iterator[tuple[Any, ...]]:
        for context, group in enumerate(self.groups):
            yield (
                *(self.tenant_id, self.context_id(context), "a talk", f'{{"group": "{group}"}}'),
                *(START, START, MESSAGES, MESSAGES, MESSAGES, 1),
            )

    def _messages(self) -> Iterator[tuple[Any, ...]]:
        for row, embedding in enumerate(binary(self.vectors)):
            context, place = divmod(row, MESSAGES)
            content = str(row) if self.contents is None else self.contents[row]
            yield (
                *(self.tenant_id, UUID(int=self.tenant << 64 | row), self.context_id(context)),
                *(place + 1, moment(row), str(self.roles[row]), content, 1),
                *(str(self.models[row]), embedding),
            )


def moment(row: int) -> datetime:
    """Say when a row was stored."""
    return START + timedelta(seconds=row)


def row_of(message_id: UUID) -> int:
    """Return the number of a message's row."""
    return message_id.int & (1 << 64) - 1


async def fill(url: str, *tenants: Rows, hnsw: str = "") -> None:
    """Write the rows of some tenants into an empty database, and gather statistics.

    Args:
        url: of the database.
        tenants: what to write.
        hnsw: how to build that index, where its quality doesn't matter: `m = 4`.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.set_type_codec(
            "vector", encoder=bytes, decoder=bytes, format="binary", schema="public"
        )
        indexes = await connection.fetch(INDEXES)
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        for tenant in tenants:
            contexts, messages = tenant.records()
            await connection.copy_records_to_table(
                "contexts", records=contexts, columns=CONTEXT_COLUMNS
            )
            await connection.copy_records_to_table(
                "messages", records=messages, columns=MESSAGE_COLUMNS
            )
        await connection.execute(f"SET maintenance_work_mem = '{MEMORY}'")
        for index in indexes:
            definition = index["definition"]
            if hnsw and " USING hnsw " in definition:
                definition = definition.replace(" WHERE ", f" WITH ({hnsw}) WHERE ")
            await connection.execute(definition)
        await connection.execute("CHECKPOINT")  # a page that is being written isn't vacuumed
        await connection.execute("VACUUM (ANALYZE)")
        for _ in range(VACUUMS_MAX):
            if await connection.fetchval(ALL_VISIBLE):
                break
            await connection.execute("VACUUM messages")
    finally:
        await connection.close()
