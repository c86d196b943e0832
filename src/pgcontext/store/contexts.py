"""Contexts themselves: make, find, list, change, delete, restore."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, Any

import msgspec

from pgcontext import inputs, limits, rows, statements
from pgcontext.errors import ContextNotFoundError, InvalidInputError
from pgcontext.ids import uuid7
from pgcontext.models import Page
from pgcontext.pool import UniqueViolationError
from pgcontext.store.base import Rows, StoreBase, metadata_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from pgcontext.models import Context


class ContextMethods(StoreBase):
    """The store's methods about contexts."""

    async def create(
        self,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: datetime | None = None,
        id: UUID | str | None = None,
    ) -> Context:
        """Create an empty context. One statement.

        Raises:
            InvalidInputError: an argument is not acceptable, or the id is taken.
        """
        context_id = uuid7() if id is None else inputs.uuid(id, "id")
        label = inputs.optional_text(name, "name", chars_max=limits.NAME_CHARS_MAX)
        encoded = metadata_json(metadata) or "{}"
        moment = inputs.moment(expires_at, "expires_at")
        try:
            found, _ = await self._fetch(statements.CREATE, context_id, label, encoded, moment)
        except UniqueViolationError as error:
            wanted = {"name": label, "expires_at": moment, "parent_id": None}
            return await self._own(error, context_id, encoded, wanted)
        return rows.context(found[0], self._tenant_id)

    async def get(self, context_id: UUID | str, *, include_deleted: bool = False) -> Context:
        """Return a context. One statement.

        Raises:
            ContextNotFoundError: there is none, or it is deleted and `include_deleted` is False.
        """
        context_id = inputs.uuid(context_id, "context_id")
        include_deleted = inputs.boolean(include_deleted, "include_deleted")
        found, _ = await self._fetch(statements.GET, context_id, include_deleted)
        return self._one_context(found, context_id)

    async def list(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        include_deleted: bool = False,
    ) -> Page[Context]:
        """Return a page of contexts, newest first. One statement.

        Args:
            limit: contexts at most, up to `LIST_CONTEXTS_MAX`.
            cursor: the `next_cursor` of the page before.
            metadata: only contexts whose metadata contains this.
            include_deleted: soft-deleted ones too.
        """
        limit = inputs.integer(limit, "limit", least=1, most=limits.LIST_CONTEXTS_MAX)
        created_at, last_id = inputs.cursor(cursor)
        found, _ = await self._fetch(
            statements.LIST,
            limit + 1,
            created_at,
            last_id,
            metadata_json(metadata),
            inputs.boolean(include_deleted, "include_deleted"),
        )
        items = [rows.context(row, self._tenant_id) for row in found[:limit]]
        more = len(found) > limit
        return Page(items, inputs.cursor_of(items[-1].created_at, items[-1].id) if more else None)

    async def update(
        self,
        context_id: UUID | str,
        *,
        name: str | EllipsisType | None = ...,
        metadata: Mapping[str, Any] | EllipsisType | None = ...,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Context:
        """Change what is given and leave the rest. One statement.

        Args:
            context_id: which.
            name: a new name; None removes it.
            metadata: replaces the whole object; None empties it.
            expires_at: a new moment; None removes it.
        """
        context_id = inputs.uuid(context_id, "context_id")
        arguments: list[Any] = [name is not ..., None, metadata is not ..., None]
        if not isinstance(name, EllipsisType):
            arguments[1] = inputs.optional_text(name, "name", chars_max=limits.NAME_CHARS_MAX)
        if not isinstance(metadata, EllipsisType):
            arguments[3] = metadata_json(metadata) or "{}"
        moment = None if expires_at is ... else inputs.moment(expires_at, "expires_at")
        found, _ = await self._fetch(
            statements.UPDATE, context_id, *arguments, expires_at is not ..., moment
        )
        return self._one_context(found, context_id)

    async def delete(self, context_id: UUID | str) -> Context:
        """Delete a context softly; its forks live on. One statement."""
        context_id = inputs.uuid(context_id, "context_id")
        found, retried = await self._fetch(statements.DELETE, context_id)
        if not found and retried:
            # An earlier try may have done it and lost its reply.
            return await self.get(context_id, include_deleted=True)
        return self._one_context(found, context_id)

    async def restore(self, context_id: UUID | str) -> Context:
        """Bring a deleted context back; one that lives stays as it is. One statement."""
        context_id = inputs.uuid(context_id, "context_id")
        found, _ = await self._fetch(statements.RESTORE, context_id)
        return self._one_context(found, context_id)

    async def _own(
        self, error: UniqueViolationError, context_id: UUID, encoded: str, wanted: dict[str, Any]
    ) -> Context:
        """Return the context that took the id, if an earlier try of this very call wrote it.

        That try's reply was lost. Another caller's context is told by what it is.
        """
        if error.retried:
            context = await self.get(context_id, include_deleted=True)
            same = all(getattr(context, name) == value for name, value in wanted.items())
            if same and context.metadata == msgspec.json.decode(encoded):
                return context
        msg = "A context with this id exists already."
        raise InvalidInputError(msg) from None

    def _one_context(self, found: Rows, context_id: UUID) -> Context:
        if not found:
            raise ContextNotFoundError(context_id)
        return rows.context(found[0], self._tenant_id)
