"""What somebody would write with pgvector: statements in asyncpg, each with settings of its own.

They know their tenant and what is deleted, and nothing of deleted contexts, models or forks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import asyncpg
import msgspec

from benchmarks.search.vectors import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from asyncpg.prepared_stmt import PreparedStatement

COLUMNS: Final = """m.id, m.context_id, m.version, m.created_at, m.role, m.content, m.tool_call_id,
       m.tool_name, m.token_count, m.model, m.payload, m.embedding_model"""
EXACT: Final = """
SELECT @columns, m.embedding <=> $2::vector AS distance
FROM messages AS m
WHERE m.tenant_id = $1 AND m.deleted_at IS NULL AND $4 > 0
ORDER BY m.embedding <=> $2::vector
LIMIT $3
"""
# $4 is the over-fetch: as many are asked of the index, then put in order by the exact distance.
HNSW: Final = """
SELECT *
FROM (
    SELECT @columns, m.embedding <=> $2::vector AS distance
    FROM messages AS m
    WHERE m.tenant_id = $1 AND m.deleted_at IS NULL
    ORDER BY m.embedding::halfvec(@dimensions) <=> $2::vector::halfvec(@dimensions)
    LIMIT $4
) AS n
ORDER BY distance
LIMIT $3
"""
# $4 is the depth. The first part needs nothing that is not in messages_signature_idx.
SIGNATURES: Final = """
WITH near AS MATERIALIZED (
    SELECT m.id
    FROM messages AS m
    WHERE m.tenant_id = $1 AND m.deleted_at IS NULL AND m.embedding IS NOT NULL
    ORDER BY m.signature <~> binary_quantize($2::vector)::bit(@dimensions)
    LIMIT $4
)
SELECT @columns, m.embedding <=> $2::vector AS distance
FROM near
JOIN messages AS m ON m.tenant_id = $1 AND m.id = near.id
ORDER BY distance
LIMIT $3
"""


class Written(msgspec.Struct, frozen=True):
    """A statement to choose from.

    Attributes:
        name: what it does, in a few words.
        family: "exact", "signatures" or "HNSW".
        text: the statement; $1 tenant, $2 embedding, $3 how many, $4 of how many.
        fetched: $4.
        settings: of its connection.
    """

    name: str
    family: str
    text: str
    fetched: int
    settings: dict[str, str]


def _hnsw(ef_search: int, fetched: int, *, relaxed: bool, scanned: int = 20_000) -> Written:
    how = "relaxed" if relaxed else "not iterative"
    further = "" if scanned == 20_000 else f", up to {scanned:,} tuples"  # noqa: PLR2004 (its default)
    return Written(
        f"HNSW, {how}, ef_search {ef_search}, best {fetched} re-ordered{further}",
        "HNSW",
        HNSW,
        fetched,
        {
            "hnsw.iterative_scan": "relaxed_order" if relaxed else "off",
            "hnsw.ef_search": str(ef_search),
            "hnsw.max_scan_tuples": str(scanned),
            # Otherwise the planner sorts a small tenant's rows instead, which is the exact scan.
            "enable_sort": "off",
        },
    )


CHOICES: Final = (
    Written("exact distance of every row", "exact", EXACT, 1, {}),
    Written("ORDER BY … LIMIT, the planner's choice", "planner", HNSW, 10, {}),
    *(
        Written(f"signatures, best {depth:,} re-ranked", "signatures", SIGNATURES, depth, {})
        for depth in (200, 500, 2_000)
    ),
    _hnsw(40, 10, relaxed=False),
    _hnsw(200, 100, relaxed=False),
    _hnsw(1_000, 1_000, relaxed=False),
    _hnsw(40, 10, relaxed=True),
    _hnsw(40, 100, relaxed=True),
    _hnsw(100, 100, relaxed=True),
    _hnsw(200, 100, relaxed=True),
    _hnsw(400, 200, relaxed=True, scanned=200_000),
    _hnsw(1_000, 1_000, relaxed=True, scanned=1_000_000),
)


class ByHand:
    """One statement, prepared on a connection of its own."""

    def __init__(
        self, connection: asyncpg.Connection, prepared: PreparedStatement, written: Written
    ) -> None:
        self.written = written
        self._connection = connection
        self._prepared = prepared

    @classmethod
    async def on(cls, url: str, written: Written) -> ByHand:
        """Connect, with what a careful user would set, and prepare."""
        settings = written.settings | {"plan_cache_mode": "force_custom_plan"}
        connection = await asyncpg.connect(url)
        await connection.execute("SELECT '[1]'::vector")  # makes hnsw.* known
        for name, value in settings.items():
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
        await connection.set_type_codec(
            "vector", encoder=_encode, decoder=bytes, format="binary", schema="public"
        )
        text = written.text.replace("@columns", COLUMNS).replace("@dimensions", str(DIMENSIONS))
        return cls(connection, await connection.prepare(text), written)

    async def find(
        self, tenant_id: UUID, query: Sequence[float], limit: int
    ) -> list[asyncpg.Record]:
        """Return the nearest messages, as the driver's own records."""
        return await self._prepared.fetch(tenant_id, query, limit, self.written.fetched)

    async def aclose(self) -> None:
        """Disconnect."""
        await self._connection.close()


_VECTOR: Final = struct.Struct(f">HH{DIMENSIONS}f")


def _encode(vector: Sequence[float]) -> bytes:
    return _VECTOR.pack(DIMENSIONS, 0, *vector)
