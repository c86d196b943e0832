"""The command `import`: conversations from a file into the store, each exactly once.

A conversation's context has an id that follows from what it says, so the second run finds what
the first one wrote, compares, and appends only what is missing. Nothing is remembered elsewhere:
a run that was killed is finished by running it again.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, Literal

import msgspec
import typer

from pgcontext import limits
from pgcontext.cli.conversations import Conversation, conversations
from pgcontext.cli.json_values import JsonValues
from pgcontext.cli.output import CommandError, Exit, JsonOption, Output, TenantOption, opened
from pgcontext.errors import (
    ContextNotFoundError,
    IdempotencyConflictError,
    InvalidInputError,
    MessageNotFoundError,
    VersionConflictError,
)
from pgcontext.messages import STORE_KEYS, drafts

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from uuid import UUID

    from pgcontext import Context, ContextStore, Message
    from pgcontext.models import Json

    Report = Callable[[int, "Tally"], None]

# As many as the pool has connections: a distant database is waited for less.
CONVERSATIONS_AT_ONCE: Final = limits.POOL_CONNECTIONS_MAX
MESSAGES_PER_BATCH: Final = 500
# How many conversations may begin with the same words before that is taken for a mistake.
ALIKE_CONVERSATIONS_MAX: Final = 1_000
CONFLICTS_MAX: Final = 5
STUB: Final[Json] = {"role": "user", "content": None, "token_count": 0}
NUMBERED: Final = re.compile(r"Message ([0-9]+): (.*)", re.DOTALL)

Outcome = Literal["created", "continued", "unchanged", "deleted"]


class Tally(msgspec.Struct):
    """What an import did.

    Attributes:
        conversations: how many the file holds.
        created: those that were new.
        continued: those that had grown, or that an earlier run left unfinished.
        unchanged: those that were there already.
        deleted: those that were soft-deleted since, and stay so.
        messages: how many were written.
        seconds: how long it took.
    """

    conversations: int = 0
    created: int = 0
    continued: int = 0
    unchanged: int = 0
    deleted: int = 0
    messages: int = 0
    seconds: float = 0.0


def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON or JSON lines; - for stdin.")],
    *,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring conversations in. Run it again as often as you like: nothing doubles."""
    out = Output(as_json=as_json)

    async def work(binary: BinaryIO, report: Report) -> Tally:
        async with opened(tenant) as store:
            return await bring_in(store, binary, report)

    with out.reported(), source(file) as binary, progress(out, size(binary)) as report:
        tally = out.run(work(binary, report))
    out.emit(tally, text=_summary(tally))


def source(file: str) -> AbstractContextManager[BinaryIO]:
    """Open a file for reading; - is stdin.

    Raises:
        InvalidInputError: it cannot be opened.
    """
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except OSError as error:
        msg = f"The file {file} cannot be read: {error.strerror}."
        raise InvalidInputError(msg) from error


def size(file: BinaryIO) -> int | None:
    """Return the length of a file; None when it is a pipe."""
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


async def bring_in(
    store: ContextStore,
    file: BinaryIO,
    report: Report = lambda _bytes, _tally: None,
) -> Tally:
    """Import all conversations of a file; a few at once, a backup one by one.

    Args:
        store: of the tenant.
        file: JSON or JSON lines.
        report: told after each conversation how many bytes have been read, and the sums so far.

    Raises:
        InvalidInputError: the file, a conversation or a message is not acceptable; says which.
            What stands before it is in the store.
    """
    tally = Tally()
    started = time.perf_counter()
    values = JsonValues(file)
    running: set[asyncio.Task[None]] = set()

    async def one(conversation: Conversation) -> None:
        outcome, written = await put(store, conversation)
        if conversation.after is None:
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            tally.conversations += 1
        tally.messages += written
        tally.seconds = time.perf_counter() - started
        report(values.bytes_read, tally)

    try:
        for conversation in conversations(values):
            # A fork needs its parent, and a list the order in which its contexts were made.
            room = 1 if conversation.exported else CONVERSATIONS_AT_ONCE
            while len(running) >= room:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
            running.add(asyncio.create_task(one(conversation)))
        await asyncio.gather(*running)
    finally:
        # Also when something was refused: what was begun is brought to its end.
        await asyncio.gather(*running, return_exceptions=True)
    return tally


async def put(store: ContextStore, conversation: Conversation) -> tuple[Outcome, int]:
    """Make the store hold a conversation; return what that took and the messages written.

    Raises:
        InvalidInputError: it is not acceptable; names it and the message.
        CommandError: its id belongs to a context that says something else.
    """
    try:
        _check(store, conversation)
        for ordinal in range(ALIKE_CONVERSATIONS_MAX):
            result = await _put_as(store, conversation, conversation.candidate(ordinal))
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
    store: ContextStore, conversation: Conversation, context_id: UUID
) -> tuple[Outcome, int] | None:
    """Try one id. None: its context holds something else."""
    outcome: Outcome = "unchanged"
    context = await _existing(store, context_id)
    if context is None:
        outcome = "created"
        try:
            context = await _make(store, conversation, context_id)
        except InvalidInputError:
            context = await _existing(store, context_id)
            if context is None:
                raise  # not because another import was faster
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
    while after < context.latest_version:
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


def _summary(tally: Tally) -> str:
    from pgcontext.cli.words import count

    parts = [
        f"{getattr(tally, outcome):,} {outcome}"
        for outcome in ("created", "continued", "unchanged", "deleted")
        if getattr(tally, outcome)
    ]
    listed = f" ({', '.join(parts)})" if parts else ""
    rate = f" ({tally.messages / tally.seconds:,.0f} a second)" if tally.messages else ""
    return (
        f"{count(tally.conversations, 'conversation')}{listed}, "
        f"{count(tally.messages, 'message')} written in {tally.seconds:.1f} s{rate}."
    )


@contextmanager
def progress(out: Output, total: int | None) -> Generator[Report]:
    """Show how far an import has come, on a terminal; give the function to report to."""
    if out.as_json or not out.stderr.is_terminal:
        yield lambda _bytes, _tally: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.fields[said]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=out.stderr,
        transient=True,
    )
    with bar:
        task = bar.add_task("import", total=total, said="reading")

        def report(bytes_read: int, tally: Tally) -> None:
            rate = tally.messages / tally.seconds if tally.seconds else 0
            said = f"{tally.conversations:,} conversations, {rate:,.0f} messages/s"
            bar.update(task, completed=bytes_read, said=said)

        yield report
