"""The command `tree`: contexts and their forks, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcontext.cli.contexts import NOTHING
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened
from pgcontext.cli.references import every, find

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from rich.tree import Tree

    from pgcontext import Context, ContextStore


def tree(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="CONTEXT", show_default=False, help="Its whole family; else all contexts."
        ),
    ] = None,
    *,
    deleted: Annotated[
        bool,
        typer.Option("--deleted", help="All deleted ones too, not only those with live forks."),
    ] = False,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", metavar="N", help="Without CONTEXT: the newest contexts, so many."
        ),
    ] = 200,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw contexts and their forks."""
    out = Output(as_json=as_json)

    async def read() -> list[Context]:
        async with opened(tenant) as store:
            if reference is not None:
                context = await find(store, reference, deleted=True)
                return await family(store, context, deleted=deleted)
            found = [c async for c in every(store, deleted=deleted, most=limit)]
            return await with_ancestors(store, found[:limit])

    contexts = out.run(read())
    if not contexts:
        out.note(NOTHING)
    out.emit(nested(contexts), text=lambda: drawn(contexts))


async def family(store: ContextStore, context: Context, *, deleted: bool) -> list[Context]:
    """Return all that descend from the root of a context, it included.

    Two statements, and one for each deleted context between the live ones; with `deleted`, or when
    the context or the root is deleted itself, pages of the tenant's whole list.
    """
    root = context
    if context.deleted_at is None:
        root = (await store.lineage(context.id))[0]
    while root.parent_id is not None:
        root = await store.get(root.parent_id, include_deleted=True)
    if deleted or root.deleted_at is not None:
        members = descendants(root, [c async for c in every(store, deleted=True)])
        return members if deleted else _needed(members, asked_for=context.id)
    forks = await store.forks(root.id, recursive=True)
    return await with_ancestors(store, [root, *forks])


async def with_ancestors(store: ContextStore, contexts: list[Context]) -> list[Context]:
    """Add the ancestors that are missing, deleted ones; one statement each."""
    known = {context.id: context for context in contexts}
    wanted = {c.parent_id for c in contexts if c.parent_id} - known.keys()
    while wanted:
        context = await store.get(wanted.pop(), include_deleted=True)
        known[context.id] = context
        if context.parent_id and context.parent_id not in known:
            wanted.add(context.parent_id)
    return sorted(known.values(), key=lambda c: (c.created_at, c.id))


def descendants(root: Context, contexts: Iterable[Context]) -> list[Context]:
    """Return the root and everything below it, the oldest first."""
    ordered = sorted(contexts, key=lambda c: (c.created_at, c.id))
    inside = {root.id}
    members = [root]
    for context in ordered:
        if context.parent_id in inside and context.id not in inside:
            inside.add(context.id)
            members.append(context)
    return members


def _needed(members: list[Context], asked_for: UUID) -> list[Context]:
    """Leave out the deleted ones that nobody asked for and no live one descends from."""
    needed = {asked_for}
    for context in reversed(members):
        if context.deleted_at is None or context.id in needed:
            needed.add(context.id)
            if context.parent_id:
                needed.add(context.parent_id)
    return [context for context in members if context.id in needed]


def nested(contexts: list[Context]) -> list[dict[str, Any]]:
    """Return the contexts as JSON objects, each with its `forks` inside."""
    import msgspec

    made: dict[UUID, dict[str, Any]] = {
        c.id: {**msgspec.structs.asdict(c), "forks": []} for c in contexts
    }
    roots: list[dict[str, Any]] = []
    for context in contexts:
        parent = made.get(context.parent_id) if context.parent_id else None
        (parent["forks"] if parent else roots).append(made[context.id])
    return roots


def drawn(contexts: list[Context]) -> Tree:
    """Draw the contexts; each fork below its parent, with the version it continues from."""
    from rich.text import Text
    from rich.tree import Tree

    from pgcontext.cli.words import context_label

    hidden_root = Tree("", hide_root=True, guide_style="dim")
    branches: dict[UUID, Tree] = {}
    for context in contexts:
        label = Text()
        parent = branches.get(context.parent_id) if context.parent_id else None
        if parent is not None:
            label.append(f"at {context.fork_version}: ", "yellow")
        label.append_text(context_label(context))
        branches[context.id] = (parent or hidden_root).add(label)
    return hidden_root
