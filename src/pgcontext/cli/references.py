"""How people name a context: by its UUID, or by the end of it that tables show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from pgcontext.cli.output import CommandError, Exit
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgcontext import Context, ContextStore

SHORT_DIGITS: Final = 8
ENDING: Final = re.compile(r"[0-9a-f]{4,32}")
SEARCHED_CONTEXTS_MAX: Final = 10_000
PAGE_CONTEXTS: Final = 200

ContextArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONTEXT", show_default=False, help="Its id, or the last digits of it (4 or more)."
    ),
]


def short(context_id: UUID) -> str:
    """Return the end of an id; its beginning is the time, alike for many."""
    return context_id.hex[-SHORT_DIGITS:]


async def find(store: ContextStore, reference: str, *, deleted: bool = False) -> Context:
    """Return the context that is meant: one statement for a UUID, pages of the list otherwise.

    Args:
        store: of the tenant.
        reference: a UUID, or the last digits of one.
        deleted: also look at soft-deleted ones.

    Raises:
        InvalidInputError: it is neither, or several contexts end like this.
        CommandError: there is none.
    """
    try:
        return await store.get(UUID(reference), include_deleted=deleted)
    except ValueError:
        ending = reference.lower()
    if not ENDING.fullmatch(ending):
        msg = "A context is named by its UUID, or by the last 4 or more digits of it."
        raise InvalidInputError(msg)
    contexts = every(store, deleted=deleted, most=SEARCHED_CONTEXTS_MAX)
    found = [context async for context in contexts if context.id.hex.endswith(ending)]
    if len(found) > 1:
        msg = f"{len(found)} contexts have an id that ends like this; give more of its digits."
        raise InvalidInputError(msg)
    if not found:
        msg = (
            f"None of the newest {SEARCHED_CONTEXTS_MAX:,} contexts has an id that ends like this."
        )
        raise CommandError(msg, Exit.NOT_FOUND)
    return found[0]


async def every(
    store: ContextStore, *, deleted: bool = False, most: int | None = None
) -> AsyncIterator[Context]:
    """Yield the tenant's contexts, newest first, `most` at most; one statement a page."""
    cursor = None
    seen = 0
    while most is None or seen < most:
        page = await store.list(limit=PAGE_CONTEXTS, cursor=cursor, include_deleted=deleted)
        for context in page.items:
            yield context
        seen += len(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return
