"""Statements about embeddings that come after their messages: left for later, or moved.

$1 is the tenant. `embed_after` says that a message's embedding is owed, and from when on a worker
may claim it. A claim is nothing but that moment put off: who dies leaves nothing to be cleared up.
"""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# $2 messages at most, $3 seconds for which they are the worker's own, $4 bytes of content at which
# no further one is taken. Returns id and content of what was claimed, and until when, which is the
# same for all; no row: nothing is due.
#
# Along messages_pending_idx, the longest owed first, also what is hidden: it may be restored. What
# another worker is claiming at this moment is locked, and skipped. Only rows without an embedding
# are touched, so no vector index is.
EMBED_CLAIM: Final[LiteralString] = compose("""
-- pgcontext.embed_claim
WITH due AS MATERIALIZED (
    SELECT m.id, m.embed_after, octet_length(m.content) AS bytes
    FROM @messages AS m
    WHERE m.tenant_id = $1 AND m.embed_after <= now()
    ORDER BY m.embed_after
    LIMIT $2
    FOR UPDATE SKIP LOCKED
),
measured AS (
    SELECT due.id,
           sum(due.bytes) OVER (ORDER BY due.embed_after, due.id) - due.bytes AS bytes_before
    FROM due
)
UPDATE @messages AS m
SET embed_after = now() + make_interval(secs => $3)
FROM measured
WHERE measured.bytes_before < $4::bigint AND m.tenant_id = $1 AND m.id = measured.id
RETURNING m.id, m.content, m.embed_after
""")

# $2 a JSON array of id and embedding, $3 their model. Returns how many were written. A message that
# comes without one, since there is nothing to embed, owes none any more.
#
# Only what is still owed: a message that was erased meanwhile, or filled by another worker after
# the claim ran out, is left alone. Content never changes, so a late vector is as good as any.
EMBED_FILL: Final[LiteralString] = compose("""
-- pgcontext.embed_fill
WITH filled AS (
    UPDATE @messages AS m
    SET embedding = f.embedding::vector, embed_after = NULL,
        embedding_model = CASE WHEN f.embedding IS NOT NULL THEN $3::text END
    FROM json_to_recordset($2::json) AS f (id uuid, embedding text)
    WHERE m.tenant_id = $1 AND m.id = f.id AND m.embed_after IS NOT NULL
    RETURNING f.embedding IS NOT NULL AS is_embedded
)
SELECT count(*) FILTER (WHERE filled.is_embedded) AS messages FROM filled
""")

# $2 ids, $3 until when they are claimed, $4 and $5 seconds. Gives claimed messages back: claimable
# again after as long as they have existed, but $4 at least and $5 at most. So what fails again and
# again is tried ever more seldom. What another worker claimed since is not touched.
EMBED_RELEASE: Final[LiteralString] = compose("""
-- pgcontext.embed_release
UPDATE @messages AS m
SET embed_after = now() + least(
    greatest(now() - m.created_at, make_interval(secs => $4)), make_interval(secs => $5)
)
WHERE m.tenant_id = $1 AND m.id = ANY ($2::text[]::uuid[]) AND m.embed_after = $3::timestamptz
""")

# Returns how many embeddings are owed: `due` now, and `later`. messages_pending_idx alone.
EMBED_OWED: Final[LiteralString] = compose("""
-- pgcontext.embed_owed
SELECT count(*) FILTER (WHERE m.embed_after <= now()) AS due,
       count(*) FILTER (WHERE m.embed_after > now()) AS later
FROM @messages AS m
WHERE m.tenant_id = $1 AND m.embed_after IS NOT NULL
""")

# What is no blank, as a regular expression: blanks are what `str.isspace` says, in any locale.
MEANING: Final[LiteralString] = (
    r"[^\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
)

# What an embedding of another model is: one that the model $2 did not make and could make anew.
# One without a model's name counts if $3. Of most texts the first character tells that there is
# something to embed; to search one for it, all of it has to be fetched.
_OTHERS: Final[LiteralString] = (
    """m.embedding IS NOT NULL
      AND m.embedding_model IS DISTINCT FROM $2::text
      AND ($3::boolean OR m.embedding_model IS NOT NULL)
      AND (left(m.content, 1) ~ '@meaning' OR m.content ~ '@meaning')"""
).replace("@meaning", MEANING)

# $2 model, $3 those without a name too, $4 the first id to look at, $5 messages to look at, $6
# messages to return, $7 bytes of content at which no further one is returned.
# Returns, in the order of their ids, id, content and model of those that another model embedded;
# and a last row of NULLs with the last id looked at, unless there was nothing to look at. By
# primary key: where to go on is a key, and a statement is bounded also where nothing is found.
EMBED_OTHERS: Final[LiteralString] = compose(
    """
-- pgcontext.embed_others
WITH looked_at AS MATERIALIZED (
    SELECT m.id, m.embedding_model, @others AS is_other, octet_length(m.content) AS bytes
    FROM @messages AS m
    WHERE m.tenant_id = $1 AND m.id >= $4::uuid
    ORDER BY m.id
    LIMIT $5
),
measured AS (
    SELECT l.id, l.embedding_model, l.is_other,
           count(*) FILTER (WHERE l.is_other) OVER before AS others_before,
           coalesce(sum(l.bytes) FILTER (WHERE l.is_other) OVER before, 0) AS bytes_before
    FROM looked_at AS l
    WINDOW before AS (ORDER BY l.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
taken AS (
    SELECT measured.* FROM measured
    WHERE measured.others_before < $6::bigint AND measured.bytes_before < $7::bigint
)
SELECT t.id, s.content, t.embedding_model, NULL::uuid AS last_id
FROM taken AS t
CROSS JOIN LATERAL (
    SELECT m.content FROM @messages AS m WHERE m.tenant_id = $1 AND m.id = t.id LIMIT 1
) AS s
WHERE t.is_other
UNION ALL
(SELECT NULL, NULL, NULL, t.id FROM taken AS t ORDER BY t.id DESC LIMIT 1)
ORDER BY id NULLS LAST
""".replace("@others", _OTHERS)
)

# $2 model, $3 those without a name too. Returns how many such embeddings there are; reads all of
# the tenant's messages.
EMBED_OTHERS_COUNT: Final[LiteralString] = compose(
    """
-- pgcontext.embed_others_count
SELECT count(*) AS messages
FROM @messages AS m
WHERE m.tenant_id = $1 AND @others
""".replace("@others", _OTHERS)
)

# $2 a JSON array of id, embedding and the model it replaces, $3 the new model. Returns how many
# were written.
#
# Vector and model change in one row version, so a message always has one that fits the other. Only
# where the old model's is still there: what was erased, or moved by another, is left alone.
EMBED_REPLACE: Final[LiteralString] = compose("""
-- pgcontext.embed_replace
WITH replaced AS (
    UPDATE @messages AS m
    SET embedding = f.embedding::vector, embedding_model = $3
    FROM json_to_recordset($2::json) AS f (id uuid, embedding text, replaced_model text)
    WHERE m.tenant_id = $1 AND m.id = f.id AND m.embedding IS NOT NULL
      AND m.embedding_model IS NOT DISTINCT FROM f.replaced_model
    RETURNING m.id
)
SELECT count(*) AS messages FROM replaced
""")
