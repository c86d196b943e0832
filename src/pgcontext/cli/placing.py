"""One conversation into the store, exactly once: found, or made, and brought up to date.

Its context has an id that follows from what it says. So a second run finds what the first one
wrote, compares, and appends only what is missing; nothing is remembered elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, Literal

from pgcontext import limits
from pgcontext.cli.output import CommandError, Exit
from pgcontext.errors import (
    ContextNotFoundError,
    IdempotencyConflictError,
    InvalidInputError,
    MessageNotFoundError,
    VersionConflictError,
)
from pgcontext.messages import STORE_KEYS, drafts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from pgcontext import Context, ContextStore, Message
    from pgcontext.cli.conversations import Conversation
    from pgcontext.models import Json

# With embeddings each takes a few milliseconds, for which the statement holds the context's lock.
MESSAGES_PER_BATCH: Final = 200
# How many conversations may begin with the same words before that is taken for a mistake.
ALIKE_CONVERSATIONS_MAX: Final = 1_000
CONFLICTS_MAX: Final = 5
STUB: Final[Json] = {"role": "user", "content": None, "token_count": 0}
NUMBERED: Final = re.compile(r"Message ([0-9]+): (.*)", re.DOTALL)

Outcome = Literal["created", "continued", "unchanged", "deleted"]


class Turn:
    """Lets contexts be made in the order of the file, while all else goes on side by side.

    Args:
        before: the turn of the conversation before.
    """

    def __init__(self, before: Turn | None = None) -> None:
        self._before = before
        self._over = asyncio.Event()

    async def come(self) -> None:
        """Wait until it is this one's turn."""
        if self._before is not None:
            await self._before.passed()
            self._before = None  # so that the turns of a long file do not pile up

    async def passed(self) -> None:
        """Wait until this turn is over."""
        await self._over.wait()

    def end(self) -> None:
        """Let the next one go."""
        self._over.set()


async def put(store: ContextStore, conversation: Conversation, turn: Turn) -> tuple[Outcome, int]:
    """Make the store hold a conversation; return what that took and the messages written.

    Args:
        store: of the tenant.
        conversation: to be there afterwards.
        turn: when its context may be made, if it has to be.

    Raises:
        InvalidInputError: it is not acceptable; names it and the message.
        CommandError: its id belongs to a context that says something else.
    """
    try:
        _check(store, conversation)
        for ordinal in range(ALIKE_CONVERSATIONS_MAX):
            context_id = conversation.candidate(ordinal)
            result = await _put_as(store, conversation, context_id, turn)
            if result is not None:
                return result
            if conversation.id is not None:
                break
    except InvalidInputError as error:
        error.args = (f"{conversation.place}: {error}",)
        raise
    msg = (
        f"{conversation.place} is not what the store holds under its id "
        f"{conversation.candidate(0)}; nothing of it was imported."
    )
    raise CommandError(msg, Exit.CONFLICT)


async def _put_as(
    store: ContextStore, conversation: Conversation, context_id: UUID, turn: Turn
) -> tuple[Outcome, int] | None:
    """Try one id. None: its context holds something else."""
    outcome: Outcome = "unchanged"
    context = await _existing(store, context_id)
    await turn.come()
    if context is None:
        outcome = "created"
        try:
            context = await _make(store, conversation, context_id)
        except InvalidInputError:
            context = await _existing(store, context_id)
            if context is None:
                raise  # not because another import was faster
    turn.end()
    if context.deleted_at is not None:
        return ("unchanged" if conversation.deleted else "deleted"), 0
    for _ in range(CONFLICTS_MAX):
        rest = await _missing(store, context, conversation)
        if rest is None:
            return None
        try:
            await _append(store, context.id, rest)
        except (VersionConflictError, IdempotencyConflictError):
            # Another import was faster: see what it wrote.
            context = await store.get(context.id)
            continue
        await _finish(store, context, conversation)
        if rest and outcome == "unchanged":
            outcome = "continued"
        return outcome, len(rest)
    msg = f"{conversation.place} is being written by somebody else; run the import again later."
    raise CommandError(msg, Exit.CONFLICT)


def _check(store: ContextStore, conversation: Conversation) -> None:
    """Refuse a bad message before anything of its conversation is written."""
    for start in range(0, len(conversation.messages), MESSAGES_PER_BATCH):
        batch = conversation.messages[start : start + MESSAGES_PER_BATCH]
        try:
            drafts(
                batch,
                dimensions=store.settings.dimensions,
                embedding_model=None,
                tokenizer=_NoTokenizer,
            )
        except InvalidInputError as error:
            if found := NUMBERED.fullmatch(str(error)):
                error.args = (f"message {start + int(found[1]) + 1}: {found[2]}",)
            raise


class _NoTokenizer:
    """Counts nothing: what is only checked need not be counted."""

    name = "none"

    def count(self, text: str) -> int:  # noqa: ARG002 (a Tokenizer's signature)
        return 0


async def _existing(store: ContextStore, context_id: UUID) -> Context | None:
    try:
        return await store.get(context_id, include_deleted=True)
    except ContextNotFoundError:
        return None


async def _make(store: ContextStore, conversation: Conversation, context_id: UUID) -> Context:
    if conversation.after is not None:
        msg = "it goes on with a context that is not here; import what stands before it first."
        raise InvalidInputError(msg)
    if conversation.lineage is not None:
        return await _fork(store, conversation, context_id)
    return await store.create(
        id=context_id,
        name=conversation.name,
        metadata=conversation.metadata,
        expires_at=conversation.expires_at,
    )


async def _fork(store: ContextStore, conversation: Conversation, context_id: UUID) -> Context:
    """Fork from the parent as it was at that moment: with what it hid then."""
    lineage = conversation.lineage
    assert lineage is not None  # noqa: S101 (the caller has looked)
    parent = await _existing(store, lineage.parent)
    if parent is None:
        msg = f"it is a fork of {lineage.parent}, which is not here; import that first."
        raise InvalidInputError(msg)
    if parent.deleted_at is not None:
        await store.restore(parent.id)
    hidden_now = await _hidden(store, parent)
    await _hide_exactly(store, parent.id, now=hidden_now, wanted=set(lineage.hidden))
    try:
        made = await store.fork(
            parent.id,
            at_version=lineage.version,
            name=conversation.name,
            metadata=conversation.metadata,
            id=context_id,
        )
    finally:
        await _hide_exactly(store, parent.id, now=set(lineage.hidden), wanted=hidden_now)
        if parent.deleted_at is not None:
            await store.delete(parent.id)
    if conversation.expires_at is not None:
        return await store.update(made.id, expires_at=conversation.expires_at)
    return made


async def _missing(
    store: ContextStore, context: Context, conversation: Conversation
) -> list[tuple[int, Json]] | None:
    """Return the versions that are still to be written, or None when the context differs.

    A context that goes on beyond the conversation has it already. Versions whose message is gone
    by now are taken on trust.
    """
    lineage = conversation.lineage
    if lineage and (context.parent_id, context.fork_version) != (lineage.parent, lineage.version):
        return None
    ours = {version: message or STUB for version, message in conversation.versions()}
    gaps = set(conversation.gaps)
    after = conversation.start
    if context.latest_version < after:
        msg = f"it goes on after version {after}; import what stands before it first."
        raise InvalidInputError(msg)
    last = min(context.latest_version, max(ours, default=0))
    while after < last:
        page = await store.history(
            context.id, after=after, limit=limits.HISTORY_MESSAGES_MAX, include_deleted=True
        )
        if not page:
            break
        after = page[-1].version
        for message in page:
            mapping = ours.get(message.version)
            if mapping and message.version not in gaps and not same(message, mapping):
                return None
    return [item for item in ours.items() if item[0] > context.latest_version]


def same(message: Message, mapping: Json) -> bool:
    """Tell whether a stored message says what a mapping says."""
    return message.as_dict() == {key: mapping[key] for key in mapping if key not in STORE_KEYS}


async def _append(store: ContextStore, context_id: UUID, rest: list[tuple[int, Json]]) -> None:
    for batch in _batches(rest):
        first = batch[0][0]
        await store.append(
            context_id,
            [mapping for _, mapping in batch],
            expected_version=first - 1,
            idempotency_key=f"import:{first}",
        )


def _batches(rest: list[tuple[int, Json]]) -> Iterator[list[tuple[int, Json]]]:
    """Cut into batches of bounded number and size; a large message makes one of its own."""
    batch: list[tuple[int, Json]] = []
    size = 0
    for item in rest:
        length = len(str(item[1]))
        if batch and (
            len(batch) == MESSAGES_PER_BATCH or size + length > limits.IMPORT_BATCH_BYTES_MAX
        ):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


async def _finish(store: ContextStore, context: Context, conversation: Conversation) -> None:
    """Bring the context to the state that an export says it was in."""
    if conversation.gaps:
        await store.erase(context.id, list(conversation.gaps))
    if conversation.hidden:
        await _hide_exactly(store, context.id, now=set(), wanted=set(conversation.hidden))
    if conversation.deleted:
        await store.delete(context.id)


async def _hidden(store: ContextStore, context: Context) -> set[int]:
    """Return the versions that a context hides itself."""
    if context.message_count == context.latest_version:
        return set()
    hidden: set[int] = set()
    after = 0
    while page := await store.history(
        context.id, after=after, limit=limits.HISTORY_MESSAGES_MAX, include_deleted=True
    ):
        hidden.update(message.version for message in page if message.deleted_at is not None)
        after = page[-1].version
    return hidden


async def _hide_exactly(
    store: ContextStore, context_id: UUID, *, now: set[int], wanted: set[int]
) -> None:
    for change, versions in (
        (store.restore_messages, now - wanted),
        (store.delete_messages, wanted - now),
    ):
        if not versions:
            continue
        try:
            await change(context_id, versions)
        except MessageNotFoundError as error:
            # Erased meanwhile: the rest of them still counts.
            if rest := versions - set(error.versions):
                await change(context_id, rest)
