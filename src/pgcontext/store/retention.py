"""Retention: purge what was deleted, erase what must be forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from pgcontext import inputs, limits, statements
from pgcontext.errors import (
    ContextNotFoundError,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
)
from pgcontext.models import EraseReport, PurgeReport
from pgcontext.store.base import StoreBase

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    import asyncpg

    from pgcontext.connections import Connection

PURGE_CONTEXTS_PER_BATCH: Final = 100


class RetentionMethods(StoreBase):
    """The store's methods that remove for good."""

    async def purge(self, *, older_than: timedelta) -> PurgeReport:
        """Remove for good what was soft-deleted or had expired that long ago.

        What a live fork shows is kept, and so is every ancestor of a live context. Several
        statements: in batches of bounded size, those that need a lock in a transaction each.

        Args:
            older_than: how long ago; `timedelta(0)` removes everything soft-deleted.
        """
        if not isinstance(cast("object", older_than), timedelta) or older_than < timedelta(0):
            msg = "older_than must be a timedelta, 0 or more."
            raise InvalidInputError(msg)
        if older_than > timedelta(days=limits.PURGE_AGE_DAYS_MAX):
            msg = f"older_than must be at most {limits.PURGE_AGE_DAYS_MAX:,} days."
            raise LimitExceededError(msg)
        seconds = older_than.total_seconds()
        message_count = 0
        last_id: UUID | None = None
        while True:
            owners, _ = await self._fetch(
                statements.PURGE_OWNERS, seconds, last_id, PURGE_CONTEXTS_PER_BATCH
            )
            if owners:
                message_count += await self._purge_messages(seconds, [row["id"] for row in owners])
            if len(owners) < PURGE_CONTEXTS_PER_BATCH:
                break
            last_id = owners[-1]["id"]
        context_count = 0
        bound = limits.PURGE_ROWS_PER_STATEMENT_MAX
        while True:
            found, _ = await self._fetch(statements.PURGE_CONTEXTS, seconds, bound)
            context_count += found[0]["contexts"]
            if found[0]["contexts"] < bound:
                return PurgeReport(contexts=context_count, messages=message_count)

    async def _purge_messages(self, seconds: float, owners: list[UUID]) -> int:
        """Remove what may go of the messages of these contexts; return how many."""
        ids = [str(owner) for owner in owners]
        bound = limits.PURGE_ROWS_PER_STATEMENT_MAX

        async def work(connection: Connection) -> int:
            await self._lock_trees(connection, ids)
            await connection.execute(self._text(statements.EXPIRE), self._tenant_id, seconds, ids)
            removed = 0
            while True:
                count: int = await connection.fetchval(
                    self._text(statements.PURGE_MESSAGES), self._tenant_id, seconds, ids, bound
                )
                removed += count
                if count < bound:
                    return removed

        result, _ = await self._pool.transact(work, statements.PURGE_MESSAGES)
        return result

    async def _lock_trees(self, connection: Connection, ids: list[str]) -> None:
        """Lock contexts and all below them, also forks that were under way meanwhile."""
        locked = -1
        while True:
            held = await connection.fetch(self._text(statements.LOCK_TREES), self._tenant_id, ids)
            if len(held) == locked:
                return
            locked = len(held)

    async def erase(
        self, context_id: UUID | str, versions: int | Iterable[int] | None = None
    ) -> EraseReport:
        """Remove content for good, everywhere, forks included: the right to be forgotten.

        Two statements or more in one transaction: first the locks on every context that may show
        the messages, then, with a snapshot that is younger than the locks, the erasure. Works on
        deleted contexts. Erasing what is erased changes nothing, and is not reported again: also
        not when this call itself had to be repeated, since the reply to its first try was lost.

        Args:
            context_id: whose messages.
            versions: which, an inherited one at its origin; None is everything the context wrote
                itself, its name and metadata, and deletes it.

        Raises:
            MessageNotFoundError: the view has no such version; nothing was changed.
        """
        context_id = inputs.uuid(context_id, "context_id")
        checked = None if versions is None else inputs.versions(versions)
        wanted = None if checked is None else [str(version) for version in checked]

        async def work(connection: Connection) -> asyncpg.Record | None:
            owners = await connection.fetch(
                self._text(statements.ERASE_OWNERS), self._tenant_id, context_id, wanted
            )
            await self._lock_trees(connection, [str(row["id"]) for row in owners])
            return await connection.fetchrow(
                self._text(statements.ERASE), self._tenant_id, context_id, wanted
            )

        found, _ = await self._pool.transact(work, statements.ERASE)
        if found is None:
            raise ContextNotFoundError(context_id)
        if found["missing"]:
            raise MessageNotFoundError(context_id, tuple(map(int, found["missing"])))
        return EraseReport(messages=found["messages"], contexts=found["contexts"])
