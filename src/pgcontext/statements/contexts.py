"""Statements about contexts themselves. $1 is the tenant in every statement."""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# $2 id, $3 name, $4 metadata, $5 expires_at. Returns the context.
CREATE: Final[LiteralString] = compose("""
-- pgcontext.create
INSERT INTO @contexts AS c (tenant_id, id, name, metadata, expires_at)
VALUES ($1, $2, $3, $4::jsonb, $5)
RETURNING @context_columns
""")

# $2 id, $3 also when deleted. By primary key.
GET: Final[LiteralString] = compose("""
-- pgcontext.get
SELECT @context_columns
FROM @contexts AS c
WHERE c.tenant_id = $1 AND c.id = $2 AND (c.deleted_at IS NULL OR $3)
""")

# $2 limit, $3 and $4 created_at and id of the last one seen (NULL at the start), $5 metadata to
# contain, $6 deleted ones too. Newest first, along contexts_newest_idx backwards.
LIST: Final[LiteralString] = compose("""
-- pgcontext.list
SELECT @context_columns
FROM @contexts AS c
WHERE c.tenant_id = $1
  AND ($3::timestamptz IS NULL OR (c.created_at, c.id) < ($3, $4::uuid))
  AND ($5::jsonb IS NULL OR c.metadata @> $5)
  AND (c.deleted_at IS NULL OR $6)
ORDER BY c.created_at DESC, c.id DESC
LIMIT $2
""")

# $2 id; then a flag and a value each: $3 $4 name, $5 $6 metadata, $7 $8 expires_at.
UPDATE: Final[LiteralString] = compose("""
-- pgcontext.update
UPDATE @contexts AS c
SET name = CASE WHEN $3 THEN $4::text ELSE c.name END,
    metadata = CASE WHEN $5 THEN $6::jsonb ELSE c.metadata END,
    expires_at = CASE WHEN $7 THEN $8::timestamptz ELSE c.expires_at END,
    updated_at = now()
WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
RETURNING @context_columns
""")

# $2 id. Its messages stay as they are; its forks do not notice.
DELETE: Final[LiteralString] = compose("""
-- pgcontext.delete
UPDATE @contexts AS c
SET deleted_at = now(), updated_at = now(), revision = c.revision + 1
WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
RETURNING @context_columns
""")

# $2 id. Restoring one that lives changes nothing, and gives it back all the same.
RESTORE: Final[LiteralString] = compose("""
-- pgcontext.restore
WITH restored AS (
    UPDATE @contexts AS c
    SET deleted_at = NULL, updated_at = now(), revision = c.revision + 1
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NOT NULL
    RETURNING @context_columns
)
SELECT @context_columns FROM restored AS c
UNION ALL
SELECT @context_columns FROM @contexts AS c
WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
  AND NOT EXISTS (SELECT FROM restored)
""")

# $2 parent, $3 id, $4 name, $5 metadata. Returns the fork; no row when there is no parent.
#
# At the head nothing needs to be counted: version, revision and counters are those of the parent's
# row, all of one moment. It is locked FOR KEY SHARE: appends go on beside it, an erasure waits, and
# is waited for. No message is read or written.
FORK: Final[LiteralString] = compose("""
-- pgcontext.fork
WITH parent AS (
    SELECT c.id, c.revision, c.latest_version, c.message_count, c.total_tokens
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    FOR KEY SHARE
)
INSERT INTO @contexts AS c (
    tenant_id, id, name, metadata, parent_id, fork_version, fork_revision, latest_version,
    message_count, total_tokens
)
SELECT $1, $3, $4, $5::jsonb, p.id, p.latest_version, p.revision, p.latest_version,
       p.message_count, p.total_tokens
FROM parent AS p
RETURNING @context_columns
""")

# $2 parent, $3 version, $4 id, $5 name, $6 metadata.
# Returns the fork's columns and the parent's latest_version; the fork is NULL when the version is
# beyond the end, or when the parent changed between the snapshot and the lock (`stale`).
#
# Counts the shorter side of the cut, under the same lock. No message is written.
FORK_AT: Final[LiteralString] = compose("""
-- pgcontext.fork
WITH RECURSIVE parent AS MATERIALIZED (
    SELECT c.id, c.revision, c.latest_version, c.message_count, c.total_tokens
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    FOR KEY SHARE
),
viewer AS (
    SELECT @viewer_columns, cut.from_end,
           CASE WHEN cut.from_end THEN c.latest_version ELSE $3 END AS cap,
           CASE WHEN cut.from_end THEN $3 ELSE 0 END AS floor
    FROM @contexts AS c
    CROSS JOIN LATERAL (SELECT $3::bigint >= c.latest_version - $3 AS from_end) AS cut
    WHERE c.tenant_id = $1 AND c.id = $2
),
@lineage,
counted AS (
    SELECT count(m.token_count) AS messages, coalesce(sum(m.token_count), 0) AS tokens
    FROM lineage AS l
    CROSS JOIN LATERAL (
        SELECT m.token_count FROM @messages AS m
        WHERE @of_segment
          AND @visible
        OFFSET 0
    ) AS m
),
fork AS (
    INSERT INTO @contexts AS c (
        tenant_id, id, name, metadata, parent_id, fork_version, fork_revision, latest_version,
        message_count, total_tokens
    )
    SELECT $1, $4, $5, $6::jsonb, p.id, $3, p.revision, $3,
           CASE WHEN v.from_end THEN p.message_count - n.messages ELSE n.messages END,
           CASE WHEN v.from_end THEN p.total_tokens - n.tokens ELSE n.tokens END
    FROM parent AS p
    JOIN viewer AS v ON v.revision = p.revision AND p.latest_version >= $3
    CROSS JOIN counted AS n
    RETURNING @context_columns
)
SELECT p.latest_version AS parent_version, p.revision <> v.revision AS stale, @context_columns
FROM parent AS p
CROSS JOIN viewer AS v
LEFT JOIN fork AS c ON true
""")

# $2 id, $3 depth at most. Root first, the context itself last; deleted ancestors too.
ANCESTORS: Final[LiteralString] = compose("""
-- pgcontext.lineage
WITH RECURSIVE path AS (
    SELECT 0 AS depth, c.id, c.parent_id
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    UNION ALL
    SELECT p.depth + 1, c.id, c.parent_id
    FROM path AS p
    CROSS JOIN LATERAL (
        SELECT c.id, c.parent_id FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.id = p.parent_id
        LIMIT 1
    ) AS c
    WHERE p.depth < $3::integer
)
SELECT @context_columns
FROM path AS p JOIN @contexts AS c ON c.tenant_id = $1 AND c.id = p.id
ORDER BY p.depth DESC
""")

# $2 id, $3 recursive, $4 limit. Oldest first. Goes on below deleted forks, lists the live ones.
# The context itself is the first row, so that none at all means it was not found.
FORKS: Final[LiteralString] = compose("""
-- pgcontext.forks
WITH RECURSIVE tree AS (
    SELECT 0 AS depth, c.id
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    UNION ALL
    SELECT t.depth + 1, c.id
    FROM tree AS t
    CROSS JOIN LATERAL (
        SELECT c.id FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.parent_id = t.id
        OFFSET 0
    ) AS c
    WHERE t.depth = 0 OR $3
)
SELECT @context_columns
FROM tree AS t JOIN @contexts AS c ON c.tenant_id = $1 AND c.id = t.id
WHERE c.deleted_at IS NULL
ORDER BY t.depth > 0, c.created_at, c.id
LIMIT $4
""")

# $2 id. Locks the context for a statement that found its snapshot older than its lock.
LOCK: Final[LiteralString] = compose("""
-- pgcontext.lock
SELECT c.id FROM @contexts AS c
WHERE c.tenant_id = $1 AND c.id = $2
FOR NO KEY UPDATE
""")
