"""The commands about one context, or a list of them: list, show, fork, delete, restore."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgcontext import limits
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened, printable
from pgcontext.cli.references import ContextArgument, find, short
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from uuid import UUID

    from rich.console import RenderableType

    from pgcontext import Context, Message, Page, Window

VERSIONS: Final = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
TOOL_RESULT_CHARS: Final = 400
NOTHING: Final = "No contexts here; 'pgcontext import FILE' brings some in."
VersionsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VERSION",
        show_default=False,
        help="Messages of it: 4, or 5-7. The whole context if left out.",
    ),
]


def list_contexts(
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", help="Contexts on a page.")
    ] = 20,
    cursor: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Go on where a page ended; it says how.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only those with this in their metadata."),
    ] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones too.")] = False,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """List contexts, the newest first."""
    out = Output(as_json=as_json)

    async def page() -> Page[Context]:
        async with opened(tenant) as store:
            return await store.list(
                limit=limit,
                cursor=cursor,
                metadata=parse_where(where),
                include_deleted=deleted,
            )

    found = out.run(page())
    if not found.items:
        out.note(NOTHING)
    out.emit(found, text=lambda: table(found.items))
    if found.next_cursor:
        out.note(f"More with: --cursor {found.next_cursor}")


def show(
    reference: ContextArgument,
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", help="Messages, the newest ones.")
    ] = 50,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", help="Instead: what fits so many tokens, as a model sees it."
        ),
    ] = None,
    at: Annotated[
        int | None, typer.Option(metavar="VERSION", help="As far as this version.")
    ] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted messages too.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Long tool results in full.")] = False,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a conversation, or the token window of it."""
    out = Output(as_json=as_json)

    async def read() -> tuple[Context, list[Message], Window | None]:
        async with opened(tenant) as store:
            context = await find(store, reference)
            if window is not None:
                fitted = await store.window(context.id, max_tokens=window, at_version=at)
                return context, fitted.messages, fitted
            messages = await store.history(
                context.id, at_version=at, limit=limit, include_deleted=deleted
            )
            return context, messages, None

    context, messages, fitted = out.run(read())
    value: dict[str, Any] = {"context": context, "messages": messages}
    if fitted is not None:
        value |= {"total_tokens": fitted.total_tokens, "truncated": fitted.truncated}
    chars_max = None if full else TOOL_RESULT_CHARS

    def text() -> RenderableType:
        from pgcontext.cli.words import conversation

        return conversation(context, messages, fitted, chars_max=chars_max)

    out.emit(value, text=text)


def fork(
    reference: ContextArgument,
    *,
    at: Annotated[
        int | None, typer.Option(metavar="VERSION", help="After this version; else at the head.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="Its name.")] = None,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue from any version of a context in a new one. Copies nothing."""
    out = Output(as_json=as_json)

    async def work() -> tuple[Context, Context]:
        async with opened(tenant) as store:
            parent = await find(store, reference)
            return parent, await store.fork(parent.id, at_version=at, name=name)

    parent, made = out.run(work())
    out.emit(
        made,
        text=f"Forked {short(parent.id)} at version {made.fork_version} into {made.id}.",
    )


def delete(
    reference: ContextArgument,
    versions: VersionsArgument = None,
    *,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hide a context, or messages of it. 'restore' brings them back; forks don't notice."""
    _change("delete", "Deleted", reference, versions, tenant, as_json=as_json)


def restore(
    reference: ContextArgument,
    versions: VersionsArgument = None,
    *,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a deleted context, or deleted messages of it, again."""
    _change("restore", "Restored", reference, versions, tenant, as_json=as_json)


def _change(
    verb: str,
    done: str,
    reference: str,
    versions: list[str] | None,
    tenant: UUID | None,
    *,
    as_json: bool,
) -> None:
    out = Output(as_json=as_json)

    async def work() -> tuple[Context | list[Message], str]:
        wanted = parse_versions(versions)
        async with opened(tenant) as store:
            context = await find(store, reference, deleted=verb == "restore" and not wanted)
            if not wanted:
                changed = await getattr(store, verb)(context.id)
                return changed, f"{done} {changed.id}."
            messages = await getattr(store, f"{verb}_messages")(context.id, wanted)
            numbers = ", ".join(str(message.version) for message in messages)
            noun = "version" if len(messages) == 1 else "versions"
            return messages, f"{done} {noun} {numbers} of {context.id}."

    changed, text = out.run(work())
    out.emit(changed, text=text)


def parse_versions(written: list[str] | None) -> list[int]:
    """Read versions as people write them: 4, or 5-7 for a run of them.

    Raises:
        InvalidInputError: something else is written.
    """
    versions: list[int] = []
    for word in written or ():
        found = VERSIONS.fullmatch(word)
        if found is None:
            msg = "A version is a whole number, and several in a row are written 5-7."
            raise InvalidInputError(msg)
        first, last = int(found[1]), int(found[2] or found[1])
        if not first <= last < first + limits.VERSIONS_PER_CALL_MAX:
            msg = (
                f"A run of versions goes upwards and holds at most {limits.VERSIONS_PER_CALL_MAX}."
            )
            raise InvalidInputError(msg)
        versions.extend(range(first, last + 1))
    return versions


def parse_where(written: list[str] | None) -> dict[str, Any] | None:
    """Read KEY=VALUE pairs of metadata; a value that is JSON means that, else it is text.

    Raises:
        InvalidInputError: a pair has no equals sign.
    """
    pairs: dict[str, Any] = {}
    for word in written or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            msg = "Metadata is asked for as KEY=VALUE."
            raise InvalidInputError(msg)
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = value
    return pairs or None


def table(contexts: list[Context]) -> RenderableType:
    """Lay contexts out, one a line."""
    from rich.table import Table
    from rich.text import Text

    from pgcontext.cli.words import ago

    lines = Table(box=None, pad_edge=False, header_style="dim", show_header=bool(contexts))
    lines.add_column("id", no_wrap=True, style="cyan")
    lines.add_column("name", ratio=1, no_wrap=True, overflow="ellipsis")
    lines.add_column("messages", justify="right", no_wrap=True)
    lines.add_column("tokens", justify="right", no_wrap=True)
    lines.add_column("changed", no_wrap=True)
    for context in contexts:
        gone = context.deleted_at is not None
        name = Text(printable(context.name or "(no name)"), style="strike" if gone else "")
        if context.parent_id:
            name.append(f"  fork of {short(context.parent_id)} at {context.fork_version}", "dim")
        lines.add_row(
            short(context.id),
            name,
            f"{context.message_count:,}",
            f"{context.total_tokens:,}",
            "deleted" if gone else ago(context.updated_at),
            style="dim" if gone else "",
        )
    return lines
