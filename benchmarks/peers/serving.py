"""How an adapter speaks with the benchmark: a JSON object a line, in and out.

Nothing here or in an adapter knows pgcontext: each runs in the environment of its peer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

BATCH_ROWS = 1_000


class Peer(Protocol):
    """A vector store behind the few calls that are compared."""

    def open(self, database: dict[str, str], dimensions: int, ef_search: int | None) -> None:
        """Connect, and make tables and indexes as the peer's documentation does.

        Args:
            database: `host` (a socket's folder), `user` and `name`.
            dimensions: of the embeddings.
            ef_search: of the HNSW index, where the peer has an option for it; None leaves it.
        """
        ...

    def add(self, rows: list[dict[str, Any]], embeddings: list[list[float]]) -> None:
        """Store messages: each row has `id`, `text` and `metadata`."""
        ...

    def finish(self) -> None:
        """Do what is to be done when all is stored, if anything."""
        ...

    def search(self, embedding: list[float], filters: dict[str, str], limit: int) -> list[str]:
        """Return the ids of the nearest messages that have all of this metadata."""
        ...


class Serving:
    """Answers the benchmark's requests with a peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def open(self, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 (from JSON)
        """Hand on."""
        self._peer.open(**arguments)
        return {}

    def load(self, folder: str) -> dict[str, Any]:
        """Store the messages of a folder: `rows.jsonl`, and their embeddings in `vectors.npy`."""
        import numpy as np

        started = time.perf_counter()
        vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r")
        with (Path(folder) / "rows.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        for first in range(0, len(rows), BATCH_ROWS):
            some = slice(first, first + BATCH_ROWS)
            self._peer.add(rows[some], vectors[some].tolist())
        self._peer.finish()
        return {"seconds": time.perf_counter() - started}

    def search(self, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 (from JSON)
        """Hand on, with the time it took inside this process."""
        started = time.perf_counter()
        ids = self._peer.search(**arguments)
        return {"seconds": time.perf_counter() - started, "ids": ids}


def serve(peer: Peer) -> None:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    serving = Serving(peer)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(serving, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)
