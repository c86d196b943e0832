"""Messages: append, read, fit into a window, hide and show again."""

from __future__ import annotations

import logging
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, LiteralString

import msgspec

from pgcontext import inputs, limits, rows, statements, windows
from pgcontext.errors import (
    ContextNotFoundError,
    ContextStoreError,
    DimensionMismatchError,
    IdempotencyConflictError,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    UnavailableError,
    VersionConflictError,
)
from pgcontext.messages import drafts, encode, same, written
from pgcontext.models import Window
from pgcontext.pool import UniqueViolationError
from pgcontext.store.base import Rows, StoreBase, cap_of, has_meaning
from pgcontext.tokens import Tokenizer, get_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from uuid import UUID

    from pgcontext.embedding import Embedder
    from pgcontext.messages import Draft, MessageInput
    from pgcontext.models import Message

logger: Final = logging.getLogger("pgcontext")

# By whether it follows a version, and whether it shows what the context hid itself.
_HISTORIES: Final[dict[tuple[bool, bool], LiteralString]] = {
    (False, False): statements.HISTORY,
    (False, True): statements.HISTORY_WITH_HIDDEN,
    (True, False): statements.HISTORY_AFTER,
    (True, True): statements.HISTORY_AFTER_WITH_HIDDEN,
}


class MessageMethods(StoreBase):
    """The store's methods about messages."""

    async def append(
        self,
        context_id: UUID | str,
        messages: MessageInput | Iterable[MessageInput],
        *,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        embed: Literal["later"] | bool | None = None,
    ) -> list[Message]:
        """Append messages, all or none, in one piece. One statement.

        Args:
            context_id: where.
            messages: one message or an iterable of them, at most `MESSAGES_PER_APPEND_MAX`:
                mappings in the chat-completions form, or `NewMessage`s.
            idempotency_key: makes a repeated call safe: it returns what the first one wrote, with
                `replayed` set.
            expected_version: append only if the context's `latest_version` is this.
            embed: True embeds before writing, "later" leaves it to `embed_pending`, False leaves
                it; None embeds if the store has an embedder.

        Raises:
            InvalidInputError: a message is not acceptable; says which and why.
            VersionConflictError: the context is at another version; has the actual one.
            IdempotencyConflictError: the key was used here for other messages.
        """
        context_id = inputs.uuid(context_id, "context_id")
        key = inputs.optional_text(
            idempotency_key, "idempotency_key", chars_max=limits.IDEMPOTENCY_KEY_CHARS_MAX
        )
        if key == "":
            msg = "idempotency_key must not be empty."
            raise InvalidInputError(msg)
        expected = inputs.version(expected_version, "expected_version")
        batch = self._drafts(messages)
        embedded = await self._embed(batch, embed=embed)
        for _ in range(limits.ATTEMPTS_MAX):
            taken = False
            try:
                found, retried = await self._send(context_id, batch, embedded, expected, key)
            except UniqueViolationError as error:
                found, retried, taken = [], error.retried, True
            if found:
                return written(
                    batch,
                    tenant_id=self._tenant_id,
                    context_id=context_id,
                    base=found[0]["base"],
                    created_at=found[0]["created_at"],
                    idempotency_key=key,
                )
            earlier = await self._refused_append(context_id, batch, expected, key, retried=retried)
            if earlier is not None:
                return earlier
            if taken:
                raise InvalidInputError("A message with one of these ids exists already.")
            # What refused it was gone a moment later: a version that came, a context restored.
        raise UnavailableError("The context changed at each try; try again.")

    async def _send(
        self,
        context_id: UUID,
        batch: list[Draft],
        embedded: list[Draft],
        expected: int | None,
        key: str | None,
    ) -> tuple[Rows, bool]:
        """Send a batch; without the embeddings made for it, if the database has another length."""
        tokens = sum(draft.token_count for draft in batch)
        arguments = (context_id, encode(batch), len(batch), tokens, expected, key)
        try:
            return await self._fetch(statements.APPEND, *arguments)
        except DimensionMismatchError as error:
            if not embedded:
                raise
            logger.warning("messages for later: %d. %s", len(embedded), error)
        for draft in embedded:
            draft.embedding, draft.embedding_model, draft.pending = None, None, True
        return await self._send(context_id, batch, [], expected, key)

    async def _refused_append(
        self,
        context_id: UUID,
        batch: list[Draft],
        expected: int | None,
        key: str | None,
        *,
        retried: bool,
    ) -> list[Message] | None:
        """Find out why an append was refused: done before, not allowed, or, None, neither now."""
        ids = {draft.id for draft in batch}
        found, _ = await self._fetch(
            statements.APPEND_REFUSED, context_id, key, [str(draft.id) for draft in batch]
        )
        if not found:
            raise ContextNotFoundError(context_id)
        earlier = rows.messages(found, self._tenant_id)
        by_id = [message for message in earlier if message.id in ids]
        if retried and same(batch, by_id):
            return by_id
        by_key = [message for message in earlier if key and message.idempotency_key == key]
        if by_key:
            if not same(batch, by_key):
                msg = (
                    "This idempotency key was used in this context for other messages, or for "
                    "some that were erased since."
                )
                raise IdempotencyConflictError(msg)
            return [msgspec.structs.replace(message, replayed=True) for message in by_key]
        actual = found[0]["latest_version"]
        if expected is not None and expected != actual:
            raise VersionConflictError(expected, actual)
        return None

    async def history(
        self,
        context_id: UUID | str,
        *,
        at_version: int | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int = 100,
        roles: Iterable[str] | None = None,
        include_deleted: bool = False,
    ) -> list[Message]:
        """Return messages, oldest first: the newest `limit`, or those that follow `after`.

        One statement.

        Args:
            context_id: whose.
            at_version: nothing above this version.
            before: only versions below this.
            after: only versions above this, the oldest of them first; 0 is from the start.
            limit: messages at most, up to `HISTORY_MESSAGES_MAX`.
            roles: only these roles.
            include_deleted: also what this context hid, with `deleted_at` set.
        """
        context_id = inputs.uuid(context_id, "context_id")
        limit = inputs.integer(limit, "limit", least=1, most=limits.HISTORY_MESSAGES_MAX)
        after = inputs.version(after, "after")
        with_hidden = inputs.boolean(include_deleted, "include_deleted")
        found, _ = await self._fetch(
            _HISTORIES[after is not None, with_hidden],
            context_id,
            cap_of(at_version, before),
            after or 0,
            limit,
            inputs.roles(roles),
        )
        if not found:
            raise ContextNotFoundError(context_id)
        messages = sorted(rows.messages(found, self._tenant_id), key=attrgetter("version"))
        return messages[-limit:] if after is None else messages[:limit]

    async def iter_history(
        self,
        context_id: UUID | str,
        *,
        at_version: int | None = None,
        before: int | None = None,
        after: int | None = None,
        roles: Iterable[str] | None = None,
        page_size: int = 500,
    ) -> AsyncIterator[Message]:
        """Yield all messages, oldest first. One statement a page, no cursor kept open.

        Args:
            context_id: whose.
            at_version: nothing above this version.
            before: only versions below this.
            after: only versions above this.
            roles: only these roles.
            page_size: messages per statement, up to `HISTORY_MESSAGES_MAX`.
        """
        chosen = inputs.roles(roles)
        inputs.integer(page_size, "page_size", least=1, most=limits.HISTORY_MESSAGES_MAX)
        seen = inputs.version(after, "after") or 0
        while True:
            page = await self.history(
                context_id,
                at_version=at_version,
                before=before,
                after=seen,
                limit=page_size,
                roles=chosen,
            )
            for message in page:
                yield message
            if len(page) < page_size:
                return
            seen = page[-1].version

    async def window(
        self, context_id: UUID | str, *, max_tokens: int, at_version: int | None = None
    ) -> Window:
        """Return the newest messages that fit a token budget, oldest first.

        System and developer messages stay and come first. A tool result never comes without its
        call, nor a call without its results. One statement; again with a longer reach when
        messages that cannot be shown took the room.

        Raises:
            LimitExceededError: the system and developer messages alone don't fit, or are more
                than `WINDOW_PINNED_MESSAGES_MAX`.
        """
        context_id = inputs.uuid(context_id, "context_id")
        max_tokens = inputs.integer(max_tokens, "max_tokens", least=0, most=limits.VERSION_MAX)
        cap = cap_of(at_version)
        reach = 1
        while True:
            found, _ = await self._fetch(
                statements.WINDOW,
                context_id,
                cap,
                max_tokens,
                reach,
                limits.WINDOW_MESSAGES_MAX,
                limits.WINDOW_PINNED_MESSAGES_MAX,
            )
            if not found:
                raise ContextNotFoundError(context_id)
            window = self._fit(found, max_tokens)
            if window is not None:
                return window
            reach *= 4

    def _fit(self, found: Rows, max_tokens: int) -> Window | None:
        pinned = [rows.message(row, self._tenant_id) for row in found if row["place"] == 0]
        newest = [rows.message(row, self._tenant_id) for row in found if row["place"]]
        if len(pinned) > limits.WINDOW_PINNED_MESSAGES_MAX:
            msg = (
                f"A window keeps at most {limits.WINDOW_PINNED_MESSAGES_MAX:,} system and "
                "developer messages, this context has more; delete some of them."
            )
            raise LimitExceededError(msg)
        looked_at, asked_for = found[0]["looked_at"], found[0]["asked_for"]
        all_there = len(newest) == looked_at < asked_for
        window = windows.fit(pinned, newest, max_tokens, all_there=all_there)
        if window is None and asked_for >= limits.WINDOW_MESSAGES_MAX:
            # As far back as a window goes.
            window = windows.fit(pinned, newest, max_tokens, all_there=True)
            return window and Window(window.messages, window.total_tokens, truncated=True)
        return window

    async def delete_messages(
        self, context_id: UUID | str, versions: int | Iterable[int]
    ) -> list[Message]:
        """Hide messages in this context's view; twice is once. One statement.

        Inherited ones are hidden here only, and forks made before keep what they show.

        Raises:
            MessageNotFoundError: the view has no such version; nothing was changed.
        """
        return await self._hide_or_show(statements.DELETE_MESSAGES, context_id, versions)

    async def restore_messages(
        self, context_id: UUID | str, versions: int | Iterable[int]
    ) -> list[Message]:
        """Show again what this context hid itself; twice is once. One statement.

        Raises:
            MessageNotFoundError: the view has no such version; nothing was changed.
        """
        return await self._hide_or_show(statements.RESTORE_MESSAGES, context_id, versions)

    async def _hide_or_show(
        self, statement: LiteralString, context_id: UUID | str, versions: int | Iterable[int]
    ) -> list[Message]:
        context_id = inputs.uuid(context_id, "context_id")
        wanted = [str(version) for version in inputs.versions(versions)]
        found = await self._fresh(statement, context_id, context_id, wanted)
        if not found:
            raise ContextNotFoundError(context_id)
        missing = tuple(row["wanted_version"] for row in found if row["version"] is None)
        if missing:
            raise MessageNotFoundError(context_id, missing)
        return rows.messages(found, self._tenant_id)

    def _drafts(self, given: MessageInput | Iterable[MessageInput]) -> list[Draft]:
        return drafts(
            given,
            dimensions=self._settings.dimensions,
            embedding_model=self._embedding_model(),
            tokenizer=self._get_tokenizer,
        )

    def _get_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = get_tokenizer(self._settings.tokenizer)
        return self._tokenizer

    async def _embed(
        self, batch: list[Draft], *, embed: Literal["later"] | bool | None
    ) -> list[Draft]:
        """Give the drafts their embeddings, or mark them for later. No connection is held.

        An embedder that fails loses no message: what it should have embedded is marked. Returns
        what it did embed.
        """
        if not (embed is None or isinstance(embed, bool) or embed == "later"):
            msg = 'embed must be True, False, None or "later".'
            raise InvalidInputError(msg)
        if embed is True and self._embedder is None:
            msg = "embed=True needs a store with an embedder."
            raise InvalidInputError(msg)
        if embed is False or (embed is None and self._embedder is None):
            return []
        owed = [draft for draft in batch if draft.embedding is None and has_meaning(draft.content)]
        if (
            embed != "later"
            and self._embedder is not None
            and await self._embed_now(self._embedder, owed)
        ):
            return owed
        for draft in owed:
            draft.pending = True
        return []

    async def _embed_now(self, embedder: Embedder, owed: list[Draft]) -> bool:
        """Embed the drafts; tell whether it was possible."""
        if not owed:
            return True
        try:
            made = await self._embedded(embedder, [draft.content or "" for draft in owed])
        except ContextStoreError as error:
            logger.warning("embedding failed, messages for later: %d. %s", len(owed), error)
            return False
        for draft, text in zip(owed, made, strict=True):
            draft.embedding, draft.embedding_model = text, embedder.model
        return True
