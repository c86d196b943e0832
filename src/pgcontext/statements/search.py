"""Statements of search. $1 is the tenant.

There are twelve: over what one context shows, or over the tenant's live messages; by vector, by
text, or by both; with the messages around each hit, or without. All take the parameters that
`@parameters` lists, so that they can be called alike, and are made of the same pieces:

`near`: the nearest messages (`id`, `distance`), exact within a context, by `pgcontext_nearest` over
the tenant. `shortlist`: the best of those that match the words (`id`), by `pgcontext_matching` over
the tenant. `found`: either, or both.
`candidate`: the messages found, with what their score is made of. `scored`: with their `score`.
`hit`: the best of them. `around`: the messages that are shown before and after each.

They return one row a hit (`place` 1, 2, …, `step` 0) and one a neighbor (its hit's `place`, and
the `step` before or after it), with distance, text_score, score, by_vector, by_text and embedding
where they apply. How words are ranked, and how both are fused, was measured: docs/adr/0015.
"""

from typing import Final, Literal, LiteralString, TypeAlias

from pgcontext.statements import ranking
from pgcontext.statements.fragments import compose

_Mode: TypeAlias = Literal["vector", "text", "hybrid"]

# Never carried out; here each parameter has its type, whatever a statement makes of it.
_PARAMETERS: Final[LiteralString] = """parameters AS (
    SELECT $2::text AS embedding, $3::text AS words, $4::integer AS hits, $5::text[] AS roles,
           $6::timestamptz AS since, $7::timestamptz AS until, $8::jsonb AS metadata,
           $9::text AS model, $10::double precision AS max_distance,
           $11::text AS embedding_model, $12::integer AS neighbors,
           $13::boolean AS with_embeddings, $14::uuid AS context_id, $15::bigint AS version_max,
           $16::integer AS exact_rows
)"""

_FILTERED: Final[LiteralString] = """($5::text[] IS NULL OR m.role = ANY ($5))
          AND ($6::timestamptz IS NULL OR m.created_at >= $6)
          AND ($7::timestamptz IS NULL OR m.created_at < $7)
          AND ($9::text IS NULL OR m.model = $9)"""

_CONTEXT_VIEWER: Final[LiteralString] = """viewer AS (
    SELECT @viewer_columns, $15::bigint AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $14::uuid AND c.deleted_at IS NULL
      AND ($8::jsonb IS NULL OR c.metadata @> $8)
)"""

# Over the tenant the messages around a hit are those its own context shows.
_HIT_VIEWERS: Final[LiteralString] = """viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id IN (SELECT hit.context_id FROM hit)
)"""

# Read once: a plan that serves all calls would read a parameter's text again for each row.
_ASKED: Final[LiteralString] = """asked AS MATERIALIZED (SELECT $2::text::vector AS embedding)"""

# Exact: the distance to every embedding the context shows. The cast keeps the HNSW index out. What
# is at no distance, like a vector of zeros that SQL stored, is beyond 2: NaN is above all numbers.
_NEAR_IN_CONTEXT: Final[LiteralString] = """near AS MATERIALIZED (
    SELECT s.id, s.distance
    FROM asked
    CROSS JOIN lineage AS l
    CROSS JOIN LATERAL (
        SELECT m.id, m.version, m.embedding <=> asked.embedding AS distance
        FROM @messages AS m
        WHERE @of_segment
          AND m.embedding IS NOT NULL
          AND m.embedding_model IS NOT DISTINCT FROM $11::text
          AND @filtered
          AND @visible
        OFFSET 0
    ) AS s
    WHERE s.distance <= coalesce($10::double precision, 2)
    ORDER BY s.distance, s.version
    LIMIT @near_count
)"""

_NEAR_IN_TENANT: Final[LiteralString] = """near AS MATERIALIZED (
    SELECT n.id, n.distance
    FROM asked
    CROSS JOIN LATERAL @nearest(
        $1, asked.embedding, @near_count, $4::integer, $16::integer, $11::text, $5::text[],
        $6::timestamptz, $7::timestamptz, $8::jsonb, $9::text
    ) AS n
    WHERE $10::double precision IS NULL OR n.distance <= $10
)"""

# What the query's words ask for, and each of its words as a query; NULL when it has none but stop
# words. Once, not for each row. The longest first, as tsquery are ordered: where not all are looked
# up, those that tell the most are.
_WORDS: Final[LiteralString] = r"""words AS MATERIALIZED (
    SELECT q.query, ARRAY(
        SELECT DISTINCT found[1]::tsquery
        FROM regexp_matches(q.query::text, $re$('(?:[^']|'')*'(?::\*)?)$re$, 'g') AS found
        ORDER BY found[1]::tsquery DESC
    ) AS terms
    FROM (SELECT @text_query($3::text) AS query OFFSET 0) AS q
)"""

# The best by PostgreSQL's rank, less for texts of many words. It doesn't know how rare a word is:
# all that have a word that few have come along, so that an identifier isn't lost among what shares
# the rest of the query.
_SHORTLIST_IN_CONTEXT: Final[LiteralString] = """matching AS MATERIALIZED (
    SELECT s.*
    FROM words
    CROSS JOIN lineage AS l
    CROSS JOIN LATERAL (
        SELECT m.id, m.version, m.text_search
        FROM @messages AS m
        WHERE @of_segment
          AND m.text_search @@ words.query
          AND @filtered
          AND @visible
        OFFSET 0
    ) AS s
),
shortlist AS MATERIALIZED (
    (
        SELECT s.id
        FROM words CROSS JOIN matching AS s
        ORDER BY @rank DESC, s.version DESC
        LIMIT @shortlist_count
    )
    UNION
    SELECT s.id
    FROM words
    CROSS JOIN unnest(words.terms[1:@rare_terms]) AS t (term)
    CROSS JOIN LATERAL (
        SELECT s.id, count(*) OVER () AS messages
        FROM (SELECT s.id FROM matching AS s WHERE s.text_search @@ t.term LIMIT @rare_rows) AS s
    ) AS s
    WHERE s.messages < @rare_rows
      AND (SELECT count(*) FROM matching) > @shortlist_count
)"""

_SHORTLIST_IN_TENANT: Final[LiteralString] = """shortlist AS MATERIALIZED (
    SELECT p.id
    FROM words
    CROSS JOIN LATERAL @matching(
        $1, words.query, words.terms, @shortlist_count, $5::text[], $6::timestamptz,
        $7::timestamptz, $8::jsonb, $9::text
    ) AS p
    WHERE words.query IS NOT NULL
)"""

# A word counts by how rare it is among the shortlist; what was found by its vector is rated alike.
_RATED: Final[LiteralString] = """weight AS MATERIALIZED (
    SELECT r.ordinal, ln(1 + n.messages / count(*)::double precision) AS weight
    FROM candidate
    CROSS JOIN unnest(candidate.ranks) WITH ORDINALITY AS r (rank, ordinal)
    CROSS JOIN (SELECT count(*) AS messages FROM shortlist) AS n
    WHERE candidate.by_text AND r.rank > 0
    GROUP BY r.ordinal, n.messages
),
rated AS (
    SELECT candidate.*, @share AS text_score
    FROM candidate
    CROSS JOIN LATERAL (
        SELECT sum(weight.weight * candidate.ranks[weight.ordinal]) / sum(weight.weight) AS rank
        FROM weight
    ) AS share
)"""

_SCORED: Final[dict[_Mode, LiteralString]] = {
    "vector": """scored AS (
    SELECT candidate.*, NULL::double precision AS text_score, 1 - candidate.distance AS score
    FROM candidate
)""",
    "text": """@rated,
scored AS (SELECT rated.*, rated.text_score AS score FROM rated)""",
    # The nearest of all counts 1, the farthest 0, whatever the range of the model's distances;
    # words count by how much of what the query asks for is there, so that an accidental match
    # stays small. What has no embedding of this model, or not yet, counts as near as its
    # words rank.
    "hybrid": """@rated,
scored AS (
    SELECT rated.*, 0.7 * coalesce(rated.text_score, 0) + 0.3 * CASE
               WHEN rated.distance IS NULL THEN cume_dist() OVER by_words
               ELSE coalesce(
                   (max(rated.distance) OVER () - rated.distance)
                   / nullif(max(rated.distance) OVER () - min(rated.distance) OVER (), 0), 1
               )
           END AS score
    FROM rated
    WHERE $10::double precision IS NULL OR rated.distance <= $10
    WINDOW by_words AS (PARTITION BY rated.text_score IS NULL ORDER BY rated.text_score)
)""",
}

_FOUND: Final[dict[_Mode, LiteralString]] = {
    "vector": """found AS (
    SELECT near.id, near.distance, true AS by_vector, false AS by_text FROM near
)""",
    "text": """found AS (
    SELECT shortlist.id, NULL::double precision AS distance, false AS by_vector, true AS by_text
    FROM shortlist
)""",
    "hybrid": """found AS (
    SELECT id, near.distance, near.id IS NOT NULL AS by_vector, shortlist.id IS NOT NULL AS by_text
    FROM near FULL JOIN shortlist USING (id)
)""",
}

# By key: a join would be made over all that the tenant has.
_CANDIDATE: Final[LiteralString] = """candidate AS MATERIALIZED (
    SELECT @message_columns, m.embedding, found.by_vector, found.by_text,
           @distance AS distance@text_columns
    FROM found
    CROSS JOIN LATERAL (
        SELECT m.* FROM @messages AS m WHERE m.tenant_id = $1 AND m.id = found.id LIMIT 1
    ) AS m
    @text_join
)"""

# Of what was found by its words alone the distance is looked up.
_DISTANCE: Final[LiteralString] = """CASE
               WHEN found.by_vector THEN found.distance
               WHEN m.embedding_model IS NOT DISTINCT FROM $11::text
               THEN nullif(m.embedding <=> (SELECT asked.embedding FROM asked), 'NaN')
           END"""

# A long text is fetched from where it is stored at each use: so it is once, and not for each word.
_TEXT_JOIN: Final[LiteralString] = """CROSS JOIN words
    CROSS JOIN LATERAL (SELECT m.text_search || '' AS text_search OFFSET 0) AS said"""

_TEXT_COLUMNS: Final[LiteralString] = """, length(said.text_search) AS word_count,
           CASE WHEN said.text_search @@ words.query THEN ARRAY(
               SELECT ts_rank(said.text_search, t.term)
               FROM unnest(words.terms) WITH ORDINALITY AS t (term, ordinal)
               ORDER BY t.ordinal
           ) END AS ranks"""

_HIT: Final[LiteralString] = """hit AS MATERIALIZED (
    SELECT scored.*, row_number() OVER (ORDER BY @best) AS place
    FROM scored
    ORDER BY @best
    LIMIT $4::integer
)"""

_AROUND: Final[LiteralString] = """around AS (
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
                    LIMIT $12
                ) AS n
                WHERE l.viewer = coalesce($14::uuid, h.context_id)
                ORDER BY n.version DESC
                LIMIT $12
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
                    LIMIT $12
                ) AS n
                WHERE l.viewer = coalesce($14::uuid, h.context_id)
                ORDER BY n.version
                LIMIT $12
            ) AS n
        )
    ) AS s
)"""

_RESULT: Final[
    LiteralString
] = """SELECT s.place, s.step, s.distance, s.text_score, s.score, s.by_vector, s.by_text,
       s.embedding, @shown_columns
FROM (
    SELECT hit.place, 0::bigint AS step, hit.distance, hit.text_score, hit.score, hit.by_vector,
           hit.by_text, CASE WHEN $13::boolean THEN hit.embedding::text END AS embedding,
           hit.id, hit.context_id, hit.version, hit.created_at, hit.role, hit.content,
           hit.tool_call_id, hit.tool_name, hit.token_count, hit.model, hit.payload,
           hit.idempotency_key, hit.embedding_model, hit.embedding_pending,
           NULL::timestamptz AS deleted_at
    FROM hit
    @and_around
) AS s
ORDER BY s.place, s.step"""

_AND_AROUND: Final[LiteralString] = """UNION ALL
    SELECT around.place, around.step, NULL, NULL, NULL, NULL, NULL, NULL,
           around.id, around.context_id, around.version, around.created_at, around.role,
           around.content, around.tool_call_id, around.tool_name, around.token_count, around.model,
           around.payload, around.idempotency_key, around.embedding_model,
           around.embedding_pending, NULL::timestamptz
    FROM around"""

_IN_CONTEXT: Final[LiteralString] = """
-- pgcontext.search_context_@mode
WITH RECURSIVE @parameters,
@context_viewer,
@lineage,
@pieces,
@found,
@candidate,
@scored,
@hit@around
@result
"""

_IN_TENANT: Final[LiteralString] = """
-- pgcontext.search_tenant_@mode
WITH RECURSIVE @parameters,
@pieces,
@found,
@candidate,
@scored,
@hit@around
@result
"""


# By mode: what is looked for, how many of the nearest, and which of two hits comes first.
_PIECES: Final[dict[_Mode, LiteralString]] = {
    "vector": "@asked,\n@near_piece",
    "text": "@words,\n@shortlist_piece",
    "hybrid": "@asked,\n@words,\n@near_piece,\n@shortlist_piece",
}
_NEAR_COUNT: Final[dict[_Mode, LiteralString]] = {
    "vector": "$4::integer",
    "text": "0",
    "hybrid": "greatest(100, $4::integer)",
}
_BEST: Final[dict[_Mode, LiteralString]] = {
    "vector": "scored.distance, scored.created_at, scored.version",
    "text": "scored.score DESC, scored.created_at DESC, scored.version DESC",
    "hybrid": "scored.score DESC, scored.created_at DESC, scored.version DESC",
}


def _search(
    statement: LiteralString,
    mode: _Mode,
    *,
    near: LiteralString,
    shortlist: LiteralString,
    around: LiteralString,
) -> LiteralString:
    """Put the pieces of a mode together, `near` and `shortlist` made in these ways.

    `around` is empty where no neighbors are asked for: planning for them would take longer than
    many a search.
    """
    by_text = mode != "vector"
    by_both = mode == "hybrid"
    pieces: tuple[tuple[LiteralString, LiteralString], ...] = (
        ("@mode", mode),
        ("@pieces", _PIECES[mode]),
        ("@near_piece", near),
        ("@shortlist_piece", shortlist),
        ("@near_count", _NEAR_COUNT[mode]),
        ("@shortlist_count", "greatest(" + ranking.SHORTLIST + ", $4::integer)"),
        ("@rare_rows", ranking.RARE_ROWS_MAX),
        ("@rare_terms", ranking.RARE_TERMS_MAX),
        ("@rank", ranking.rank_of("s.text_search", "words.query")),
        ("@words", _WORDS),
        ("@found", _FOUND[mode]),
        ("@candidate", _CANDIDATE),
        ("@distance", _DISTANCE if by_both else "found.distance"),
        ("@text_columns", _TEXT_COLUMNS if by_text else ""),
        ("@text_join", _TEXT_JOIN if by_text else ""),
        ("@scored", _SCORED[mode]),
        ("@rated", _RATED),
        ("@share", ranking.by_length("share.rank * 10", "candidate.word_count")),
        ("@context_viewer", _CONTEXT_VIEWER),
        ("@around", around),
        ("@hit_viewers", _HIT_VIEWERS),
        ("@hit", _HIT),
        ("@best", _BEST[mode]),
        ("@result", _RESULT),
        ("@and_around", _AND_AROUND if around else ""),
        ("@parameters", _PARAMETERS),
        ("@filtered", _FILTERED),
        ("@asked", _ASKED),
    )
    for mark, text in pieces:
        statement = statement.replace(mark, text)
    return compose(statement)


def _in_context(mode: _Mode, *, around: bool = False) -> LiteralString:
    return _search(
        _IN_CONTEXT,
        mode,
        near=_NEAR_IN_CONTEXT,
        shortlist=_SHORTLIST_IN_CONTEXT,
        around=",\n" + _AROUND if around else "",
    )


def _in_tenant(mode: _Mode, *, around: bool = False) -> LiteralString:
    return _search(
        _IN_TENANT,
        mode,
        near=_NEAR_IN_TENANT,
        shortlist=_SHORTLIST_IN_TENANT,
        around=",\n@hit_viewers,\n@lineage,\n" + _AROUND if around else "",
    )


SEARCH_CONTEXT_VECTOR: Final[LiteralString] = _in_context("vector")
SEARCH_CONTEXT_VECTOR_AROUND: Final[LiteralString] = _in_context("vector", around=True)
SEARCH_CONTEXT_TEXT: Final[LiteralString] = _in_context("text")
SEARCH_CONTEXT_TEXT_AROUND: Final[LiteralString] = _in_context("text", around=True)
SEARCH_CONTEXT_HYBRID: Final[LiteralString] = _in_context("hybrid")
SEARCH_CONTEXT_HYBRID_AROUND: Final[LiteralString] = _in_context("hybrid", around=True)
SEARCH_TENANT_VECTOR: Final[LiteralString] = _in_tenant("vector")
SEARCH_TENANT_VECTOR_AROUND: Final[LiteralString] = _in_tenant("vector", around=True)
SEARCH_TENANT_TEXT: Final[LiteralString] = _in_tenant("text")
SEARCH_TENANT_TEXT_AROUND: Final[LiteralString] = _in_tenant("text", around=True)
SEARCH_TENANT_HYBRID: Final[LiteralString] = _in_tenant("hybrid")
SEARCH_TENANT_HYBRID_AROUND: Final[LiteralString] = _in_tenant("hybrid", around=True)
