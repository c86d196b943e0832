"""The command `search`."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgcontext.cli.contexts import parse_where
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened, printable
from pgcontext.cli.references import find, short
from pgcontext.errors import InvalidInputError
from pgcontext.store.search import Mode  # noqa: TC001 (typer reads it at run time)

if TYPE_CHECKING:
    from uuid import UUID

    from rich.console import RenderableType
    from rich.text import Text

    from pgcontext import Context, ContextStore, Hit, Message

SNIPPET_CHARS: Final = 240
NEIGHBOR_CHARS: Final = 140
# So that the line of a hit fits 80 columns beside its context's id, its version and its role.
NAME_CHARS: Final = 36
STEM_CHARS_MIN: Final = 4
SUFFIX_CHARS: Final = 3


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
    mode: Annotated[
        Mode, typer.Option(help="By words (text), by meaning (vector), or by both (hybrid).")
    ] = "auto",
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
        int, typer.Option(metavar="N", help="Messages to show on each side of a hit.")
    ] = 0,
    diversity: Annotated[
        float | None,
        typer.Option(metavar="0..1", help="Thin hits that say the same, the more the larger."),
    ] = None,
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
                diversity=diversity,
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
    """Lay hits out: where each stands, what found it, the part that matches, what is around."""
    from rich.console import Group
    from rich.padding import Padding

    pattern = matching(query)
    parts: list[RenderableType] = []
    for number, hit in enumerate(hits, 1):
        parts.append(place(number, hit, contexts[hit.message.context_id]))
        shown = around(hit, pattern) if hit.neighbors else snippet(hit.message, pattern)
        parts.extend((Padding(reason(hit), (0, 0, 0, 4)), Padding(shown, (0, 0, 0, 4))))
    return Group(*parts)


def place(number: int, hit: Hit, context: Context) -> Text:
    """Say where a hit stands, in one line."""
    from rich.text import Text

    from pgcontext.cli.words import ROLE_STYLES, shortened

    message = hit.message
    line = Text().append(f"{number:>2}  ", "dim")
    line.append(shortened(printable(context.name or "(no name)"), NAME_CHARS), "bold")
    line.append(f"  {short(message.context_id)} · version {message.version} · ", "dim")
    return line.append(message.role, ROLE_STYLES[message.role])


def reason(hit: Hit) -> Text:
    """Say what found a hit, and how well it matches; a score that only repeats that is left out."""
    from rich.text import Text

    parts = [f"by {' and '.join(sorted(hit.found_by))}"]
    if hit.score != (hit.text_score if hit.distance is None else 1 - hit.distance):
        parts.append(f"score {hit.score:.3f}")
    if hit.text_score is not None:
        parts.append(f"text score {hit.text_score:.3f}")
    if hit.distance is not None:
        parts.append(f"distance {hit.distance:.3f}")
    return Text(" · ".join(parts), "dim")


def around(hit: Hit, pattern: re.Pattern[str]) -> RenderableType:
    """Lay a hit out among its neighbors, with a mark beside it."""
    from rich.table import Table
    from rich.text import Text

    from pgcontext.cli.words import ROLE_STYLES

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for message in sorted([*hit.neighbors, hit.message], key=lambda m: m.version):
        itself = message.id == hit.message.id
        part = snippet(message, pattern, dim=not itself)
        speaker = Text(message.role, ROLE_STYLES[message.role])
        grid.add_row(">" if itself else "", str(message.version), speaker, part)
    return grid


def matching(query: str) -> re.Pattern[str]:
    """Return a pattern for the words of a query and words with the same stem, roughly.

    Short words count only where there are no others.
    """
    words = re.findall(r"\w+", query)
    telling = [word for word in words if len(word) >= STEM_CHARS_MIN] or words
    stems = [re.escape(word[: max(STEM_CHARS_MIN, len(word) - SUFFIX_CHARS)]) for word in telling]
    return re.compile(rf"\b(?:{'|'.join(stems) or '$^'})\w*", re.IGNORECASE)


def snippet(message: Message, pattern: re.Pattern[str], *, dim: bool = False) -> Text:
    """Return the part of a message around the first match, with the matches marked; less if dim."""
    from rich.text import Text

    from pgcontext.cli.words import message_body

    whole = " ".join(message_body(message).plain.split())
    match = pattern.search(whole)
    chars = NEIGHBOR_CHARS if dim else SNIPPET_CHARS
    start = max(0, match.start() - chars // 3) if match and not dim else 0
    # Not in the middle of a word.
    start = whole.find(" ", start) + 1 if start else 0
    part = whole[start : start + chars]
    text = Text("… " if start else "", style="dim" if dim else "")
    text.append(part)
    text.append(" …" if start + chars < len(whole) else "")
    if not dim:
        text.highlight_regex(pattern, "bold black on yellow")
    return text
