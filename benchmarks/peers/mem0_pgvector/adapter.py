"""The pgvector store of mem0, with its defaults; what calls a language model is left out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"

from mem0.configs.vector_stores.pgvector import PGVectorConfig
from mem0.vector_stores.pgvector import PGVector

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import serve


class Mem0:
    """`PGVector`, made from its configuration as mem0's factory does."""

    def open(self, database: dict[str, str], dimensions: int, ef_search: int | None) -> None:
        """Make the store; it makes its table and index, and has no option for the search."""
        assert ef_search is None or ef_search > 0
        config = PGVectorConfig(
            connection_string="postgresql://{user}@/{name}?host={host}".format(**database),
            collection_name="messages",
            embedding_model_dims=dimensions,
        )
        self._store = PGVector(**config.model_dump())
        self._store.col_info()

    def add(self, rows: list[dict[str, Any]], embeddings: list[list[float]]) -> None:
        """Store messages; mem0 keeps the text in the payload."""
        self._store.insert(
            vectors=embeddings,
            payloads=[{"data": row["text"], **row["metadata"]} for row in rows],
            ids=[row["id"] for row in rows],
        )

    def finish(self) -> None:
        """Nothing: the index was made with the table."""

    def search(self, embedding: list[float], filters: dict[str, str], limit: int) -> list[str]:
        """Search by an embedding."""
        found = self._store.search(query="", vectors=embedding, top_k=limit, filters=filters)
        return [hit.id for hit in found]


if __name__ == "__main__":
    serve(Mem0())
