"""The command `export`: conversations out of the store, as JSON lines that `import` reads.

Plainly, each line is what one conversation shows, ready for any program. With --backup it is what
one context holds: its own messages, where it was forked, what is deleted; then the lines together
make the same contexts again.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import msgspec
import typer

from pgcontext import limits, rows
from pgcontext.cli.conversations import FORMAT, FORMAT_VERSION
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened
from pgcontext.cli.references import every, find
from pgcontext.errors import InvalidInputError
from pgcontext.statements.exporting import EXPORT_HIDDEN, EXPORT_MESSAGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from pgcontext import Context, ContextStore, Message
    from pgcontext.models import Json

PAGE_MESSAGES: Final = 500


class Sums(msgspec.Struct):
    """What an export wrote."""

    conversations: int = 0
    messages: int = 0


def export(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONTEXT...]", show_default=False, help="Which; else all."),
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; else stdout.")
    ] = None,
    backup: Annotated[
        bool,
        typer.Option(
            "--backup",
            help="Everything needed to make the same contexts again: ids, forks, deleted ones.",
        ),
    ] = False,
    embeddings: Annotated[bool, typer.Option(help="With --backup: the embeddings too.")] = True,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write conversations as JSON lines, the oldest first."""
    out = Output(as_json=as_json)

    async def work() -> Sums:
        sums = Sums()
        with target(output) as file:
            async with opened(tenant) as store:
                for context_id in await chosen(store, references, backup=backup):
                    if backup:
                        line = await backup_line(store, context_id, embeddings=embeddings)
                    else:
                        line = await plain_line(store, context_id)
                    file.write(msgspec.json.encode(line) + b"\n")
                    sums.conversations += 1
                    sums.messages += len(line["messages"])
        return sums

    sums = out.run(work())
    if output is not None:
        out.emit(sums, text=lambda: _summary(sums, output))


def _summary(sums: Sums, output: Path) -> str:
    from pgcontext.cli.words import count

    sizes = f"{count(sums.conversations, 'conversation')}, {count(sums.messages, 'message')}"
    return f"{sizes} in {output}."


@contextmanager
def target(output: Path | None) -> Iterator[BinaryIO]:
    """Open what to write to. A file gets its name when it is whole; stdout is written as it comes.

    Raises:
        InvalidInputError: it cannot be written.
    """
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = output.with_name(f"{output.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(output)
    except OSError as error:
        if isinstance(error, InvalidInputError):
            raise
        msg = f"The file {output} cannot be written: {error.strerror}."
        raise InvalidInputError(msg) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


async def chosen(store: ContextStore, references: list[str] | None, *, backup: bool) -> list[UUID]:
    """Return the ids of the contexts to write, parents before their forks.

    A backup of named ones takes their ancestors along; one of all takes deleted ones too.
    """
    if not references:
        newest_first = [c.id async for c in every(store, deleted=backup)]
        return newest_first[::-1]
    named = [await find(store, reference) for reference in references]
    if not backup:
        return list(dict.fromkeys(context.id for context in named))
    lines = [await store.lineage(context.id) for context in named]
    return list(dict.fromkeys(context.id for line in lines for context in line))


async def plain_line(store: ContextStore, context_id: UUID) -> Json:
    """Return what a conversation shows, in the chat-completions form."""
    context = await store.get(context_id)
    line: Json = {"id": context.id}
    if context.name is not None:
        line["name"] = context.name
    if context.metadata:
        line["metadata"] = context.metadata
    line["messages"] = [message.as_dict() async for message in store.iter_history(context_id)]
    return line


async def backup_line(store: ContextStore, context_id: UUID, *, embeddings: bool) -> Json:
    """Return what a context holds itself, and how to make it again."""
    context = await store.get(context_id, include_deleted=True)
    own = [item async for item in _own(store, context, embeddings=embeddings)]
    first = (context.fork_version or 0) + 1
    gaps = set(range(first, context.latest_version + 1)) - {version for version, _ in own}
    hidden = await _hidden(store, context.id, limits.VERSION_MAX, context.latest_version)
    line: Json = {
        FORMAT: FORMAT_VERSION,
        "id": context.id,
        "name": context.name,
        "metadata": context.metadata or None,
        "created_at": context.created_at,
        "expires_at": context.expires_at,
        "deleted_at": context.deleted_at,
        "parent": context.parent_id,
    }
    if context.parent_id is not None:
        line["fork_version"] = context.fork_version
        line["hidden_at_fork"] = await _hidden(
            store, context.parent_id, context.fork_revision, context.fork_version
        )
    line["hidden"] = [version for version in hidden if version not in gaps]
    line["gaps"] = sorted(gaps)
    # What says nothing is left out; `messages` stays, and stands last.
    line = {key: value for key, value in line.items() if value is not None and value != []}
    return line | {"messages": [mapping for _, mapping in own]}


async def _own(
    store: ContextStore, context: Context, *, embeddings: bool
) -> AsyncIterator[tuple[int, Json]]:
    """Yield a context's own versions with their messages, hidden ones too; a statement a page."""
    after = 0
    while True:
        found, _ = await store._fetch(  # noqa: SLF001 (the store shows no deleted context)
            EXPORT_MESSAGES, context.id, after, PAGE_MESSAGES, embeddings
        )
        for row in found:
            message = rows.message(row, store.tenant_id)
            yield message.version, _stored(message, row["embedding"])
        if len(found) < PAGE_MESSAGES:
            return
        after = found[-1]["version"]


def _stored(message: Message, embedding: str | None) -> Json:
    """Return the mapping with the fields that the store adds to it."""
    mapping: Json = {"id": message.id, **message.as_dict(), "token_count": message.token_count}
    if message.model is not None:
        mapping["model"] = message.model
    if embedding is not None:
        mapping["embedding"] = msgspec.Raw(embedding.encode())
        if message.embedding_model is not None:
            mapping["embedding_model"] = message.embedding_model
    return mapping


async def _hidden(
    store: ContextStore, context_id: UUID, revision: int | None, version: int | None
) -> list[int]:
    found, _ = await store._fetch(EXPORT_HIDDEN, context_id, revision, version)  # noqa: SLF001
    return [row["version"] for row in found]
