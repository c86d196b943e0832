"""The command `import`: conversations from a file into the store, each exactly once.

A run that was killed is finished by running it again.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import msgspec
import typer

from pgcontext import limits
from pgcontext.cli.conversations import Conversation, conversations
from pgcontext.cli.json_values import JsonValues
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened
from pgcontext.cli.placing import Turn, put
from pgcontext.cli.progress import bar
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from pgcontext import ContextStore

    Report = Callable[[int, "Tally"], None]

# As many as the pool has connections: a distant database is waited for less.
CONVERSATIONS_AT_ONCE: Final = limits.POOL_CONNECTIONS_MAX


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

    async def work(binary: BinaryIO) -> Tally:
        async with opened(tenant) as store:
            with progress(out, size(binary)) as report:
                return await bring_in(store, binary, report)

    with out.reported(), source(file) as binary:
        tally = out.run(work(binary))
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

    async def one(conversation: Conversation, turn: Turn) -> None:
        try:
            outcome, written = await put(store, conversation, turn)
        finally:
            turn.end()
        if conversation.after is None:
            setattr(tally, outcome, getattr(tally, outcome) + 1)
            tally.conversations += 1
        tally.messages += written
        tally.seconds = time.perf_counter() - started
        report(values.bytes_read, tally)

    turn: Turn | None = None
    try:
        for conversation in conversations(values):
            turn = Turn(turn)
            # A fork needs its parent, a later line of a backup the earlier one.
            room = 1 if conversation.exported else CONVERSATIONS_AT_ONCE
            while len(running) >= room:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
            running.add(asyncio.create_task(one(conversation, turn)))
        await asyncio.gather(*running)
    finally:
        # Also when something was refused: what was begun is brought to its end.
        await asyncio.gather(*running, return_exceptions=True)
    return tally


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
    with bar(out, total, "reading") as report:

        def follow(bytes_read: int, tally: Tally) -> None:
            rate = tally.messages / tally.seconds if tally.seconds else 0
            report(bytes_read, f"{tally.conversations:,} conversations, {rate:,.0f} messages/s")

        yield follow
