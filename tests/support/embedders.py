"""Embedders that need no model: equal texts give equal vectors, and they do as they are told."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tests.support import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from pgcontext import ContextStore


class Words:
    """An embedder whose vectors are drawn by chance, from text and model.

    Args:
        model: its name.
        dimensions: the length of its vectors.
        refuses: texts for which any call fails.
        seconds: how long a call takes.

    Attributes:
        asked: the texts of each call.
        before: called before each call, and may raise.
    """

    def __init__(
        self,
        model: str = "words",
        *,
        dimensions: int = DIMENSIONS,
        refuses: Collection[str] = (),
        seconds: float = 0,
    ) -> None:
        self.model = model
        self.dimensions = dimensions
        self.refuses = refuses
        self.seconds = seconds
        self.asked: list[list[str]] = []
        self.before: Callable[[], None] = lambda: None

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Embed texts, or fail."""
        self.asked.append(texts)
        self.before()
        await asyncio.sleep(self.seconds)
        if set(texts) & set(self.refuses):
            raise ValueError(texts)
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> list[float]:
        """What a text's embedding is."""
        chance = random.Random(f"{self.model}/{text}")
        return [round(chance.gauss(0, 1), 4) for _ in range(self.dimensions)]


class Waiting(Words):
    """An embedder that takes its time: a call has `begun`, and ends when it may `go_on`."""

    def __init__(self, model: str = "words") -> None:
        super().__init__(model)
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Embed texts, when told to."""
        self.begun.set()
        await self.go_on.wait()
        return await super().embed(texts)


class Constant(Words):
    """An embedder to which all texts are one.

    Args:
        embedding: of any text.
        model: its name.
    """

    def __init__(self, embedding: list[float], model: str = "constant") -> None:
        super().__init__(model, dimensions=len(embedding))
        self.embedding = embedding

    def vector(self, text: str) -> list[float]:  # noqa: ARG002 (whatever it is)
        """What any text's embedding is."""
        return self.embedding


def with_embedder(store: ContextStore, embedder: Words | None = None) -> ContextStore:
    """The same store over the same connections, but with an embedder."""
    other = store.for_tenant(store.tenant_id)
    other._embedder = embedder or Words()
    return other


async def owe_and_embed(store: ContextStore, context_id: UUID) -> int:
    """Append a message, leave its embedding for later, and then make it."""
    store = with_embedder(store)
    await store.append(
        context_id, {"role": "user", "content": "later", "token_count": 1}, embed="later"
    )
    return await store.embed_pending()
