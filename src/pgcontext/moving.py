"""Moving a tenant's embeddings from one model to another, while the store is used.

    moving = Moving.of(store)          # to the model of the store's embedder
    moved = await moving.run()

What carries another model's embedding is embedded anew, batch by batch in the order of the ids. How
far it has come stands in the messages themselves: each has the old vector with the old model's
name, or the new one with the new name, and never none. So it may be stopped at any moment and run
again, and search works meanwhile: a store with the old embedder finds by vector what is not moved
yet, one with the new embedder what is, and both find everything by words.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from pgcontext import limits, statements
from pgcontext.store.base import StoreBase
from pgcontext.store.embedding import embed_texts, encode, required

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from pgcontext.errors import ContextStoreError
    from pgcontext.store.base import Rows


class Moved(msgspec.Struct):
    """What came of moving.

    Attributes:
        messages: how many got an embedding of the new model.
        refused: how many the embedder doesn't take; they keep the old one.
    """

    messages: int = 0
    refused: int = 0


class Owed(msgspec.Struct, frozen=True):
    """Messages whose embedding was left for later, or failed.

    Attributes:
        due: may be claimed now.
        later: claimed by a worker at this moment, or put off since the embedder did not take them.
    """

    due: int
    later: int


class Moving(StoreBase):
    """A tenant's embeddings, as those see them who look after them."""

    @classmethod
    def of(cls, store: StoreBase) -> Self:
        """Return those that are in the store's database, of its tenant."""
        moving = object.__new__(cls)
        moving.__dict__.update(store.__dict__)
        return moving

    async def owed(self) -> Owed:
        """Count the messages that wait for `embed_pending`. One statement."""
        [found], _ = await self._fetch(statements.EMBED_OWED)
        return Owed(found["due"], found["later"])

    async def count(self, *, unnamed: bool = False) -> int:
        """Count what there is to move. One statement, which reads all of the tenant's messages."""
        model = required(self.embedder).model
        [found], _ = await self._fetch(statements.EMBED_OTHERS_COUNT, model, unnamed)
        messages: int = found["messages"]
        return messages

    async def run(
        self, *, unnamed: bool = False, report: Callable[[Moved], None] = lambda _moved: None
    ) -> Moved:
        """Embed anew what another model embedded. Two statements a batch, each its own commit.

        Safe to run twice at once: each message is written once, though both may embed it. No
        connection is held while embedding.

        Args:
            unnamed: also embeddings without a model's name, which a caller gave.
            report: told after each batch how far it has come.

        Raises:
            InvalidInputError: the store has no embedder.
            EmbeddingError: the embedder fails altogether; what was moved before stays moved.
        """
        model = required(self.embedder).model
        moved = Moved()
        next_id = UUID(int=0)
        while True:
            found, _ = await self._fetch(
                statements.EMBED_OTHERS,
                model,
                unnamed,
                next_id,
                limits.EMBED_LOOKED_AT_MESSAGES_MAX,
                limits.EMBED_BATCH_MESSAGES_MAX,
                limits.EMBED_BATCH_BYTES_MAX,
            )
            if not found:
                return moved
            error = await self._replace(found[:-1], moved)
            report(moved)
            if error is not None:
                raise error
            next_id = _after(found[-1]["last_id"])

    async def _replace(self, batch: Rows, moved: Moved) -> ContextStoreError | None:
        """Embed a batch anew and write it; return why some of it was not tried."""
        if not batch:
            return None
        embedder = required(self.embedder)
        outcome = await embed_texts(
            partial(self._embedded, embedder),
            [row["content"] for row in batch],
            self._job_seconds(),
        )
        moved.refused += len(outcome.refused)
        if outcome.vectors:
            rows = encode(
                {
                    "id": str(batch[place]["id"]),
                    "embedding": text,
                    "replaced_model": batch[place]["embedding_model"],
                }
                for place, text in outcome.vectors.items()
            )
            found, retried = await self._fetch(statements.EMBED_REPLACE, rows, embedder.model)
            # After a lost reply it was the first try that wrote them.
            moved.messages += len(outcome.vectors) if retried else found[0]["messages"]
        return outcome.error


def _after(last_id: UUID) -> UUID:
    """Return the first id that comes after one."""
    return UUID(int=min(last_id.int + 1, 2**128 - 1))
