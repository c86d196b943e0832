"""The store: contexts, their messages, forks, windows and search over one PostgreSQL.

Each method checks its arguments, sends one statement and makes models of the rows. A call that
is refused may take a second statement to say why; exceptions to that are named where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Literal, LiteralString, TypeVar, cast
from uuid import UUID

import msgspec

from pgcontext import hits, inputs, limits, rows, statements, windows
from pgcontext.errors import (
    ConfigError,
    ContextNotFoundError,
    IdempotencyConflictError,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    VersionConflictError,
)
from pgcontext.ids import uuid7
from pgcontext.messages import drafts, encode, same, written
from pgcontext.models import (
    Context,
    Diff,
    EraseReport,
    Hit,
    Message,
    Page,
    PurgeReport,
    Window,
)
from pgcontext.pool import Pool, UniqueViolationError
from pgcontext.settings import Settings
from pgcontext.tokens import Tokenizer, get_tokenizer

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self

    import asyncpg

    from pgcontext.embedding import Embedder
    from pgcontext.messages import Draft, MessageInput
    from pgcontext.pool import Connection

T = TypeVar("T")
Rows = list[Any]

logger: Final = logging.getLogger("pgcontext")

NIL_TENANT: Final = UUID(int=0)
# Thinning needs more to choose from.
DIVERSITY_CANDIDATES: Final = 4
PURGE_CONTEXTS_PER_BATCH: Final = 500


class ContextStore:
    """Conversations on PostgreSQL, for one tenant.

    Making one does no I/O; connections are made at the first call and shared by all stores that
    `for_tenant` gives.

    Args:
        url: `postgresql://…`; None reads the environment (`DATABASE_URL`, …), and where that
            names none, means the embedded PostgreSQL.
        tenant_id: whose contexts these are; None is the nil UUID.
        embedder: what makes embeddings of text; without one, only those given are stored.
        tokenizer: what counts tokens; None takes the one of the settings.
        settings: all settings at once, instead of the environment.

    Raises:
        ConfigError: the URL or a setting cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        tenant_id: UUID | str | None = None,
        embedder: Embedder | None = None,
        tokenizer: Tokenizer | None = None,
        settings: Settings | None = None,
    ) -> None:
        if settings is None:
            settings = Settings.from_env(**({} if url is None else {"url": url}))
        elif url is not None:
            msg = "Give either url or settings, not both."
            raise ConfigError(msg)
        if settings.url is None and settings.in_function:
            msg = (
                "No database URL is set, and a function cannot run the embedded PostgreSQL: set "
                "DATABASE_URL to the pooled address of yours."
            )
            raise ConfigError(msg)
        self._settings = settings
        self._tenant_id = NIL_TENANT if tenant_id is None else inputs.uuid(tenant_id, "tenant_id")
        self._embedder = embedder
        self._tokenizer = tokenizer
        self._pool = Pool(settings)

    @classmethod
    def from_env(cls, **overrides: Any) -> ContextStore:  # noqa: ANN401
        """Make a store of the environment; `overrides` are arguments of the class or settings."""
        own = {
            name: overrides.pop(name)
            for name in ("tenant_id", "embedder", "tokenizer")
            if name in overrides
        }
        return cls(settings=Settings.from_env(**overrides), **own)

    def for_tenant(self, tenant_id: UUID | str) -> ContextStore:
        """Return a store for another tenant that shares this one's connections."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._tenant_id = inputs.uuid(tenant_id, "tenant_id")  # noqa: SLF001
        return other

    @property
    def tenant_id(self) -> UUID:
        """Whose contexts these are."""
        return self._tenant_id

    @property
    def settings(self) -> Settings:
        """The settings it was made with."""
        return self._settings

    async def __aenter__(self) -> Self:
        """Return the store; nothing is connected yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close this event loop's connections; a later call makes new ones."""
        await self._pool.aclose()

    # -- contexts ---------------------------------------------------------------------------------

    async def create(
        self,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: datetime | None = None,
        id: UUID | str | None = None,  # noqa: A002 (the column's name)
    ) -> Context:
        """Create an empty context. One statement.

        Raises:
            InvalidInputError: an argument is not acceptable, or the id is taken.
        """
        context_id = uuid7() if id is None else inputs.uuid(id, "id")
        arguments = (
            context_id,
            inputs.optional_text(name, "name", chars_max=limits.NAME_CHARS_MAX),
            _metadata(metadata) or "{}",
            inputs.moment(expires_at, "expires_at"),
        )
        try:
            found, _ = await self._fetch(statements.CREATE, *arguments)
        except UniqueViolationError as error:
            if not error.retried:
                msg = "A context with this id exists already."
                raise InvalidInputError(msg) from None
            # The earlier try of this very call wrote it, and its reply was lost.
            return await self.get(context_id)
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
            _metadata(metadata),
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
            arguments[3] = _metadata(metadata) or "{}"
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

    # -- messages ---------------------------------------------------------------------------------

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
        expected = inputs.version(expected_version, "expected_version")
        batch = self._drafts(messages)
        await self._embed(batch, embed)
        arguments = (
            context_id,
            encode(batch),
            len(batch),
            sum(draft.token_count for draft in batch),
            expected,
            key,
        )
        try:
            found, retried = await self._fetch(statements.APPEND, *arguments)
        except UniqueViolationError as error:
            return await self._refused_append(context_id, batch, expected, key, error.retried)
        if not found:
            return await self._refused_append(context_id, batch, expected, key, retried)
        return written(
            batch,
            tenant_id=self._tenant_id,
            context_id=context_id,
            base=found[0]["base"],
            created_at=found[0]["created_at"],
            idempotency_key=key,
        )

    async def _refused_append(
        self,
        context_id: UUID,
        batch: builtins.list[Draft],
        expected: int | None,
        key: str | None,
        retried: bool,  # noqa: FBT001
    ) -> builtins.list[Message]:
        """Find out why an append was refused: done before, or not allowed."""
        ids = [str(draft.id) for draft in batch]
        found, _ = await self._fetch(statements.APPEND_REFUSED, context_id, key, ids)
        if not found:
            raise ContextNotFoundError(context_id)
        earlier = rows.messages(found, self._tenant_id)
        by_id = [message for message in earlier if message.id in {draft.id for draft in batch}]
        if retried and len(by_id) == len(batch):
            return by_id
        by_key = [message for message in earlier if key and message.idempotency_key == key]
        if by_key:
            if not same(batch, by_key):
                msg = "This idempotency key was used in this context for other messages."
                raise IdempotencyConflictError(msg)
            return [msgspec.structs.replace(message, replayed=True) for message in by_key]
        actual = found[0]["latest_version"]
        if expected is not None and expected != actual:
            raise VersionConflictError(expected, actual)
        msg = "A message with one of these ids exists already."
        raise InvalidInputError(msg)

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
    ) -> builtins.list[Message]:
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
        found, _ = await self._fetch(
            statements.HISTORY if after is None else statements.HISTORY_AFTER,
            context_id,
            _cap(at_version, before),
            after or 0,
            limit,
            inputs.roles(roles),
            inputs.boolean(include_deleted, "include_deleted"),
        )
        if not found:
            raise ContextNotFoundError(context_id)
        return rows.messages(found, self._tenant_id)

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
        cap = _cap(at_version, None)
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
    ) -> builtins.list[Message]:
        """Hide messages in this context's view; twice is once. One statement.

        Inherited ones are hidden here only, and forks made before keep what they show.

        Raises:
            MessageNotFoundError: the view has no such version; nothing was changed.
        """
        return await self._hide_or_show(statements.DELETE_MESSAGES, context_id, versions)

    async def restore_messages(
        self, context_id: UUID | str, versions: int | Iterable[int]
    ) -> builtins.list[Message]:
        """Show again what this context hid itself; twice is once. One statement.

        Raises:
            MessageNotFoundError: the view has no such version; nothing was changed.
        """
        return await self._hide_or_show(statements.RESTORE_MESSAGES, context_id, versions)

    async def _hide_or_show(
        self, statement: LiteralString, context_id: UUID | str, versions: int | Iterable[int]
    ) -> builtins.list[Message]:
        context_id = inputs.uuid(context_id, "context_id")
        wanted = [str(version) for version in inputs.versions(versions)]
        found = await self._fresh(statement, context_id, context_id, wanted)
        if not found:
            raise ContextNotFoundError(context_id)
        missing = tuple(row["wanted_version"] for row in found if row["version"] is None)
        if missing:
            raise MessageNotFoundError(context_id, missing)
        return rows.messages(found, self._tenant_id)

    # -- forks ------------------------------------------------------------------------------------

    async def fork(
        self,
        context_id: UUID | str,
        *,
        at_version: int | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: UUID | str | None = None,  # noqa: A002 (the column's name)
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
        arguments = (context_id, version, fork_id, label, _metadata(metadata) or "{}")
        try:
            found = await self._fresh(statements.FORK, context_id, *arguments)
        except UniqueViolationError as error:
            if not error.retried:
                msg = "A context with this id exists already."
                raise InvalidInputError(msg) from None
            return await self.get(fork_id)
        if not found:
            raise ContextNotFoundError(context_id)
        if found[0]["id"] is None:
            msg = f"at_version is beyond the end: the context is at {found[0]['parent_version']}."
            raise InvalidInputError(msg)
        return rows.context(found[0], self._tenant_id)

    async def lineage(self, context_id: UUID | str) -> builtins.list[Context]:
        """Return the path from the root to this context, deleted ancestors too. One statement."""
        context_id = inputs.uuid(context_id, "context_id")
        found, _ = await self._fetch(statements.ANCESTORS, context_id)
        if not found:
            raise ContextNotFoundError(context_id)
        return [rows.context(row, self._tenant_id) for row in found]

    async def forks(
        self, context_id: UUID | str, *, recursive: bool = False
    ) -> builtins.list[Context]:
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
    ) -> builtins.list[Message]:
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

    async def _merged(self, into: UUID, prefix: str) -> builtins.list[Message]:
        """Return what an earlier try of a merge wrote before its reply was lost."""
        first, last = UUID(prefix + "0000"), UUID(prefix + "ffff")
        found, _ = await self._fetch(statements.MERGED, into, first, last)
        return rows.messages(found, self._tenant_id)

    # -- search -----------------------------------------------------------------------------------

    async def search(  # noqa: PLR0913 (each filter is one of its own)
        self,
        query: str | Sequence[float],
        *,
        context_id: UUID | str | None = None,
        limit: int = 10,
        mode: Literal["auto", "vector", "text"] = "auto",
        roles: Iterable[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        model: str | None = None,
        max_distance: float | None = None,
        neighbors: int = 0,
        diversity: float | None = None,
        at_version: int | None = None,
    ) -> builtins.list[Hit]:
        """Find messages, best first. One statement; the query is embedded before it.

        Args:
            query: words, or an embedding `float[dimensions]`, numpy included.
            context_id: search exactly what `history` of this context shows, inherited messages
                included; None searches the tenant's live messages.
            limit: hits at most, up to `SEARCH_HITS_MAX`.
            mode: "vector" by meaning, "text" by words; "auto" takes what the query is.
            roles: only these roles.
            since: only messages stored at or after this moment.
            until: only messages stored before this moment.
            metadata: only contexts whose metadata contains this.
            model: only messages written by this model.
            max_distance: only hits at most this cosine distance (0 to 2) away.
            neighbors: messages to give with each hit, on each side, up to `SEARCH_NEIGHBORS_MAX`.
            diversity: thin hits that say the same: 0 not at all, 1 as much as possible.
            at_version: with `context_id`: only up to this version.

        Raises:
            DimensionMismatchError: the embedding has another length than the database's.
        """
        limit = inputs.integer(limit, "limit", least=1, most=limits.SEARCH_HITS_MAX)
        if diversity is not None:
            diversity = inputs.number(diversity, "diversity", least=0, most=1)
        if at_version is not None and context_id is None:
            msg = "at_version needs a context_id: a version is a place in one context."
            raise InvalidInputError(msg)
        if max_distance is not None:
            max_distance = inputs.number(max_distance, "max_distance", least=0, most=2)
        scope = None if context_id is None else inputs.uuid(context_id, "context_id")
        filters = (
            inputs.roles(roles),
            inputs.moment(since, "since"),
            inputs.moment(until, "until"),
            _metadata(metadata),
            inputs.optional_text(model, "model", chars_max=limits.MODEL_CHARS_MAX),
            max_distance,
        )
        neighbors = inputs.integer(
            neighbors, "neighbors", least=0, most=limits.SEARCH_NEIGHBORS_MAX
        )
        cap = _cap(at_version, None)
        by_text, text = await self._query(query, mode, max_distance)
        found, _ = await self._fetch(
            _SEARCHES[scope is not None, by_text],
            text,
            limit if diversity is None else limit * DIVERSITY_CANDIDATES,
            *filters,
            self._embedding_model(),
            neighbors,
            diversity is not None,
            scope,
            cap,
        )
        if not found and scope is not None:
            # Nothing found in it, or no such context: that takes another look.
            await self.get(scope)
        return hits.assemble(found, self._tenant_id, limit=limit, diversity=diversity)

    async def _query(
        self, query: str | Sequence[float], mode: str, max_distance: float | None
    ) -> tuple[bool, str]:
        """Return whether to search by text, and the query as its statement takes it."""
        if mode not in {"auto", "vector", "text"}:
            msg = "mode must be one of: auto, vector, text."
            raise InvalidInputError(msg)
        dimensions = self._settings.dimensions
        if not isinstance(query, str):
            if mode == "text":
                msg = "mode text needs a query of words, not an embedding."
                raise InvalidInputError(msg)
            return False, inputs.embedding(query, dimensions=dimensions, name="query")
        words = inputs.text(query, "query", chars_max=limits.QUERY_CHARS_MAX)
        if not words.strip():
            msg = "query must not be empty."
            raise InvalidInputError(msg)
        if mode != "vector":
            if max_distance is not None:
                msg = "max_distance needs a search by vector."
                raise InvalidInputError(msg)
            return True, words
        if self._embedder is None:
            msg = "A search for words by vector needs a store with an embedder."
            raise InvalidInputError(msg)
        [vector] = await self._embedder.embed([words])
        return False, inputs.embedding(vector, dimensions=dimensions, name="the query's embedding")

    # -- retention --------------------------------------------------------------------------------

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

    # -- inside -----------------------------------------------------------------------------------

    def _text(self, statement: LiteralString) -> str:
        return statements.in_schema(statement, self._settings.schema)

    async def _fetch(self, statement: LiteralString, *arguments: Any) -> tuple[Rows, bool]:  # noqa: ANN401
        """Send one statement with the tenant first; see `Pool.fetch`."""
        return await self._pool.fetch(self._text(statement), self._tenant_id, *arguments)

    async def _fresh(self, statement: LiteralString, locked_id: UUID, *arguments: Any) -> Rows:  # noqa: ANN401
        """Send a statement that locks a context and says when its snapshot was older than that.

        Then somebody changed the context in between, and what the statement saw may be wrong, so
        it changed nothing. It is sent again in a transaction that holds the lock first.
        """
        found, _ = await self._fetch(statement, *arguments)
        if not found or not found[0]["stale"]:
            return found

        async def work(connection: Connection) -> Rows:
            await connection.fetch(self._text(statements.LOCK), self._tenant_id, locked_id)
            return await connection.fetch(self._text(statement), self._tenant_id, *arguments)

        found, _ = await self._pool.transact(work, statement)
        return found

    def _one_context(self, found: Rows, context_id: UUID) -> Context:
        if not found:
            raise ContextNotFoundError(context_id)
        return rows.context(found[0], self._tenant_id)

    def _drafts(self, given: MessageInput | Iterable[MessageInput]) -> builtins.list[Draft]:
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

    def _embedding_model(self) -> str | None:
        if self._embedder is not None:
            return self._embedder.model
        return self._settings.embedding_model

    async def _embed(
        self, batch: builtins.list[Draft], embed: Literal["later"] | bool | None
    ) -> None:
        """Give the drafts their embeddings, or mark them for later. No connection is held.

        An embedder that fails loses no message: what it should have embedded is marked.
        """
        if embed not in {None, True, False, "later"}:
            msg = 'embed must be True, False, None or "later".'
            raise InvalidInputError(msg)
        if embed is True and self._embedder is None:
            msg = "embed=True needs a store with an embedder."
            raise InvalidInputError(msg)
        if embed is False or (embed is None and self._embedder is None):
            return
        owed = [draft for draft in batch if draft.embedding is None and draft.content]
        if not owed:
            return
        if embed != "later" and self._embedder is not None:
            try:
                vectors = await self._embedder.embed([draft.content or "" for draft in owed])
                texts = [
                    inputs.embedding(vector, dimensions=self._settings.dimensions)
                    for vector in vectors
                ]
                for draft, text in zip(owed, texts, strict=True):
                    draft.embedding, draft.embedding_model = text, self._embedder.model
            except Exception as error:  # noqa: BLE001 (whatever it was, the messages are kept)
                logger.warning(
                    "embedding %d messages failed (%s); they are marked for later",
                    len(owed),
                    type(error).__name__,
                )
            else:
                return
        for draft in owed:
            draft.pending = True


_SEARCHES: Final[dict[tuple[bool, bool], LiteralString]] = {
    # (within a context, by text)
    (True, False): statements.SEARCH_CONTEXT_VECTOR,
    (True, True): statements.SEARCH_CONTEXT_TEXT,
    (False, False): statements.SEARCH_TENANT_VECTOR,
    (False, True): statements.SEARCH_TENANT_TEXT,
}


def _metadata(value: Mapping[str, Any] | None) -> str | None:
    return inputs.json_object(value, "metadata", bytes_max=limits.METADATA_BYTES_MAX)


def _cap(at_version: int | None, before: int | None) -> int:
    """Return the highest version to look at."""
    at_version = inputs.version(at_version, "at_version")
    before = inputs.version(before, "before")
    return min(
        limits.VERSION_MAX if at_version is None else at_version,
        limits.VERSION_MAX if before is None else before - 1,
    )
