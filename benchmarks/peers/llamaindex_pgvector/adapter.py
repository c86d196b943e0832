"""PGVectorStore of LlamaIndex, with the HNSW options that its documentation shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.postgres import PGVectorStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import serve

EF_SEARCH_SHOWN = 40


class LlamaIndex:
    """Its synchronous methods, over psycopg2."""

    def open(self, database: dict[str, str], dimensions: int, ef_search: int | None) -> None:
        """Make the store; it makes its table and index."""
        address = "://{user}@/{name}?host={host}".format(**database)
        self._store = PGVectorStore(
            connection_string=f"postgresql+psycopg2{address}",
            async_connection_string=f"postgresql+asyncpg{address}",
            table_name="messages",
            embed_dim=dimensions,
            initialization_fail_on_error=True,
            hnsw_kwargs={
                "hnsw_m": 16,
                "hnsw_ef_construction": 64,
                "hnsw_ef_search": ef_search or EF_SEARCH_SHOWN,
                "hnsw_dist_method": "vector_cosine_ops",
            },
        )
        self._store.get_nodes(node_ids=["none"])

    def add(self, rows: list[dict[str, Any]], embeddings: list[list[float]]) -> None:
        """Store messages."""
        self._store.add(
            [
                TextNode(
                    id_=row["id"],
                    text=row["text"],
                    metadata=row["metadata"],
                    embedding=embedding,
                )
                for row, embedding in zip(rows, embeddings, strict=True)
            ]
        )

    def finish(self) -> None:
        """Nothing: the index was made with the table."""

    def search(self, embedding: list[float], filters: dict[str, str], limit: int) -> list[str]:
        """Search by an embedding."""
        query = VectorStoreQuery(
            query_embedding=embedding,
            similarity_top_k=limit,
            filters=MetadataFilters(
                filters=[MetadataFilter(key=key, value=value) for key, value in filters.items()]
            ),
        )
        return list(self._store.query(query).ids or [])


if __name__ == "__main__":
    serve(LlamaIndex())
