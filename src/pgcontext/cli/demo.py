"""The command `demo`: the whole story on a real PostgreSQL, and what each step of it costs."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, cast
from uuid import UUID

import typer

from pgcontext import limits
from pgcontext.cli.contexts import table
from pgcontext.cli.doctor import inspect
from pgcontext.cli.importing import bring_in, progress, size, source
from pgcontext.cli.meter import Meter
from pgcontext.cli.output import JsonOption, Output, embedded_started
from pgcontext.cli.references import every, short
from pgcontext.cli.searching import contexts_of, found
from pgcontext.cli.story import QUERIES, Story, fork_point, query_of, story_of, window_tokens
from pgcontext.cli.trees import drawn, family, nested
from pgcontext.embedding import LocalEmbedder
from pgcontext.errors import InvalidInputError
from pgcontext.tokens import get_tokenizer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from typing import BinaryIO

    from rich.console import RenderableType

    from pgcontext import Context, ContextStore, Hit, Message, Window
    from pgcontext.cli.meter import Cost
    from pgcontext.models import Json

T = TypeVar("T")

# Its own tenant: nobody else's contexts are touched, and the next demo can clear it away.
TENANT: Final = UUID("00000000-0000-0000-0000-0000000de300")
SAMPLE: Final = "conversations.jsonl"
PAUSE_SECONDS: Final = 1.0
LISTED_CONTEXTS: Final = 8
TEXT_HITS: Final = 2
SHOWN_CHARS: Final = 140
SHOWN_MESSAGES: Final = 9
STRIP_CELLS: Final = 60


def demo(
    *,
    file: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Your conversations, as for import."),
    ] = None,
    pause: Annotated[bool, typer.Option(help="On a terminal, stop a moment after a step.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Watch conversations being stored, forked, windowed and searched.

    Runs on the embedded PostgreSQL, whatever DATABASE_URL says, as a tenant of its own.
    """
    out = Output(as_json=as_json)
    seconds = PAUSE_SECONDS if pause and out.console.is_terminal else 0
    with out.reported(), source(file) if file else _sample() as binary:
        show = out.run(_play(out, binary, seconds))
    if as_json:
        out.emit({"steps": show.meter.costs, "tree": nested(show.tree)}, text="")


def _sample() -> BinaryIO:
    sample = files("pgcontext").joinpath("samples", SAMPLE)
    return cast("BinaryIO", sample.open("rb"))


async def _play(out: Output, binary: BinaryIO, pause_seconds: float) -> Demo:
    from pgcontext import ContextStore

    store = ContextStore.from_env(url=None, unpooled_url=None, pooler=None, tenant_id=TENANT)
    async with store:
        show = Demo(out, store, pause_seconds)
        with show.meter.listening():
            await show.play(binary)
    return show


class Demo:
    """The steps. Each sends its statements, measured, and then shows what came of them."""

    def __init__(self, out: Output, store: ContextStore, pause_seconds: float) -> None:
        self.out = out
        self.store = store
        self.pause_seconds = 0 if out.as_json else pause_seconds
        self.meter = Meter()
        self.tree: list[Context] = []

    async def play(self, binary: BinaryIO) -> None:
        """Play all steps."""
        await self.start()
        context = await self.bring_in(binary)
        messages = await self.store.history(context.id, limit=limits.HISTORY_MESSAGES_MAX)
        story = story_of(context, messages)
        await self.append(context, story)
        fork = await self.fork(context, story, fork_point(messages))
        await self.go_on(context, fork, story)
        await self.draw(context)
        await self.window(context)
        await self.search(story)
        await self.delete_and_restore(context, fork)
        self.close(context)

    async def start(self) -> None:
        """Start PostgreSQL, migrate it if need be, clear away what the last demo left."""
        with self.step("A PostgreSQL of its own"):
            await self.call("start, and migrate", embedded_started(self.store.settings))
            server, _ = await inspect(self.store.settings)
            self.say(f"PostgreSQL {server.version} with pgvector {server.pgvector}, from a wheel.")
            self.say("Your own databases, and other tenants of this one, are not touched.")
            if cleared := await self.clear():
                self.say(f"What the last demo left, {cleared} contexts, is deleted and purged.")
            # Counting tokens needs its vocabulary; that is not a cost of the first message.
            await asyncio.to_thread(get_tokenizer(self.store.settings.tokenizer).count, "ready")
            await self.warm_up()

    async def warm_up(self) -> None:
        """Say what embeds, and load it if it runs here: that is no cost of a message either."""
        embedder = self.store.embedder
        if embedder is not None:
            self.say(f"What is said is embedded as it comes, by {embedder.model}.")
        if isinstance(embedder, LocalEmbedder):
            await embedder.embed(["ready"])

    async def clear(self) -> int:
        """Delete and purge all contexts of the demo's tenant; return how many there were."""
        earlier = [context async for context in every(self.store)]
        for context in earlier:
            await self.store.delete(context.id)
        await self.store.purge(older_than=timedelta(0))
        return len(earlier)

    async def bring_in(self, binary: BinaryIO) -> Context:
        """Import the conversations; return the one to go on with, the longest."""
        with self.step("Conversations come in"):
            with progress(self.out, size(binary)) as report:
                name = Path(binary.name).name
                tally = await self.call(
                    f"pgcontext import {name}", bring_in(self.store, binary, report)
                )
            page = await self.store.list(limit=limits.LIST_CONTEXTS_MAX)
            longest = max(page.items, key=lambda c: c.message_count, default=None)
            if longest is None or not longest.message_count:
                msg = "The file has no messages to show anything with."
                raise InvalidInputError(msg)
            self.say(lambda: table(page.items[:LISTED_CONTEXTS]))
            if tally.conversations > LISTED_CONTEXTS:
                self.say(f"... and {tally.conversations - LISTED_CONTEXTS:,} more")
            rate = tally.messages / tally.seconds
            self.say(f"{tally.messages:,} messages, {rate:,.0f} a second.")
        return longest

    async def append(self, context: Context, story: Story) -> None:
        """Append one message."""
        question: Json = {"role": "user", "content": story.question}
        with self.step("A message is appended"):
            written = await self.call(
                "await store.append(context.id, message)", self.store.append(context.id, question)
            )
            self.talk(context, written)

    async def fork(self, context: Context, story: Story, version: int) -> Context:
        """Fork from the middle."""
        with self.step("A fork from the middle"):
            self.say(story.why)
            fork = await self.call(
                f"fork = await store.fork(context.id, at_version={version})",
                self.store.fork(context.id, at_version=version, name=story.fork_name),
            )
            self.say(f"It shows {fork.message_count:,} messages of its parent. None was copied.")
        return fork

    async def go_on(self, context: Context, fork: Context, story: Story) -> None:
        """Continue both."""
        answer: Json = {"role": "assistant", "content": story.answer}
        with self.step("Both go on"):
            here = await self.call(
                "await store.append(context.id, message)", self.store.append(context.id, answer)
            )
            self.talk(context, here)
            there = await self.call(
                "await store.append(fork.id, messages)", self.store.append(fork.id, story.other)
            )
            self.talk(fork, there)

    async def draw(self, context: Context) -> None:
        """Draw the tree."""
        with self.step("The tree"):
            self.tree = await self.call(
                "pgcontext tree", family(self.store, context, deleted=False)
            )
            self.say(lambda: drawn(self.tree))

    async def window(self, context: Context) -> None:
        """Fit the conversation into a token budget."""
        messages = await self.store.history(context.id, limit=limits.HISTORY_MESSAGES_MAX)
        budget = window_tokens(messages)
        with self.step("What fits the model: a token window"):
            window = await self.call(
                f"window = await store.window(context.id, max_tokens={budget})",
                self.store.window(context.id, max_tokens=budget),
            )
            self.say(lambda: _strip(messages, window))
            self.say("Instructions stay; a tool's result never comes without its call.")
            self.say("")
            self.talk(context, window.messages)

    async def search(self, story: Story) -> None:
        """Search everything by words; where there is an embedder, by words and meaning too."""
        query = story.words
        if self.store.embedder is not None:
            query = story.query or await query_of(self.store)
        with self.step("Search"):
            if not story.query and query != story.words:
                self.say(
                    f"Of {len(QUERIES)} everyday matters, the one these talks come nearest to:"
                )
            self.say(lambda: _line(f'query = "{query}"'))
            self.say("By words alone:")
            line = f'await store.search(query, mode="text", limit={TEXT_HITS})'
            by_words = self.store.search(query, mode="text", limit=TEXT_HITS)
            if not await self.find(line, by_words, query):
                self.say("Nothing: no message has any of them.")
            if self.store.embedder is not None:
                self.say("")
                self.say("By words and meaning together, with what was said before and after:")
                line = 'await store.search(query, mode="hybrid", limit=1, neighbors=1)'
                by_both = self.store.search(query, mode="hybrid", limit=1, neighbors=1)
                await self.find(line, by_both, query)

    async def find(self, line: str, work: Awaitable[list[Hit]], query: str) -> bool:
        """Search, and show what was found; tell whether anything was."""
        hits = await self.call(line, work)
        contexts = await contexts_of(self.store, hits)
        if hits:
            self.say(lambda: found(hits, contexts, query))
        return bool(hits)

    async def delete_and_restore(self, context: Context, fork: Context) -> None:
        """Hide a message and a fork, and show them again."""
        version = min(2, fork.fork_version or 1)
        with self.step("Deleted, and restored"):
            await self.call(
                f"await store.delete_messages(context.id, {version})",
                self.store.delete_messages(context.id, version),
            )
            hidden = await family(self.store, context, deleted=False)
            self.say("One message less here. The fork still shows it: nothing changes under it.")
            self.say(lambda: drawn(hidden))
            await self.call(
                f"await store.restore_messages(context.id, {version})",
                self.store.restore_messages(context.id, version),
            )
            gone = await self.call("await store.delete(fork.id)", self.store.delete(fork.id))
            self.say(lambda: drawn([gone if c.id == gone.id else c for c in self.tree]))
            await self.call("await store.restore(fork.id)", self.store.restore(fork.id))
            self.say(lambda: drawn(self.tree))

    def close(self, context: Context) -> None:
        """Show what everything cost, and how to go on."""
        self.heading("What it cost")
        self.say(lambda: _costs(self.meter.costs))
        self.heading("Yours to look around in")
        self.say("It stays until the next demo. With no DATABASE_URL set:")
        for command in ("tree", "list", f"show {short(context.id)}"):
            self.say(f"  pgcontext {command} --tenant {TENANT}")

    @contextmanager
    def step(self, title: str) -> Generator[None]:
        """Show the heading, then what happens inside."""
        self.meter.begin(title)
        self.heading(f"{len(self.meter.costs)}  {title}")
        yield
        if self.pause_seconds:
            time.sleep(self.pause_seconds)

    async def call(self, line: str, work: Awaitable[T]) -> T:
        """Do the work, and show the line that does it with what it cost."""
        with self.meter.measured() as cost:
            result = await work
        self.say(lambda: _call(line, cost))
        return result

    def heading(self, title: str) -> None:
        """Show a heading."""
        self.say("")
        self.say(lambda: _rule(title))

    def say(self, text: str | Callable[[], RenderableType]) -> None:
        """Show a sentence, or what the function makes."""
        if not self.out.as_json:
            self.out.emit(None, text=text)

    def talk(self, context: Context, messages: list[Message]) -> None:
        """Show messages, long ones cut."""
        self.say(lambda: _talk(context, messages))


def _costs(costs: list[Cost]) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(justify="right")
    for cost in costs:
        grid.add_row(cost.step, *_figures(cost))
    return grid


def _figures(cost: Cost) -> tuple[str, str]:
    from pgcontext.cli.words import count

    statements = count(cost.statements, "statement") if cost.statements else ""
    return statements, f"{cost.milliseconds:,.1f} ms"


def _rule(title: str) -> RenderableType:
    from rich.rule import Rule
    from rich.text import Text

    return Rule(Text(title, "bold"), align="left", style="blue", characters="─")


def _talk(context: Context, messages: list[Message]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from pgcontext.cli.words import transcript

    if len(messages) <= SHOWN_MESSAGES:
        return transcript(context, messages, chars_max=SHOWN_CHARS)
    rest = len(messages) - SHOWN_MESSAGES
    return Group(
        transcript(context, messages[:1], chars_max=SHOWN_CHARS),
        Text(f"... {rest:,} more ...", "dim"),
        transcript(context, messages[1 - SHOWN_MESSAGES :], chars_max=SHOWN_CHARS),
    )


def _call(line: str, cost: Cost) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    said = ", ".join(filter(None, _figures(cost)))
    grid.add_row(_line(line), Text(said, "dim"))
    return grid


def _line(line: str) -> RenderableType:
    from rich.text import Text

    return Text(f"> {line}", "cyan")


def _strip(messages: list[Message], window: Window) -> RenderableType:
    """Draw each message as a cell, the ones in the window filled."""
    from rich.console import Group
    from rich.text import Text

    from pgcontext.cli.words import ROLE_STYLES, count

    kept = {message.version for message in window.messages}
    per_cell = -(-len(messages) // STRIP_CELLS)
    everything, fitting = Text(), Text()
    for start in range(0, len(messages), per_cell):
        cell = messages[start : start + per_cell]
        inside = any(message.version in kept for message in cell)
        style = ROLE_STYLES[cell[0].role]
        everything.append("█", style)
        fitting.append("█" if inside else "·", style if inside else "dim")
    total = sum(message.token_count for message in messages)
    everything.append(f"  {count(total, 'token')} in all", "dim")
    fitting.append(f"  {count(window.total_tokens, 'token')}", "dim")
    return Group(everything, fitting)
