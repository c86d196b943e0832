"""PGVectorStore of langchain-postgres: asyncpg below, what is filtered by in columns of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex, HNSWQueryOptions
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import serve

TABLE = "messages"
FILTERED = ("tenant", "context")


class NoEmbeddings(Embeddings):
    """Everything comes with its embedding."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Never asked."""
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        """Never asked."""
        raise NotImplementedError


class LangChain:
    """Its asynchronous methods on one loop, which is the fastest that it has."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def open(self, database: dict[str, str], dimensions: int, ef_search: int | None) -> None:
        """Make the table if it is not there, and the store on it."""
        self._loop.run_until_complete(self._open(database, dimensions, ef_search))

    async def _open(self, database: dict[str, str], dimensions: int, ef_search: int | None) -> None:
        url = "postgresql+asyncpg://{user}@/{name}?host={host}".format(**database)
        engine = PGEngine.from_engine(create_async_engine(url))
        columns = [Column(name, "TEXT") for name in FILTERED]
        try:
            await engine.ainit_vectorstore_table(TABLE, dimensions, metadata_columns=columns)
        except ProgrammingError as error:
            if "already exists" not in str(error):
                raise
        options = None if ef_search is None else HNSWQueryOptions(ef_search=ef_search)
        self._store = await PGVectorStore.create(
            engine,
            NoEmbeddings(),
            TABLE,
            metadata_columns=list(FILTERED),
            index_query_options=options,
        )

    def add(self, rows: list[dict[str, Any]], embeddings: list[list[float]]) -> None:
        """Store messages."""
        added = self._store.aadd_embeddings(
            [row["text"] for row in rows],
            embeddings,
            metadatas=[row["metadata"] for row in rows],
            ids=[row["id"] for row in rows],
        )
        self._loop.run_until_complete(added)

    def finish(self) -> None:
        """Make the index, as its documentation does after adding documents."""
        self._loop.run_until_complete(self._store.aapply_vector_index(HNSWIndex()))

    def search(self, embedding: list[float], filters: dict[str, str], limit: int) -> list[str]:
        """Search by an embedding."""
        found = self._store.asimilarity_search_by_vector(embedding, k=limit, filter=filters)
        return [str(document.id) for document in self._loop.run_until_complete(found)]


if __name__ == "__main__":
    serve(LangChain())
