"""Embeddings of every supported length: stored, indexed and found, one way and the other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final
from uuid import UUID

import asyncpg
import numpy as np
import pytest

from pgcontext import ContextStore, DimensionMismatchError, limits
from tests.support.chats import user
from tests.support.embedders import Words
from tests.support.postgres import migrate

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES: Final = 40


@pytest.mark.parametrize(
    "dimensions", [256, 384, 1_536, 2_000, 2_001, 3_072, limits.EMBEDDING_DIMENSIONS_MAX]
)
async def test_a_database_of_any_dimensions_is_searched_by_scan_and_by_graph(
    make_database: Callable[..., str], dimensions: int
) -> None:
    """Beyond 2,000 too, where pgvector indexes no `vector`: exact in a context and over it."""
    url = make_database(migrated=False)
    migrate(url, dimensions=dimensions)
    rng = np.random.default_rng(dimensions)
    vectors = rng.normal(0.2, 1, (MESSAGES, dimensions)).astype(np.float32)
    query = vectors[7] + rng.normal(0, 0.3, dimensions).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(-unit @ query, kind="stable").tolist()
    embedder = Words(dimensions=dimensions)
    async with ContextStore.from_env(
        url=url, dimensions=dimensions, embedding_model=embedder.model
    ) as store:
        context = await store.create()
        batch = [user(f"message {n}", embedding=vector) for n, vector in enumerate(vectors)]
        await store.append(context.id, batch)
        for scope in (context.id, None):
            hits = await store.search(query, context_id=scope, limit=10)
            assert [hit.message.version - 1 for hit in hits] == nearest[:10]
        with pytest.raises(DimensionMismatchError):
            await store.search(query[1:])
    await vacuumed(url)
    async with ContextStore.from_env(
        url=url, dimensions=dimensions, exact_rows=0, embedder=embedder
    ) as walking:
        hits = await walking.search(query, limit=10)
        assert [hit.message.version - 1 for hit in hits] == nearest[:10]
        (first, *_) = await walking.search("message 9", mode="hybrid", neighbors=1)
        assert (first.message.content, first.found_by) == ("message 9", ("vector", "text"))


async def vacuumed(url: str) -> None:
    """Gather the statistics without which no graph is walked."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM (ANALYZE) messages")
    assert await connection.fetchval("SELECT prefers_graph FROM pgcontext_size($1, 0)", UUID(int=0))
    await connection.close()


async def test_the_longest_names_of_models_fit_beside_the_longest_embedding(
    make_database: Callable[..., str],
) -> None:
    """An entry of the index that a search stays inside holds them, however badly they compress."""
    url = make_database(migrated=False)
    migrate(url, dimensions=limits.EMBEDDING_DIMENSIONS_MAX)
    chance = random.Random(1)
    name, other = (
        "".join(chr(chance.randint(0x10000, 0x10FFFF)) for _ in range(limits.MODEL_CHARS_MAX))
        for _ in range(2)
    )
    vector = [chance.gauss(0, 1) for _ in range(limits.EMBEDDING_DIMENSIONS_MAX)]
    async with ContextStore.from_env(
        url=url, dimensions=limits.EMBEDDING_DIMENSIONS_MAX, embedding_model=name
    ) as store:
        context = await store.create()
        message = {"role": "developer", "content": "hello", "model": other, "embedding": vector}
        await store.append(context.id, message)
        (hit,) = await store.search(vector, model=other, roles=["developer"])
        assert (hit.message.model, hit.message.embedding_model) == (other, name)
