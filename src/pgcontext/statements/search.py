"""Statements of search. $1 is the tenant.

All of them take the same parameters, so that they can be called alike:
$2 the query (an embedding as text, or the words), $3 hits at most, $4 roles, $5 since, $6 until,
$7 metadata the context must contain, $8 the model that wrote the message, $9 the largest
distance, $10 the embedding model to compare with, $11 neighbors on each side, $12 whether to
return the embeddings, $13 the context (NULL over the tenant), $14 the highest version.

They return one row a hit (`place` 1, 2, …, `step` 0) and one a neighbor (its hit's `place`, and
the `step` before or after it), with distance, text_score and embedding where they apply.
"""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

_FILTERED: Final[LiteralString] = """($4::text[] IS NULL OR m.role = ANY ($4))
          AND ($5::timestamptz IS NULL OR m.created_at >= $5)
          AND ($6::timestamptz IS NULL OR m.created_at < $6)
          AND ($8::text IS NULL OR m.model = $8)"""

_CONTEXT_VIEWER: Final[LiteralString] = """viewer AS (
    SELECT @viewer_columns, $14::bigint AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $13::uuid AND c.deleted_at IS NULL
      AND ($7::jsonb IS NULL OR c.metadata @> $7)
)"""

# Over the tenant the messages around a hit are those its own context shows.
_HIT_VIEWERS: Final[LiteralString] = """viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id IN (SELECT hit.context_id FROM hit)
)"""

_RESULT: Final[LiteralString] = """around AS (
    SELECT h.place, s.*
    FROM hit AS h
    CROSS JOIN LATERAL (
        (
            SELECT -row_number() OVER (ORDER BY n.version DESC) AS step, n.*
            FROM (
                SELECT n.*
                FROM lineage AS l
                CROSS JOIN LATERAL (
                    SELECT @message_columns FROM @messages AS m
                    WHERE @of_segment
                      AND m.version < h.version
                      AND @visible
                    ORDER BY m.version DESC
                    LIMIT $11
                ) AS n
                WHERE l.viewer = coalesce($13::uuid, h.context_id)
                ORDER BY n.version DESC
                LIMIT $11
            ) AS n
        )
        UNION ALL
        (
            SELECT row_number() OVER (ORDER BY n.version) AS step, n.*
            FROM (
                SELECT n.*
                FROM lineage AS l
                CROSS JOIN LATERAL (
                    SELECT @message_columns FROM @messages AS m
                    WHERE @of_segment
                      AND m.version > h.version
                      AND @visible
                    ORDER BY m.version
                    LIMIT $11
                ) AS n
                WHERE l.viewer = coalesce($13::uuid, h.context_id)
                ORDER BY n.version
                LIMIT $11
            ) AS n
        )
    ) AS s
    WHERE $11::integer > 0
)
SELECT s.place, s.step, s.distance, s.text_score, s.embedding, @shown_columns
FROM (
    SELECT hit.place, 0::bigint AS step, hit.distance, hit.text_score,
           CASE WHEN $12::boolean THEN hit.embedding::text END AS embedding,
           hit.id, hit.context_id, hit.version, hit.created_at, hit.role, hit.content,
           hit.tool_call_id, hit.tool_name, hit.token_count, hit.model, hit.payload,
           hit.idempotency_key, hit.embedding_model, hit.embedding_pending,
           NULL::timestamptz AS deleted_at
    FROM hit
    UNION ALL
    SELECT around.place, around.step, NULL, NULL, NULL,
           around.id, around.context_id, around.version, around.created_at, around.role,
           around.content, around.tool_call_id, around.tool_name, around.token_count, around.model,
           around.payload, around.idempotency_key, around.embedding_model,
           around.embedding_pending, NULL::timestamptz
    FROM around
) AS s
ORDER BY s.place, s.step"""

# What the query's words ask for; NULL when it has none but stop words. Once, not for each row.
_WORDS: Final[LiteralString] = """words AS MATERIALIZED (
    SELECT @text_query($2::text) AS query
)"""


def _search(statement: LiteralString) -> LiteralString:
    return compose(
        statement.replace("@filtered", _FILTERED)
        .replace("@context_viewer", _CONTEXT_VIEWER)
        .replace("@hit_viewers", _HIT_VIEWERS)
        .replace("@words", _WORDS)
        .replace("@result", _RESULT)
    )


# Exact: the distance to every embedding the context shows. The cast keeps the HNSW index out.
SEARCH_CONTEXT_VECTOR: Final[LiteralString] = _search("""
-- pgcontext.search_context_vector
WITH RECURSIVE @context_viewer,
@lineage,
near AS (
    SELECT s.*
    FROM lineage AS l
    CROSS JOIN LATERAL (
        SELECT @message_columns, m.embedding, m.embedding <=> $2::text::vector AS distance
        FROM @messages AS m
        WHERE @of_segment
          AND m.embedding IS NOT NULL
          AND m.embedding_model IS NOT DISTINCT FROM $10::text
          AND @filtered
          AND @visible
        OFFSET 0
    ) AS s
    WHERE $9::double precision IS NULL OR s.distance <= $9
    ORDER BY s.distance, s.version
    LIMIT $3::integer
),
hit AS MATERIALIZED (
    SELECT near.*, NULL::double precision AS text_score,
           row_number() OVER (ORDER BY near.distance, near.version) AS place
    FROM near
),
@result
""")

# Any of the words, best rank first.
SEARCH_CONTEXT_TEXT: Final[LiteralString] = _search("""
-- pgcontext.search_context_text
WITH RECURSIVE @words,
@context_viewer,
@lineage,
matching AS (
    SELECT s.*
    FROM words
    CROSS JOIN lineage AS l
    CROSS JOIN LATERAL (
        SELECT @message_columns, m.embedding, ts_rank(m.text_search, words.query) AS text_score
        FROM @messages AS m
        WHERE @of_segment
          AND m.text_search @@ words.query
          AND @filtered
          AND @visible
        OFFSET 0
    ) AS s
    WHERE $9::double precision IS NULL AND ($10::text IS NULL OR true)
    ORDER BY s.text_score DESC, s.version DESC
    LIMIT $3::integer
),
hit AS MATERIALIZED (
    SELECT matching.*, NULL::double precision AS distance,
           row_number() OVER (ORDER BY matching.text_score DESC, matching.version DESC) AS place
    FROM matching
),
@result
""")

# The HNSW index, asked for ten times as many as needed, then ordered by the exact distance.
SEARCH_TENANT_VECTOR: Final[LiteralString] = _search("""
-- pgcontext.search_tenant_vector
WITH RECURSIVE near AS (
    SELECT @message_columns, m.embedding, m.embedding <=> $2::text::vector AS distance
    FROM @nearest($1, $2::text::halfvec, $3::integer * 10, $10, $4, $5, $6, $7, $8) AS n
    JOIN @messages AS m ON m.tenant_id = $1 AND m.id = n.id
    WHERE $14::bigint IS NOT NULL
),
hit AS MATERIALIZED (
    SELECT near.*, NULL::double precision AS text_score,
           row_number() OVER (ORDER BY near.distance, near.created_at, near.version)
               AS place
    FROM near
    WHERE $9::double precision IS NULL OR near.distance <= $9
    ORDER BY near.distance, near.created_at, near.version
    LIMIT $3::integer
),
@hit_viewers,
@lineage,
@result
""")

SEARCH_TENANT_TEXT: Final[LiteralString] = _search("""
-- pgcontext.search_tenant_text
WITH RECURSIVE @words,
hit AS MATERIALIZED (
    SELECT @message_columns, m.embedding, NULL::double precision AS distance,
           ts_rank(m.text_search, words.query) AS text_score,
           row_number() OVER (
               ORDER BY ts_rank(m.text_search, words.query) DESC, m.id DESC
           ) AS place
    FROM words
    CROSS JOIN @messages AS m
    JOIN @contexts AS c ON c.tenant_id = $1 AND c.id = m.context_id AND c.deleted_at IS NULL
    WHERE m.tenant_id = $1
      AND m.text_search @@ words.query
      AND m.deleted_at IS NULL
      AND ($7::jsonb IS NULL OR c.metadata @> $7)
      AND $9::double precision IS NULL AND ($10::text IS NULL OR true)
      AND $14::bigint IS NOT NULL
      AND @filtered
    ORDER BY text_score DESC, m.id DESC
    LIMIT $3::integer
),
@hit_viewers,
@lineage,
@result
""")
