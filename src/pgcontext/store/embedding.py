"""Embeddings that were left for later, or that failed when their messages were appended."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from pgcontext import inputs, limits, statements
from pgcontext.errors import (
    ContextStoreError,
    DimensionMismatchError,
    EmbeddingError,
    InvalidInputError,
)
from pgcontext.store.base import Rows, StoreBase, has_meaning

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime

    from pgcontext.embedding import Embedder

    # Texts, and how many seconds it may take.
    Embed: TypeAlias = Callable[[list[str], float], Awaitable[list[str]]]

logger: Final = logging.getLogger("pgcontext")

# What an embedding server answers to a text that is too long, or otherwise not to its liking; None
# where there was no server.
_ABOUT_THE_TEXT: Final = frozenset({None, 400, 413, 422})
# What a server answers that chokes on a text, and also one that is broken.
_CHOKED: Final = frozenset({424, 500})
# How many texts are tried alone to see whether a server is away: not one, which may be the very one
# that it can't do, and few, since each costs its attempts where it is away.
_TRIES: Final = 2
# How many where it rather chokes: more, since several may be to blame, and no more than may be put
# off as refused without one that was taken.
_CHOKED_TRIES: Final = limits.EMBED_REFUSED_MESSAGES_MAX
# At least and at most so long until what failed, but is not to blame, is tried again.
_RETRY: Final = (limits.EMBED_RETRY_SECONDS, limits.EMBED_RETRY_SECONDS)
# Short, in any model's vocabulary, and about nothing that a filter of contents could refuse.
_HARMLESS: Final = "Hello"


class Outcome(NamedTuple):
    """What became of some texts, each named by its place among them.

    Attributes:
        vectors: embeddings, as text for `vector`.
        refused: those that the embedder doesn't take, also not one by one.
        error: why the others were not tried, or None if all were.
    """

    vectors: dict[int, str]
    refused: list[int]
    error: ContextStoreError | None


class _Asking:
    """Asks an embedder for the same texts, in ever other parts, until the time is over.

    Args:
        embed: makes the embeddings of some texts.
        texts: to be embedded.
        seconds: how long all of it may take.

    Attributes:
        vectors: what came so far, by the places of the texts.
    """

    def __init__(self, embed: Embed, texts: list[str], seconds: float) -> None:
        self._embed = embed
        self._texts = texts
        self._end = time.monotonic() + seconds
        self.vectors: dict[int, str] = {}

    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    async def ask(self, places: list[int]) -> None:
        texts = [self._texts[place] for place in places]
        made = await self._embed(texts, self._end - time.monotonic())
        self.vectors.update(zip(places, made, strict=True))

    async def takes_anything(self) -> bool:
        """Tell whether the embedder takes what nobody could refuse for what it says."""
        try:
            await self._embed([_HARMLESS], self._end - time.monotonic())
        except ContextStoreError:
            return False
        return True


async def embed_texts(embed: Embed, texts: list[str], seconds: float) -> Outcome:
    """Embed texts, so that one which the embedder never takes holds up none of the others.

    A batch that fails is halved until it is known which texts are to blame. What fails for every
    text alike ends it: a refused key, vectors of another length, a server that is away,
    or `EMBED_REFUSED_MESSAGES_MAX` texts refused and none accepted, not even a greeting; and so
    does the end of the time.

    Args:
        embed: makes the embeddings of some texts.
        texts: to be embedded.
        seconds: how long all of it may take.
    """
    asking = _Asking(embed, texts, seconds)
    vectors = asking.vectors
    refused: list[int] = []
    waiting = [list(range(len(texts)))] if texts else []
    failures = settled = 0  # calls in a row that failed; how many were refused before those
    while waiting:
        batch = waiting.pop()
        try:
            await asking.ask(batch)
        except ContextStoreError as error:
            if _is_everybodys(error) or asking.is_over():
                return Outcome(vectors, refused, error)
            failures += error.retryable
            if failures > limits.EMBED_FAILURES_COUNT_MAX:
                return Outcome(vectors, refused[:settled], error)
            if error.retryable and failures == 1:
                guilty = await _guilty_of_all(asking, batch, error)
                if guilty is not None:
                    return Outcome(vectors, refused + guilty, error)
            if len(batch) == 1:
                refused += batch
                doubtful = not vectors and len(refused) == limits.EMBED_REFUSED_MESSAGES_MAX
                if doubtful and not await asking.takes_anything():
                    # It isn't the texts, unless there was no time left to ask.
                    return Outcome(vectors, refused if asking.is_over() else [], error)
            waiting += _halves(batch, vectors)
        else:
            failures, settled = 0, len(refused)
    return Outcome(vectors, refused, None)


def _halves(batch: list[int], vectors: dict[int, str]) -> list[list[int]]:
    """Return what is left of a batch that failed, in two parts; nothing if it was one text."""
    left = [place for place in batch if place not in vectors]
    random.shuffle(left)  # or texts that are refused, one after the other, hide those that aren't
    half = len(left) // 2
    return [part for part in (left[half:], left[:half]) if part and len(batch) > 1]


async def _guilty_of_all(
    asking: _Asking, batch: list[int], error: ContextStoreError
) -> list[int] | None:
    """Find out whether a failure that seems to pass is a server's, or of a text it chokes on.

    A few texts are tried alone: if one is to blame, another isn't. By chance, so that the same few
    don't hold up the others each time. A single text is to blame if the server took others.

    Returns:
        None if the server embeds something. Else the texts that it failed for alone, and so perhaps
        chokes on: none if it is away.
    """
    choked = isinstance(error, EmbeddingError) and error.status in _CHOKED
    alone = random.sample(batch, min(len(batch), _CHOKED_TRIES if choked else _TRIES))
    if len(batch) == 1 and asking.vectors:
        return None
    for place in alone if len(batch) > 1 else ():
        with suppress(ContextStoreError):
            await asking.ask([place])
            return None
    return alone if choked and not asking.is_over() else []


def _is_everybodys(error: ContextStoreError) -> bool:
    """Tell a failure that has nothing to do with the very texts, and doesn't pass."""
    if not isinstance(error, EmbeddingError):
        return True
    if isinstance(error.__cause__, DimensionMismatchError):
        return True
    return not error.retryable and error.status not in _ABOUT_THE_TEXT


def encode(rows: Iterable[dict[str, str | None]]) -> str:
    """Return rows as the statements take them: a JSON array."""
    return msgspec.json.encode(list(rows)).decode()


class EmbeddingMethods(StoreBase):
    """The store's method that embeds later."""

    async def embed_pending(self, *, limit: int = 100) -> int:
        """Embed messages whose embedding is owed, the longest owed first; return how many were.

        Safe to run many at once: each claims messages of its own, for `PGCONTEXT_CLAIM_SECONDS`,
        and stops a little before that. Who dies loses the claim, and another finishes. No
        connection is held while embedding. Two statements a batch; more give back what the embedder
        did not take.

        0 means that nothing is due. A text that the embedder refuses by itself holds up no other;
        it is tried again ever more seldom, at least once a day. A blank one owes nothing.

        Args:
            limit: messages at most, up to `EMBED_MESSAGES_MAX`.

        Raises:
            InvalidInputError: the store has no embedder.
            EmbeddingError: the embedder fails altogether. The messages are given back, to be tried
                again after `EMBED_RETRY_SECONDS`; so they are if the database takes no embedding.
            DimensionMismatchError: the database's embeddings have another length since.
        """
        limit = inputs.integer(limit, "limit", least=1, most=limits.EMBED_MESSAGES_MAX)
        embedder = required(self.embedder)
        filled = 0
        while filled < limit:
            asked_at = time.monotonic()  # no later than the claim's own moment
            claimed, _ = await self._fetch(
                statements.EMBED_CLAIM,
                min(limit - filled, limits.EMBED_BATCH_MESSAGES_MAX),
                self._settings.claim_seconds,
                limits.EMBED_BATCH_BYTES_MAX,
            )
            if not claimed:
                break
            written, error = await self._embed_claimed(embedder, claimed, asked_at)
            filled += written
            if error is not None and not filled:
                raise error
            if error is not None:
                break  # what was done counts; the next call meets the failure again
        return filled

    async def _embed_claimed(
        self, embedder: Embedder, claimed: Rows, asked_at: float
    ) -> tuple[int, ContextStoreError | None]:
        """Embed what was claimed and write it; give back the rest. Return how many, and why not."""
        until = claimed[0]["embed_after"]
        seconds = self._job_seconds(time.monotonic() - asked_at)
        texts = {str(row["id"]): row["content"] for row in claimed if has_meaning(row["content"])}
        ids, blank = list(texts), {str(row["id"]) for row in claimed} - texts.keys()
        try:
            outcome = await embed_texts(
                partial(self._embedded, embedder), list(texts.values()), seconds
            )
        except asyncio.CancelledError:
            with suppress(ContextStoreError):  # then the claim runs out
                await self._release(ids, until, 0, 0)
            raise
        made = {ids[place]: vector for place, vector in outcome.vectors.items()}
        try:
            written = await self._fill(made | dict.fromkeys(blank), embedder.model)
        except ContextStoreError:
            with suppress(ContextStoreError):
                await self._release(ids, until, *_RETRY)
            raise
        refused = [ids[place] for place in outcome.refused]
        untried = texts.keys() - made.keys() - set(refused)
        if refused:
            logger.warning("the embedder refused messages: %d", len(refused))
            await self._release(
                refused, until, self._settings.claim_seconds, limits.EMBED_BACKOFF_SECONDS_MAX
            )
        if untried:
            logger.warning("embedding failed; messages for later: %d", len(untried))
            await self._release(untried, until, *_RETRY)
        return written, outcome.error

    async def _fill(self, vectors: dict[str, str | None], model: str) -> int:
        """Write embeddings by the messages' ids; with None, a message owes none any more."""
        if not vectors:
            return 0
        batch = encode({"id": each, "embedding": vector} for each, vector in vectors.items())
        found, retried = await self._fetch(statements.EMBED_FILL, batch, model)
        # After a lost reply nothing is owed any more: it was the first try that wrote them.
        return sum(map(bool, vectors.values())) if retried else found[0]["messages"]

    async def _release(
        self, ids: Iterable[str], until: datetime, least: float, most: float
    ) -> None:
        """Give messages back that are claimed until then, claimable after so many seconds."""
        await self._fetch(statements.EMBED_RELEASE, list(ids), until, least, most)


def required(embedder: Embedder | None) -> Embedder:
    """Return the store's embedder.

    Raises:
        InvalidInputError: it has none.
    """
    if embedder is None:
        msg = "There is no embedder: give the store one, or name one with PGCONTEXT_EMBEDDER."
        raise InvalidInputError(msg)
    return embedder
