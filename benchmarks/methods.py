"""The store's methods: against the same by hand, and long contexts against short ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

import asyncpg
import msgspec

from benchmarks.handwritten import Handwritten
from benchmarks.loading import loader
from benchmarks.timing import compare
from pgcontext import ContextStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from benchmarks.timing import Call, Comparison

HISTORY_LIMIT: Final = 50
WINDOW_TOKENS: Final = 8_000
# What stands in a typical append: an answer of an assistant.
ANSWER: Final = (
    "I found order #W0012345: it left our warehouse in Graz and is on its way to you. The carrier "
    "reports that the second parcel was scanned on Tuesday, so it will be there soon. Is there "
    "anything else that I can do for you today?"
)
ANSWER_TOKENS: Final = 50


class Scale(msgspec.Struct, frozen=True):
    """How much to measure.

    Attributes:
        long: messages of the long context.
        others: contexts of `OTHERS_MESSAGES` messages besides, so that there is something to skip.
        depth: forks of forks.
        rounds: of each comparison.
    """

    long: int
    others: int
    depth: int
    rounds: int


FULL: Final = Scale(long=1_000_000, others=20_000, depth=1_000, rounds=1_000)
QUICK: Final = Scale(long=50_000, others=1_000, depth=1_000, rounds=200)
OTHERS_MESSAGES: Final = 10


class Contexts(msgspec.Struct, frozen=True):
    """The contexts that are measured, named by their number of messages."""

    long: UUID
    hundred: UUID
    thousand: UUID
    ours: UUID
    theirs: UUID


class Bench:
    """A loaded database, the store on it, and the hand-written code on it."""

    def __init__(self, url: str, scale: Scale) -> None:
        self._url = url
        self._scale = scale
        self._store = ContextStore(url)

    async def run(self) -> AsyncIterator[Comparison]:
        """Load, then measure; yield each comparison when it is made."""
        self._admin = await asyncpg.connect(self._url)
        whose = (self._url, self._store.tenant_id)
        self._pooled = await Handwritten.over_a_pool(*whose)
        self._bare = await Handwritten.over_a_connection(*whose)
        try:
            contexts = await self._load()
            # Windows first: what the others append is shorter than what was there.
            for measure in (self._windows, self._by_hand, self._by_size, self._forks, self._depth):
                async for comparison in measure(contexts):
                    yield comparison
        finally:
            await self._store.aclose()
            await self._pooled.aclose()
            await self._bare.aclose()
            await self._admin.close()

    async def _load(self) -> Contexts:
        """Make the contexts; the long one and the others are kept from an earlier run."""
        scale = self._scale
        async with loader(self._url, self._store.tenant_id) as filler:
            long = await self._find_long()
            if long is None:
                (long,) = await filler.contexts(1, messages=scale.long)
                await filler.contexts(scale.others, messages=OTHERS_MESSAGES)
            (hundred,) = await filler.contexts(1, messages=100)
            thousand, ours, theirs = await filler.contexts(3, messages=1_000)
            await filler.settle()
        return Contexts(long, hundred, thousand, ours, theirs)

    async def _find_long(self) -> UUID | None:
        found: UUID | None = await self._admin.fetchval(
            "SELECT id FROM contexts WHERE latest_version >= $1 AND EXISTS ("
            "SELECT FROM contexts HAVING count(*) > $2) LIMIT 1",
            self._scale.long,
            self._scale.others,
        )
        return found

    async def _by_hand(self, contexts: Contexts) -> AsyncIterator[Comparison]:
        """Compare append and history with the statement that a person would write."""
        versions = itertools.count(1_001)
        answer: dict[str, object] = {"role": "assistant", "content": ANSWER}

        def append(message: dict[str, object]) -> Call:
            return lambda: self._store.append(contexts.ours, message)

        def insert(by_hand: Handwritten) -> Call:
            return lambda: by_hand.insert(
                contexts.theirs, next(versions), "assistant", ANSWER, ANSWER_TOKENS
            )

        rounds = self._scale.rounds
        counted = append(answer | {"token_count": ANSWER_TOKENS})
        pooled = ("INSERT of the same row, asyncpg's pool", insert(self._pooled))
        bare = ("INSERT, one connection", insert(self._bare))
        yield await compare(rounds, ("append one message", counted), pooled, target=1.3)
        await self._set_synchronous_commit("off")
        yield await compare(rounds, ("… with synchronous_commit=off", counted), pooled)
        yield await compare(rounds, ("… with synchronous_commit=off", counted), bare)
        yield await compare(rounds, ("… and tokens counted by the store", append(answer)), pooled)
        await self._set_synchronous_commit("on")

        def select(by_hand: Handwritten) -> Call:
            return lambda: by_hand.select(contexts.thousand, HISTORY_LIMIT)

        history = (f"history(limit={HISTORY_LIMIT})", self._history(contexts.thousand))
        pooled = ("SELECT of the same rows, asyncpg's pool", select(self._pooled))
        bare = ("SELECT, one connection", select(self._bare))
        yield await compare(rounds, history, pooled, target=1.3)
        yield await compare(rounds, history, bare)

    async def _by_size(self, contexts: Contexts) -> AsyncIterator[Comparison]:
        """Compare append and history in a long context with those in a short one."""
        message = {"role": "assistant", "content": ANSWER, "token_count": ANSWER_TOKENS}

        def append(context_id: UUID) -> Call:
            return lambda: self._store.append(context_id, message)

        for what, call in (("append", append), (f"history({HISTORY_LIMIT})", self._history)):
            yield await self._by_length(what, call, contexts, short="hundred", target=1.2)

    async def _forks(self, contexts: Contexts) -> AsyncIterator[Comparison]:
        """Compare forks at the head, and count what they write."""
        before = await self._count_messages()

        def fork(context_id: UUID) -> Call:
            return lambda: self._store.fork(context_id)

        yield await self._by_length("fork at the head", fork, contexts, short="hundred", target=1.2)
        written = await self._count_messages() - before
        if written:
            msg = f"Forks wrote {written:,} messages; they must write none."
            raise AssertionError(msg)

    async def _windows(self, contexts: Contexts) -> AsyncIterator[Comparison]:
        """Compare windows of the same budget."""

        def window(context_id: UUID) -> Call:
            return lambda: self._store.window(context_id, max_tokens=WINDOW_TOKENS)

        what = f"window({WINDOW_TOKENS:,} tokens)"
        yield await self._by_length(what, window, contexts, short="thousand", target=1.5)

    async def _depth(self, contexts: Contexts) -> AsyncIterator[Comparison]:
        """Compare a fork of a fork of … with a context that was never forked."""
        depth = self._scale.depth
        silent = await self._chain(contexts.thousand, depth, speaking=False)
        speaking = await self._chain(contexts.thousand, depth, speaking=True)
        await self._admin.execute("VACUUM (ANALYZE) contexts, messages")
        for chain, who in ((speaking, "each wrote one message"), (silent, "only the root wrote")):
            what = f"history({HISTORY_LIMIT}), {depth:,} forks deep, {who}"
            yield await compare(
                self._scale.rounds // 2,
                (what, self._history(chain)),
                ("its root", self._history(contexts.thousand)),
                target=15,
            )

    async def _chain(self, root: UUID, depth: int, *, speaking: bool) -> UUID:
        head = root
        for level in range(depth):
            head = (await self._store.fork(head)).id
            if speaking:
                message = {"role": "user", "content": f"Level {level}.", "token_count": 4}
                await self._store.append(head, message)
        return head

    async def _by_length(
        self,
        what: str,
        call: Callable[[UUID], Call],
        contexts: Contexts,
        *,
        short: Literal["hundred", "thousand"],
        target: float,
    ) -> Comparison:
        """Compare the long context with a short one, by the length that each started with."""
        return await compare(
            self._scale.rounds,
            (f"{what}, {self._scale.long:,} messages", call(contexts.long)),
            (
                "100 messages" if short == "hundred" else "1,000 messages",
                call(getattr(contexts, short)),
            ),
            target=target,
        )

    def _history(self, context_id: UUID) -> Call:
        return lambda: self._store.history(context_id, limit=HISTORY_LIMIT)

    async def _count_messages(self) -> int:
        count: int = await self._admin.fetchval("SELECT count(*) FROM messages")
        return count

    async def _set_synchronous_commit(self, value: str) -> None:
        await self._admin.execute(f"ALTER SYSTEM SET synchronous_commit = {value}")
        await self._admin.execute("SELECT pg_reload_conf()")
