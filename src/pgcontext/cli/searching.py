"""The command `search`."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from pgcontext.cli.contexts import parse_where
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened, printable
from pgcontext.cli.references import find, short
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from uuid import UUID

    from rich.console import RenderableType
    from rich.text import Text

    from pgcontext import Context, ContextStore, Hit, Message

SNIPPET_CHARS: Final = 240
STEM_CHARS_MIN: Final = 4
SUFFIX_CHARS: Final = 3
Mode = Literal["auto", "vector", "text"]


def search(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Words to look for.", show_default=False)
    ],
    *,
    within: Annotated[
        str | None,
        typer.Option(
            "--context", "-c", metavar="CONTEXT", help="Only in what this one shows, inherited too."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", help="Hits at most.")] = 10,
    mode: Annotated[Mode, typer.Option(help="By words or by meaning.")] = "auto",
    role: Annotated[
        list[str] | None, typer.Option(metavar="ROLE", help="Only what this role said.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not older than this.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Older than this.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only contexts with this in their metadata."),
    ] = None,
    neighbors: Annotated[
        int, typer.Option(metavar="N", help="Messages to show around each hit.")
    ] = 0,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find messages, in one context or in all of them."""
    out = Output(as_json=as_json)

    async def work() -> tuple[list[Hit], dict[UUID, Context]]:
        async with opened(tenant) as store:
            context_id = (await find(store, within)).id if within is not None else None
            hits = await store.search(
                query,
                context_id=context_id,
                limit=limit,
                mode=mode,
                roles=role,
                since=parse_time(since, "--since"),
                until=parse_time(until, "--until"),
                metadata=parse_where(where),
                neighbors=neighbors,
            )
            return hits, {} if as_json else await contexts_of(store, hits)

    hits, contexts = out.run(work())
    if not hits:
        out.note("Nothing found.")
    out.emit(hits, text=lambda: found(hits, contexts, query))


def parse_time(written: str | None, option: str) -> datetime | None:
    """Read a time in ISO form; without an offset it is local time.

    Raises:
        InvalidInputError: it is none.
    """
    if written is None:
        return None
    try:
        return datetime.fromisoformat(written).astimezone()
    except ValueError:
        msg = f"{option} takes a time like 2026-05-01 or 2026-05-01T12:30+02:00."
        raise InvalidInputError(msg) from None


async def contexts_of(store: ContextStore, hits: list[Hit]) -> dict[UUID, Context]:
    """Return the contexts that wrote the hits, also deleted ones; one statement each."""
    wanted = {hit.message.context_id for hit in hits}
    contexts = await asyncio.gather(*(store.get(one, include_deleted=True) for one in wanted))
    return {context.id: context for context in contexts}


def found(hits: list[Hit], contexts: dict[UUID, Context], query: str) -> RenderableType:
    """Lay hits out: where each stands, and the part of it that matches."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from pgcontext.cli.words import ROLE_STYLES

    pattern = matching(query)
    parts: list[RenderableType] = []
    for number, hit in enumerate(hits, 1):
        message = hit.message
        context = contexts[message.context_id]
        head = Text().append(f"{number:>2}  ", "dim")
        head.append(printable(context.name or "(no name)"), "bold")
        head.append(f"  {short(message.context_id)} · version {message.version} · ", "dim")
        head.append(message.role, ROLE_STYLES[message.role])
        if hit.distance is not None:
            head.append(f" · distance {hit.distance:.3f}", "dim")
        parts.append(head)
        around = sorted([*hit.neighbors, message], key=lambda m: m.version)
        parts.extend(
            Padding(snippet(m, pattern, dim=m.id != message.id), (0, 0, 0, 4)) for m in around
        )
    return Group(*parts)


def matching(query: str) -> re.Pattern[str]:
    """Return a pattern for the words of a query and words with the same stem, roughly.

    Short words count only where there are no others.
    """
    words = re.findall(r"\w+", query)
    telling = [word for word in words if len(word) >= STEM_CHARS_MIN] or words
    stems = [re.escape(word[: max(STEM_CHARS_MIN, len(word) - SUFFIX_CHARS)]) for word in telling]
    return re.compile(rf"\b(?:{'|'.join(stems) or '$^'})\w*", re.IGNORECASE)


def snippet(message: Message, pattern: re.Pattern[str], *, dim: bool = False) -> Text:
    """Return the part of a message around the first match, with the matches marked."""
    from rich.text import Text

    from pgcontext.cli.words import message_body

    whole = " ".join(message_body(message).plain.split())
    match = pattern.search(whole)
    start = max(0, match.start() - SNIPPET_CHARS // 3) if match else 0
    # Not in the middle of a word.
    start = whole.find(" ", start) + 1 if start else 0
    part = whole[start : start + SNIPPET_CHARS]
    text = Text("… " if start else "", style="dim" if dim else "")
    text.append(part)
    text.append(" …" if start + SNIPPET_CHARS < len(whole) else "")
    if not dim:
        text.highlight_regex(pattern, "bold black on yellow")
    return text
