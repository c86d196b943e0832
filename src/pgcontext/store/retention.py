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

    from pgcontext.pool import Connection

PURGE_CONTEXTS_PER_BATCH: Final = 500


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
        bound = limits.PURGE_ROWS_PER_STATEMENT_MAX
        message_count = 0
        while True:
            found, _ = await self._fetch(statements.PURGE_MESSAGES, seconds, None, bound)
            message_count += found[0]["messages"]
            if found[0]["messages"] < bound:
                break
        last_id: UUID | None = None
        while True:
            last_id, removed, more = await self._purge_batch(seconds, last_id)
            message_count += removed
            if not more:
                break
        context_count = 0
        while True:
            found, _ = await self._fetch(statements.PURGE_CONTEXTS, seconds, bound)
            context_count += found[0]["contexts"]
            if found[0]["contexts"] < bound:
                return PurgeReport(contexts=context_count, messages=message_count)

    async def _purge_batch(
        self, seconds: float, last_id: UUID | None
    ) -> tuple[UUID | None, int, bool]:
        """Empty the next dead contexts; return the last of them, how much, whether to go on."""

        async def work(connection: Connection) -> tuple[UUID | None, int, bool]:
            dead = await connection.fetch(
                self._text(statements.PURGE_LOCK),
                self._tenant_id,
                seconds,
                last_id,
                PURGE_CONTEXTS_PER_BATCH,
            )
            if not dead:
                return None, 0, False
            ids = [str(row["id"]) for row in dead]
            bound = limits.PURGE_ROWS_PER_STATEMENT_MAX
            removed = 0
            while True:
                count = await connection.fetchval(
                    self._text(statements.PURGE_MESSAGES), self._tenant_id, seconds, ids, bound
                )
                removed += count
                if count < bound:
                    return dead[-1]["id"], removed, len(dead) == PURGE_CONTEXTS_PER_BATCH

        result, _ = await self._pool.transact(work, statements.PURGE_LOCK)
        return result

    async def erase(
        self, context_id: UUID | str, versions: int | Iterable[int] | None = None
    ) -> EraseReport:
        """Remove content for good, everywhere, forks included: the right to be forgotten.

        Two statements or more in one transaction: first the locks on every context that may show
        the messages, then, with a snapshot that is younger than the locks, the erasure. Works on
        deleted contexts. Erasing what is erased changes nothing.

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
            locked = -1
            # A fork that was on its way when the lock was taken shows up in the next look.
            while True:
                held = await connection.fetch(
                    self._text(statements.ERASE_LOCK), self._tenant_id, context_id, wanted
                )
                if len(held) == locked:
                    break
                locked = len(held)
            return await connection.fetchrow(
                self._text(statements.ERASE), self._tenant_id, context_id, wanted
            )

        found, _ = await self._pool.transact(work, statements.ERASE)
        if found is None:
            raise ContextNotFoundError(context_id)
        if found["missing"]:
            raise MessageNotFoundError(context_id, tuple(checked or ()))
        return EraseReport(messages=found["messages"], contexts=found["contexts"])
