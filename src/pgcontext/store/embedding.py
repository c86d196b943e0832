"""Embeddings that were left for later, or that failed when their messages were appended."""

from __future__ import annotations

import asyncio
import logging
import random
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
from pgcontext.store.base import Rows, StoreBase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from pgcontext.embedding import Embedder

    Embed: TypeAlias = Callable[[list[str]], Awaitable[list[str]]]

logger: Final = logging.getLogger("pgcontext")

# What an embedding server answers to a text that is too long, or otherwise not to its liking; None
# where there was no server.
_ABOUT_THE_TEXT: Final = frozenset({None, 400, 413, 422})


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


async def embed_texts(embed: Embed, texts: list[str]) -> Outcome:
    """Embed texts, so that one which the embedder never takes holds up none of the others.

    A batch that fails is halved until it is known which texts are to blame. What fails for every
    text alike ends it: a refused key, vectors of another length, a server that is away, or
    `EMBED_REFUSED_MESSAGES_MAX` texts refused and none accepted.
    """
    vectors: dict[int, str] = {}
    refused: list[int] = []
    waiting = [range(len(texts))]
    failures = settled = 0  # calls in a row that failed; how many were refused before those
    while waiting:
        batch = waiting.pop()
        try:
            made = await embed([texts[place] for place in batch])
        except ContextStoreError as error:
            if _is_everybodys(error):
                return Outcome(vectors, refused, error)
            failures += error.retryable
            if failures > limits.EMBED_FAILURES_COUNT_MAX:
                return Outcome(vectors, refused[:settled], error)
            if failures == 1 and await _is_away(embed, [texts[place] for place in batch], vectors):
                return Outcome(vectors, refused, error)
            if len(batch) == 1:
                refused.append(batch[0])
            if not vectors and len(refused) >= limits.EMBED_REFUSED_MESSAGES_MAX:
                return Outcome(vectors, refused, error)
            if len(batch) > 1:
                half = len(batch) // 2
                waiting += [batch[half:], batch[:half]]
        else:
            vectors.update(zip(batch, made, strict=True))
            failures, settled = 0, len(refused)
    return Outcome(vectors, refused, None)


async def _is_away(embed: Embed, failed: list[str], vectors: dict[int, str]) -> bool:
    """Tell whether a failure that seems to pass is a server's, or one text's that it chokes on.

    Two texts are tried alone: if one is to blame, the other isn't. By chance, so that the same two
    which are to blame don't hold up the others each time. A single one is, if the server took
    others.
    """
    if len(failed) == 1:
        return not vectors
    for text in random.sample(failed, 2):
        with suppress(ContextStoreError):
            await embed([text])
            return False
    return True


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

        Safe to run many at once: each claims messages of its own, for `PGCONTEXT_CLAIM_SECONDS`.
        Who dies loses the claim, and another finishes. No connection is held while embedding. Two
        statements a batch; a third gives back what the embedder did not take.

        0 means that nothing is due. A text that the embedder refuses by itself holds up no other;
        it is tried again ever more seldom, at least once a day.

        Args:
            limit: messages at most, up to `EMBED_MESSAGES_MAX`.

        Raises:
            InvalidInputError: the store has no embedder.
            EmbeddingError: the embedder fails altogether. The messages are given back, to be tried
                again after `EMBED_RETRY_SECONDS`.
        """
        limit = inputs.integer(limit, "limit", least=1, most=limits.EMBED_MESSAGES_MAX)
        embedder = required(self.embedder)
        filled = 0
        while filled < limit:
            claimed, _ = await self._fetch(
                statements.EMBED_CLAIM,
                min(limit - filled, limits.EMBED_BATCH_MESSAGES_MAX),
                self._settings.claim_seconds,
                limits.EMBED_BATCH_BYTES_MAX,
            )
            if not claimed:
                break
            written, error = await self._embed_claimed(embedder, claimed)
            filled += written
            if error is not None and not filled:
                raise error
            if error is not None:
                break  # what was done counts; the next call meets the failure again
        return filled

    async def _embed_claimed(
        self, embedder: Embedder, claimed: Rows
    ) -> tuple[int, ContextStoreError | None]:
        """Embed what was claimed and write it; give back the rest. Return how many, and why not."""
        ids = [str(row["id"]) for row in claimed]
        try:
            outcome = await embed_texts(
                partial(self._embedded, embedder), [row["content"] or "" for row in claimed]
            )
        except asyncio.CancelledError:
            with suppress(ContextStoreError):  # then the claim runs out
                await self._release(ids, 0, 0)
            raise
        written = await self._fill(ids, outcome.vectors, embedder.model)
        refused = [ids[place] for place in outcome.refused]
        untried = set(ids) - set(refused) - {ids[place] for place in outcome.vectors}
        if refused:
            logger.warning("the embedder refused messages: %d", len(refused))
            await self._release(
                refused, self._settings.claim_seconds, limits.EMBED_BACKOFF_SECONDS_MAX
            )
        if untried:
            logger.warning("embedding failed; messages for later: %d", len(untried))
            await self._release(untried, limits.EMBED_RETRY_SECONDS, limits.EMBED_RETRY_SECONDS)
        return written, outcome.error

    async def _fill(self, ids: list[str], vectors: dict[int, str], model: str) -> int:
        if not vectors:
            return 0
        batch = encode({"id": ids[place], "embedding": text} for place, text in vectors.items())
        found, retried = await self._fetch(statements.EMBED_FILL, batch, model)
        # After a lost reply nothing is owed any more: it was the first try that wrote them.
        return len(vectors) if retried else found[0]["messages"]

    async def _release(self, ids: Iterable[str], least: float, most: float) -> None:
        """Give claimed messages back, claimable again after so many seconds."""
        await self._fetch(statements.EMBED_RELEASE, list(ids), least, most)


def required(embedder: Embedder | None) -> Embedder:
    """Return the store's embedder.

    Raises:
        InvalidInputError: it has none.
    """
    if embedder is None:
        msg = "There is no embedder: give the store one, or name one with PGCONTEXT_EMBEDDER."
        raise InvalidInputError(msg)
    return embedder
