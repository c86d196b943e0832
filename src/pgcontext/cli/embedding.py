"""The command that embeds what was left for later, and moves embeddings to another model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pgcontext import limits
from pgcontext.cli.output import JsonOption, Output, TenantOption, opened
from pgcontext.errors import ContextStoreError, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from uuid import UUID

    from pgcontext import ContextStore
    from pgcontext.cli.progress import Report
    from pgcontext.moving import Moved, Moving


class Embedded(msgspec.Struct):
    """What a run did.

    Attributes:
        model: the embedder's.
        embedded: messages whose embedding was owed.
        moved: messages that had another model's.
        refused: of those, how many the embedder didn't take; they keep the old one.
        later: messages that are owed one still, and may not be claimed yet.
        seconds: how long it took.
    """

    model: str
    embedded: int = 0
    moved: int = 0
    refused: int = 0
    later: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """How many messages were embedded in all."""
        return self.embedded + self.moved


def embed(
    *,
    move: Annotated[
        bool, typer.Option("--move", help="Also embed anew what another model has embedded.")
    ] = False,
    unnamed: Annotated[
        bool, typer.Option("--unnamed", help="With --move: also vectors without a model's name.")
    ] = False,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed the messages whose embedding was left for later, or failed."""
    out = Output(as_json=as_json)
    with out.reported():
        if unnamed and not move:
            msg = "--unnamed says what to move, so it needs --move."
            raise InvalidInputError(msg)
    done = out.run(_embed(out, tenant, move=move, unnamed=unnamed))
    out.emit(done, text=_summary(done, move=move))
    if done.refused:
        out.note(f"Refused by the embedder, so the old embedding stays: {done.refused:,}.")
    if done.later:
        out.note(f"Claimed by another worker, or refused and put off: {done.later:,}.")


async def _embed(out: Output, tenant: UUID | None, *, move: bool, unnamed: bool) -> Embedded:
    from pgcontext.cli.progress import bar
    from pgcontext.moving import Moving
    from pgcontext.store.embedding import required

    async with opened(tenant) as store:
        moving = Moving.of(store)
        done = Embedded(required(store.embedder).model)
        started = time.perf_counter()
        total = await _count(moving, move=move, unnamed=unnamed)
        with bar(out, total, "embedding") as report:
            try:
                await _owed(store, done, report, started)
                if move:
                    await _others(moving, done, report, started, unnamed=unnamed)
            except ContextStoreError:
                if done.done:
                    out.note(
                        f"Before it failed: {done.done:,} embedded. Run it again for the rest."
                    )
                raise
        done.later = (await moving.owed()).later
        done.seconds = time.perf_counter() - started
        return done


async def _count(moving: Moving, *, move: bool, unnamed: bool) -> int | None:
    """Count what there is to do; None when that alone takes too long."""
    total = (await moving.owed()).due
    try:
        return total + (await moving.count(unnamed=unnamed) if move else 0)
    except UnavailableError:
        return None


async def _owed(store: ContextStore, done: Embedded, report: Report, started: float) -> None:
    while filled := await store.embed_pending(limit=limits.EMBED_BATCH_MESSAGES_MAX):
        done.embedded += filled
        report(done.done, _rate(done, started))


async def _others(
    moving: Moving, done: Embedded, report: Report, started: float, *, unnamed: bool
) -> None:
    def follow(moved: Moved) -> None:
        done.moved, done.refused = moved.messages, moved.refused
        report(done.done + done.refused, _rate(done, started))

    await moving.run(unnamed=unnamed, report=follow)


def _rate(done: Embedded, started: float) -> str:
    rate = done.done / (time.perf_counter() - started)
    return f"{done.done:,} messages, {rate:,.0f} messages/s"


def _summary(done: Embedded, *, move: bool) -> str:
    from pgcontext.cli.words import count

    if not done.done:
        others = f", and all embeddings are of {done.model}" if move and not done.refused else ""
        return f"Nothing to embed: no embedding is due{others}."
    parts = [
        f"embedded {count(done.embedded, 'message')}" if done.embedded else "",
        f"moved {count(done.moved, 'message')}" if done.moved else "",
    ]
    what = " and ".join(filter(None, parts))
    rate = f"in {done.seconds:.1f} s ({done.done / done.seconds:,.0f} a second)"
    return f"{what[0].upper()}{what[1:]} with {done.model} {rate}."
