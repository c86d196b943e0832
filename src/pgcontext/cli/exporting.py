"""The command `export`: conversations out of the store, as JSON lines that `import` reads.

Plainly, each line is what one conversation shows, ready for any program. With --backup it is what
one context holds: its own messages, where it was forked, what is deleted; then the lines together
make the same contexts again.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, Literal, LiteralString

import msgspec
import typer

from pgcontext import limits, rows
from pgcontext.cli.conversations import FORMAT, FORMAT_VERSION
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened
from pgcontext.cli.references import every, find
from pgcontext.errors import ContextStoreError, InvalidInputError
from pgcontext.pool import Pool
from pgcontext.statements import in_schema
from pgcontext.statements.exporting import EXPORT_HIDDEN, EXPORT_MESSAGES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
    from uuid import UUID

    import asyncpg

    from pgcontext import Context, ContextStore, Message
    from pgcontext.models import Json

PAGE_MESSAGES: Final = 500

Kind = Literal["plain", "with embeddings", "without embeddings"]


class Sums(msgspec.Struct):
    """What an export wrote."""

    conversations: int = 0
    messages: int = 0


def export(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONTEXT", show_default=False, help="Which; else all."),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file to write; else stdout."),
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
    kind: Kind = "plain"
    if backup:
        kind = "with embeddings" if embeddings else "without embeddings"

    async def work() -> Sums:
        sums = Sums()
        with target(output) as file:
            async with opened(tenant) as store, reader(store, kind) as lines_of:
                for context_id in await chosen(store, references, backup=backup):
                    sums.conversations += 1
                    async for line in lines_of(context_id):
                        file.write(msgspec.json.encode(line) + b"\n")
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
def target(output: Path | None) -> Generator[BinaryIO]:
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
        if isinstance(error, ContextStoreError):
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


@asynccontextmanager
async def reader(
    store: ContextStore, kind: Kind
) -> AsyncGenerator[Callable[[UUID], AsyncIterator[Json]]]:
    """Give what makes the lines of a context."""
    if kind == "plain":
        yield partial(plain_lines, store)
        return
    backup = Backup(store, embeddings=kind == "with embeddings")
    try:
        yield backup.lines
    finally:
        await backup.aclose()


async def plain_lines(store: ContextStore, context_id: UUID) -> AsyncIterator[Json]:
    """Yield one line: what a conversation shows, in the chat-completions form."""
    context = await store.get(context_id)
    line: Json = {"id": context.id}
    if context.name is not None:
        line["name"] = context.name
    if context.metadata:
        line["metadata"] = context.metadata
    line["messages"] = [message.as_dict() async for message in store.iter_history(context_id)]
    yield line


class Backup:
    """Reads what contexts hold themselves, deleted ones too, which the store shows to nobody.

    Args:
        store: of the tenant.
        embeddings: read them too.
    """

    def __init__(self, store: ContextStore, *, embeddings: bool) -> None:
        self._store = store
        self._embeddings = embeddings
        self._pool = Pool(store.settings)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def lines(self, context_id: UUID) -> AsyncIterator[Json]:
        """Yield what a context holds itself, and how to make it again.

        One line, or several for a long context: the first tells how it begins, the last its state.
        """
        context = await self._store.get(context_id, include_deleted=True)
        after = context.fork_version or 0
        line = _beginning(context)
        line["hidden_at_fork"] = await self._hidden(
            context.parent_id, context.fork_revision, context.fork_version
        )
        whole = False
        while not whole:
            page = await self._page(context_id, after)
            whole = len(page) < PAGE_MESSAGES
            last = context.latest_version if whole else page[-1][0]
            here = {version for version, _ in page}
            line["gaps"] = [v for v in range(after + 1, last + 1) if v not in here]
            if whole:
                line["hidden"] = await self._hidden(context_id, limits.VERSION_MAX, last)
                line["deleted_at"] = context.deleted_at
            # `messages` is there in any case, and stands last.
            yield _without_nothing(line) | {"messages": [mapping for _, mapping in page]}
            after = last
            line = _continuation(context_id, after)

    async def _page(self, context_id: UUID, after: int) -> list[tuple[int, Json]]:
        """Return the context's own next versions with their messages, hidden ones too."""
        found = await self._fetch(
            EXPORT_MESSAGES, context_id, after, PAGE_MESSAGES, self._embeddings
        )
        messages = [rows.message(row, self._store.tenant_id) for row in found]
        return [
            (message.version, _stored(message, row["embedding"]))
            for message, row in zip(messages, found, strict=True)
        ]

    async def _hidden(
        self, context_id: UUID | None, revision: int | None, version: int | None
    ) -> list[int]:
        """Return the versions up to one that a context hid itself, at a revision."""
        if context_id is None:
            return []
        found = await self._fetch(EXPORT_HIDDEN, context_id, revision, version)
        return [row["version"] for row in found]

    async def _fetch(self, statement: LiteralString, *arguments: object) -> list[asyncpg.Record]:
        text = in_schema(statement, self._store.settings.schema)
        found, _ = await self._pool.fetch(text, self._store.tenant_id, *arguments)
        return found


def _beginning(context: Context) -> Json:
    return {
        FORMAT: FORMAT_VERSION,
        "id": context.id,
        "name": context.name,
        "metadata": context.metadata or None,
        "created_at": context.created_at,
        "expires_at": context.expires_at,
        "parent": context.parent_id,
        "fork_version": context.fork_version,
    }


def _continuation(context_id: UUID, after: int) -> Json:
    return {FORMAT: FORMAT_VERSION, "id": context_id, "after": after}


def _without_nothing(line: Json) -> Json:
    return {key: value for key, value in line.items() if value is not None and value != []}


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
