"""Forks: branch off, look up and down the family, compare, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgcontext import inputs, limits, rows, statements
from pgcontext.errors import (
    ContextNotFoundError,
    InvalidInputError,
    LimitExceededError,
    VersionConflictError,
)
from pgcontext.ids import uuid7
from pgcontext.models import Diff
from pgcontext.pool import UniqueViolationError
from pgcontext.store.base import metadata_json
from pgcontext.store.contexts import ContextMethods

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgcontext.models import Context, Message


class ForkMethods(ContextMethods):
    """The store's methods about forks."""

    async def fork(
        self,
        context_id: UUID | str,
        *,
        at_version: int | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: UUID | str | None = None,
    ) -> Context:
        """Continue from a version of a context, copying nothing. One statement.

        Args:
            context_id: the parent.
            at_version: the last version to inherit; None is its head, 0 nothing.
            name: of the fork.
            metadata: of the fork; it does not inherit the parent's.
            id: of the fork.

        Raises:
            InvalidInputError: the version is beyond the parent's end, or the id is taken.
        """
        context_id = inputs.uuid(context_id, "context_id")
        version = inputs.version(at_version, "at_version")
        fork_id = uuid7() if id is None else inputs.uuid(id, "id")
        label = inputs.optional_text(name, "name", chars_max=limits.NAME_CHARS_MAX)
        encoded = metadata_json(metadata) or "{}"
        made = (fork_id, label, encoded)
        try:
            if version is None:
                found, _ = await self._fetch(statements.FORK, context_id, *made)
            else:
                found = await self._fresh(
                    statements.FORK_AT, context_id, context_id, version, *made
                )
        except UniqueViolationError as error:
            wanted: dict[str, Any] = {"name": label, "parent_id": context_id}
            if version is not None:
                wanted["fork_version"] = version
            return await self._own(error, fork_id, encoded, wanted)
        if not found:
            raise ContextNotFoundError(context_id)
        if found[0]["id"] is None:
            msg = f"at_version is beyond the end: the context is at {found[0]['parent_version']}."
            raise InvalidInputError(msg)
        return rows.context(found[0], self._tenant_id)

    async def lineage(self, context_id: UUID | str) -> list[Context]:
        """Return the path from the root to this context, deleted ancestors too. One statement.

        Raises:
            LimitExceededError: it has more than `LINEAGE_DEPTH_MAX` ancestors.
        """
        context_id = inputs.uuid(context_id, "context_id")
        most = limits.LINEAGE_DEPTH_MAX
        found, _ = await self._fetch(statements.ANCESTORS, context_id, most + 1)
        if not found:
            raise ContextNotFoundError(context_id)
        if len(found) > most + 1:
            msg = f"The context has more than {most:,} ancestors."
            raise LimitExceededError(msg)
        return [rows.context(row, self._tenant_id) for row in found]

    async def forks(self, context_id: UUID | str, *, recursive: bool = False) -> list[Context]:
        """Return the live forks of a context, oldest first. One statement.

        Args:
            context_id: whose.
            recursive: forks of forks too, also below deleted ones.

        Raises:
            LimitExceededError: they are more than `FORKS_CONTEXTS_MAX`.
        """
        context_id = inputs.uuid(context_id, "context_id")
        found, _ = await self._fetch(
            statements.FORKS,
            context_id,
            inputs.boolean(recursive, "recursive"),
            limits.FORKS_CONTEXTS_MAX + 2,
        )
        if not found:
            raise ContextNotFoundError(context_id)
        if len(found) > limits.FORKS_CONTEXTS_MAX + 1:
            msg = f"The context has more than {limits.FORKS_CONTEXTS_MAX:,} forks."
            raise LimitExceededError(msg)
        return [rows.context(row, self._tenant_id) for row in found[1:]]

    async def diff(self, a: UUID | str, b: UUID | str) -> Diff:
        """Compare what two contexts show, message by message. One statement.

        Raises:
            LimitExceededError: they differ in more than `DIFF_MESSAGES_MAX` messages.
        """
        a, b = inputs.uuid(a, "a"), inputs.uuid(b, "b")
        found, _ = await self._fetch(statements.DIFF, a, b, limits.DIFF_MESSAGES_MAX)
        if found[0]["found"] < len({a, b}):
            # Which of the two it was takes another look.
            await self.get(a)
            raise ContextNotFoundError(b)
        differing = [row for row in found if row["version"] is not None]
        if len(differing) > limits.DIFF_MESSAGES_MAX:
            msg = f"The contexts differ in more than {limits.DIFF_MESSAGES_MAX:,} messages."
            raise LimitExceededError(msg)
        return Diff(
            ancestor_id=found[0]["common_id"],
            version=found[0]["common_version"] or 0,
            only_a=rows.messages([row for row in differing if row["only_a"]], self._tenant_id),
            only_b=rows.messages([row for row in differing if not row["only_a"]], self._tenant_id),
        )

    async def merge(
        self, source_id: UUID | str, *, into: UUID | str, rebase: bool = False
    ) -> list[Message]:
        """Append to one context what a related one shows above their last common version.

        One statement. Copies are messages of their own; hidden messages don't go along.

        Args:
            source_id: where the messages come from.
            into: where they go.
            rebase: append them even if `into` has gone on since.

        Returns:
            The new messages; none when there is nothing to merge.

        Raises:
            VersionConflictError: `into` has something after the common version.
            InvalidInputError: the two are unrelated.
            LimitExceededError: there are more than `MERGE_MESSAGES_MAX` messages to merge.
        """
        source_id, into = inputs.uuid(source_id, "source_id"), inputs.uuid(into, "into")
        rebase = inputs.boolean(rebase, "rebase")
        prefix = str(uuid7())[:-4]
        arguments = (source_id, into, rebase, prefix, limits.MERGE_MESSAGES_MAX)
        retried = False
        try:
            found, retried = await self._fetch(statements.MERGE, *arguments)
        except UniqueViolationError:
            return await self._merged(into, prefix)
        if not found:
            # As everywhere, the one named first is looked for first.
            await self.get(source_id)
            raise ContextNotFoundError(into)
        first = found[0]
        if not first["source_found"]:
            raise ContextNotFoundError(source_id)
        if first["common_id"] is None:
            msg = "The contexts are unrelated: they have no common ancestor to merge from."
            raise InvalidInputError(msg)
        if first["available"] > limits.MERGE_MESSAGES_MAX:
            msg = f"At most {limits.MERGE_MESSAGES_MAX:,} messages can be merged at once."
            raise LimitExceededError(msg)
        if first["available"] and first["version"] is None:
            if retried and (earlier := await self._merged(into, prefix)):
                return earlier
            raise VersionConflictError(first["common_version"], first["actual"])
        return rows.messages(found, self._tenant_id)

    async def _merged(self, into: UUID, prefix: str) -> list[Message]:
        """Return what an earlier try of a merge wrote before its reply was lost."""
        first, last = UUID(prefix + "0000"), UUID(prefix + "ffff")
        found, _ = await self._fetch(statements.MERGED, into, first, last)
        return rows.messages(found, self._tenant_id)
