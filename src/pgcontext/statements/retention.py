"""Statements of purge and erase. $1 is the tenant.

Both ask which contexts show a message, and so look from its owner down the forks. `@shown_below`
is that path: one row a context below (and including) each context in `origin`, with the highest
version of the origin that it inherits, and, as in `@lineage`, who hides what up to which revision.
"""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

BELOW: Final[LiteralString] = """below AS (
    SELECT o.id AS root, c.id, c.latest_version AS hi,
           '{}'::uuid[] AS above, '{}'::bigint[] AS above_as_ofs
    FROM origin AS o
    JOIN @contexts AS c ON c.tenant_id = $1 AND c.id = o.id
    UNION ALL
    SELECT b.root, c.id, least(b.hi, c.fork_version),
           b.above || b.id, b.above_as_ofs || c.fork_revision
    FROM below AS b
    CROSS JOIN LATERAL (
        SELECT c.id, c.fork_version, c.fork_revision
        FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.parent_id = b.id
        OFFSET 0
    ) AS c
    WHERE least(b.hi, c.fork_version) > 0
)"""

# What `@visible` needs to know of them, as the viewers that they are.
AS_VIEWERS: Final[LiteralString] = """
        SELECT b.root, b.id, b.hi, true AS hides_any,
               b.above || b.id AS hiders, b.above_as_ofs || 9223372036854775807 AS as_ofs
        FROM below AS b
    """


def _retention(statement: LiteralString) -> LiteralString:
    return compose(statement.replace("@below_as_viewers", AS_VIEWERS).replace("@below", BELOW))


# $2 contexts. Locks them and every context below them, in the order of their ids. FOR UPDATE waits
# for forks that are under way, and keeps new ones out until the commit.
LOCK_TREES: Final[LiteralString] = compose("""
-- pgcontext.lock_trees
WITH RECURSIVE tree AS (
    SELECT o.id FROM unnest($2::text[]::uuid[]) AS o (id)
    UNION
    SELECT c.id
    FROM tree AS t
    CROSS JOIN LATERAL (
        SELECT c.id FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.parent_id = t.id
        OFFSET 0
    ) AS c
)
SELECT c.id
FROM @contexts AS c
WHERE c.tenant_id = $1 AND c.id = ANY (ARRAY(SELECT tree.id FROM tree)) -- by key, not by hash
ORDER BY c.id
FOR UPDATE
""")

# $2 context, $3 versions or NULL for all it wrote. Returns the contexts that own them.
ERASE_OWNERS: Final[LiteralString] = compose("""
-- pgcontext.erase_owners
WITH RECURSIVE viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2
),
@lineage
SELECT l.id
FROM lineage AS l
WHERE CASE WHEN $3::text[] IS NULL THEN l.depth = 0 ELSE EXISTS (
    SELECT FROM unnest($3::text[]::bigint[]) AS w (version)
    WHERE w.version > l.lo AND w.version <= l.hi
) END
""")

# $2 context, $3 versions or NULL. Runs under the locks of LOCK_TREES.
# Returns missing (the versions that the view does not have; nothing is changed if there are any),
# messages and contexts. No row: no such context.
#
# An erased message keeps its row and version. A tombstone with revision 0 at its owner hides it
# in every view, also in forks made before.
ERASE: Final[LiteralString] = _retention("""
-- pgcontext.erase
WITH RECURSIVE viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, 0::bigint AS floor,
           c.deleted_at IS NOT NULL AND c.name IS NULL AND c.metadata = '{}' AS bare
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2
),
@lineage,
wanted AS (
    SELECT DISTINCT w.version FROM unnest($3::text[]::bigint[]) AS w (version)
    WHERE $3 IS NOT NULL
    UNION ALL
    SELECT m.version FROM @messages AS m
    WHERE $3 IS NULL AND m.tenant_id = $1 AND m.context_id = $2
),
member AS MATERIALIZED (
    SELECT s.*
    FROM wanted AS w
    JOIN lineage AS l ON w.version > l.lo AND w.version <= l.hi
    CROSS JOIN LATERAL (
        SELECT m.id, m.context_id, m.version, m.token_count, EXISTS (
            SELECT FROM @tombstones AS t
            WHERE t.tenant_id = $1 AND t.context_id = l.id AND t.version = m.version
              AND t.revision = 0
        ) AS erased
        FROM @messages AS m
        WHERE m.tenant_id = $1 AND m.context_id = l.id AND m.version = w.version
          AND (@in_view OR EXISTS (
            SELECT FROM @tombstones AS t
            WHERE t.tenant_id = $1 AND t.context_id = l.id AND t.version = m.version
              AND t.revision = 0
          ))
        LIMIT 1
    ) AS s
),
missing AS (
    SELECT coalesce(array_agg(w.version::text ORDER BY w.version), '{}') AS versions
    FROM wanted AS w
    WHERE NOT EXISTS (SELECT FROM member WHERE member.version = w.version)
),
target AS (
    SELECT member.*
    FROM member CROSS JOIN missing
    WHERE missing.versions = '{}' AND NOT member.erased
),
origin AS (SELECT DISTINCT target.context_id AS id FROM target),
@below,
showing AS (
    SELECT l.id, count(*) AS messages, sum(m.token_count) AS tokens
    FROM target AS m
    JOIN (@below_as_viewers) AS l ON l.root = m.context_id AND m.version <= l.hi
    WHERE @visible
    GROUP BY l.id
),
emptied AS (
    UPDATE @messages AS m
    SET content = NULL, payload = NULL, tool_call_id = NULL, tool_name = NULL, model = NULL,
        token_count = 0, embedding = NULL, embedding_model = NULL, embed_after = NULL,
        deleted_at = coalesce(m.deleted_at, now())
    FROM target
    WHERE m.tenant_id = $1 AND m.id = target.id
),
hidden AS (
    INSERT INTO @tombstones AS t (tenant_id, context_id, version, revision)
    SELECT $1, target.context_id, target.version, 0 FROM target
    ON CONFLICT (tenant_id, context_id, version) WHERE restored_revision IS NULL
    DO UPDATE SET revision = 0
),
changed AS (
    UPDATE @contexts AS c
    SET message_count = c.message_count - n.messages,
        total_tokens = c.total_tokens - n.tokens,
        revision = c.revision + 1,
        updated_at = now(),
        name = CASE WHEN n.whole THEN NULL ELSE c.name END,
        metadata = CASE WHEN n.whole THEN '{}' ELSE c.metadata END,
        deleted_at = CASE WHEN n.whole THEN coalesce(c.deleted_at, now()) ELSE c.deleted_at END
    FROM (
        SELECT s.id, sum(s.messages)::integer AS messages, sum(s.tokens)::bigint AS tokens,
               bool_or(s.whole) AS whole
        FROM (
            SELECT showing.id, showing.messages, showing.tokens, false AS whole FROM showing
            UNION ALL
            SELECT viewer.id, 0, 0, true FROM viewer
            WHERE $3 IS NULL AND ((SELECT count(*) FROM target) > 0 OR NOT viewer.bare)
        ) AS s
        GROUP BY s.id
    ) AS n
    WHERE c.tenant_id = $1 AND c.id = n.id
)
SELECT missing.versions AS missing, (SELECT count(*) FROM target) AS messages,
       (SELECT count(*) FROM showing) AS contexts
FROM viewer CROSS JOIN missing
""")

# $2 seconds, $3 the last id of the batch before, $4 contexts at most. Returns the next contexts, in
# the order of their ids, that were deleted or had expired that long ago, or that hid messages of
# their own that long ago.
PURGE_OWNERS: Final[LiteralString] = compose("""
-- pgcontext.purge_owners
WITH cutoff AS (SELECT now() - make_interval(secs => $2) AS moment)
SELECT o.id
FROM (
    SELECT c.id FROM @contexts AS c CROSS JOIN cutoff
    WHERE c.tenant_id = $1
      AND (c.deleted_at <= cutoff.moment OR c.expires_at <= cutoff.moment)
      -- One that was emptied before and stays for its forks' sake is not looked at again.
      AND EXISTS (SELECT FROM @messages AS m WHERE m.tenant_id = $1 AND m.context_id = c.id)
    UNION
    SELECT m.context_id FROM @messages AS m CROSS JOIN cutoff
    WHERE m.tenant_id = $1 AND m.deleted_at <= cutoff.moment
) AS o
WHERE $3::uuid IS NULL OR o.id > $3
ORDER BY o.id
LIMIT $4
""")

# $2 seconds, $3 contexts, locked. Deletes the expired ones softly: from here on nobody forks them
# or appends to them.
EXPIRE: Final[LiteralString] = compose("""
-- pgcontext.expire
UPDATE @contexts AS c
SET deleted_at = now(), updated_at = now(), revision = c.revision + 1
WHERE c.tenant_id = $1 AND c.id = ANY ($3::text[]::uuid[]) AND c.deleted_at IS NULL
  AND c.expires_at <= now() - make_interval(secs => $2)
""")

# $2 seconds, $3 contexts, $4 rows at most. Runs under the locks of LOCK_TREES. Removes of these
# contexts' messages what no context shows any more, nor could show again: a context counts unless
# it is itself up for removal, and what it hid lately counts as shown. Returns how many.
PURGE_MESSAGES: Final[LiteralString] = _retention("""
-- pgcontext.purge_messages
WITH RECURSIVE cutoff AS (SELECT now() - make_interval(secs => $2) AS moment),
origin AS (
    SELECT c.id,
           c.deleted_at <= cutoff.moment OR coalesce(c.expires_at <= cutoff.moment, false) AS dead
    FROM @contexts AS c CROSS JOIN cutoff
    WHERE c.tenant_id = $1 AND c.id = ANY ($3::text[]::uuid[])
),
candidate AS (
    SELECT m.*
    FROM origin AS o CROSS JOIN cutoff
    CROSS JOIN LATERAL (
        SELECT m.id, m.context_id, m.version FROM @messages AS m
        WHERE m.tenant_id = $1 AND m.context_id = o.id
          AND (o.dead OR m.deleted_at <= cutoff.moment)
        OFFSET 0
    ) AS m
),
@below,
keeper AS (
    SELECT b.*
    FROM (@below_as_viewers) AS b
    CROSS JOIN cutoff
    CROSS JOIN LATERAL (
        SELECT c.deleted_at, c.expires_at FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.id = b.id
        LIMIT 1
    ) AS c
    WHERE b.id <> b.root
      AND (c.deleted_at <= cutoff.moment) IS NOT TRUE
      AND (c.expires_at <= cutoff.moment) IS NOT TRUE
),
removable AS (
    SELECT m.id, m.context_id, m.version
    FROM candidate AS m
    WHERE NOT EXISTS (
        SELECT FROM keeper AS l
        WHERE l.root = m.context_id AND m.version <= l.hi AND @kept
    )
    LIMIT $4
),
removed AS (
    DELETE FROM @messages AS m
    USING removable AS r
    WHERE m.tenant_id = $1 AND m.id = r.id
    RETURNING m.context_id, m.version, m.token_count
),
-- Contexts that are up for removal but stay for a live fork's sake can be restored: their
-- counters follow.
showing AS (
    SELECT l.id, count(*)::integer AS messages, sum(m.token_count)::bigint AS tokens
    FROM removed AS m
    JOIN (@below_as_viewers) AS l ON l.root = m.context_id AND m.version <= l.hi
    WHERE @visible
    GROUP BY l.id
),
counted AS (
    UPDATE @contexts AS c
    SET message_count = c.message_count - s.messages,
        total_tokens = c.total_tokens - s.tokens,
        revision = c.revision + 1
    FROM showing AS s
    WHERE c.tenant_id = $1 AND c.id = s.id
),
cleared AS (
    DELETE FROM @tombstones AS t
    USING removed AS r
    WHERE t.tenant_id = $1 AND t.context_id = ANY ($3::text[]::uuid[])
      AND t.context_id = r.context_id AND t.version = r.version
)
SELECT count(*) AS messages FROM removed
""")

# $2 seconds, $3 contexts at most. Removes contexts up for removal that have no message left and
# below which there are only such. Returns how many.
PURGE_CONTEXTS: Final[LiteralString] = compose("""
-- pgcontext.purge_contexts
WITH RECURSIVE dead AS (
    SELECT c.id
    FROM @contexts AS c
    WHERE c.tenant_id = $1
      AND (c.deleted_at <= now() - make_interval(secs => $2)
           OR c.expires_at <= now() - make_interval(secs => $2))
),
tree AS (
    SELECT dead.id AS root, dead.id FROM dead
    UNION ALL
    SELECT t.root, c.id
    FROM tree AS t
    CROSS JOIN LATERAL (
        SELECT c.id FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.parent_id = t.id
        OFFSET 0
    ) AS c
),
removable AS (
    SELECT t.root AS id
    FROM tree AS t
    GROUP BY t.root
    HAVING bool_and(
        t.id IN (SELECT dead.id FROM dead)
        AND NOT EXISTS (
            SELECT FROM @messages AS m WHERE m.tenant_id = $1 AND m.context_id = t.id
        )
    )
    -- A tree is larger than any below it, so forks go no later than their parents.
    ORDER BY count(*)
    LIMIT $3
),
removed AS (
    DELETE FROM @contexts AS c
    USING removable AS r
    WHERE c.tenant_id = $1 AND c.id = r.id
      -- Looked at again on the row itself, in case somebody has just restored it.
      AND (c.deleted_at <= now() - make_interval(secs => $2)
           OR c.expires_at <= now() - make_interval(secs => $2))
    RETURNING c.id
)
SELECT count(*) AS contexts FROM removed
""")
