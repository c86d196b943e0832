"""Statements about messages: append, read, hide, show again, compare, merge. $1 is the tenant."""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# $2 context, $3 the batch as a JSON array, $4 its length, $5 its tokens, $6 expected
# latest_version or NULL, $7 idempotency key or NULL.
# Returns base (the version before the first) and created_at; no row when it is refused, and
# APPEND_REFUSED says why.
#
# The context's row is locked by the UPDATE, which hands out the versions: so they are gapless,
# in commit order, and a batch is in one piece. Two callers with one key at once: the second runs
# into messages_idempotency_idx.
APPEND: Final[LiteralString] = compose("""
-- pgcontext.append
WITH head AS (
    UPDATE @contexts AS c
    SET latest_version = c.latest_version + $4::integer,
        message_count = c.message_count + $4::integer,
        total_tokens = c.total_tokens + $5::bigint,
        revision = c.revision + 1,
        updated_at = now()
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
      AND ($6::bigint IS NULL OR c.latest_version = $6)
      AND ($7::text IS NULL OR NOT EXISTS (
          SELECT FROM @messages AS m
          WHERE m.tenant_id = $1 AND m.context_id = $2 AND m.idempotency_key = $7
      ))
    RETURNING c.latest_version - $4::integer AS base
),
written AS (
    INSERT INTO @messages AS m (
        tenant_id, id, context_id, version, role, content, tool_call_id, tool_name, token_count,
        model, payload, idempotency_key, batch_ordinal, embedding, embedding_model, embed_after
    )
    SELECT $1, b.id, $2, head.base + b.ordinal, b.role, b.content, b.tool_call_id, b.tool_name,
           b.token_count, b.model, b.payload, $7,
           CASE WHEN $7 IS NOT NULL THEN b.ordinal END,
           b.embedding::vector, b.embedding_model, CASE WHEN b.pending THEN now() END
    FROM head
    CROSS JOIN ROWS FROM (
        json_to_recordset($3::json) AS (
            id uuid, role text, content text, tool_call_id text, tool_name text,
            token_count integer, model text, payload jsonb, embedding text,
            embedding_model text, pending boolean
        )
    ) WITH ORDINALITY AS b (
        id, role, content, tool_call_id, tool_name, token_count, model, payload, embedding,
        embedding_model, pending, ordinal
    )
)
SELECT base, now() AS created_at FROM head
""")

# $2 context, $3 idempotency key or NULL, $4 ids (of an earlier try of our own) or NULL.
# Returns latest_version and the messages that were written under that key or with those ids.
# No row: the context is not there.
APPEND_REFUSED: Final[LiteralString] = compose("""
-- pgcontext.append_refused
SELECT c.latest_version, @message_columns, m.deleted_at
FROM @contexts AS c
LEFT JOIN LATERAL (
    SELECT m.* FROM @messages AS m
    WHERE m.tenant_id = $1 AND m.context_id = $2 AND m.idempotency_key = $3
    UNION ALL
    SELECT m.* FROM @messages AS m
    WHERE m.tenant_id = $1 AND m.context_id = $2 AND m.id = ANY ($4::text[]::uuid[])
      AND (m.idempotency_key = $3) IS NOT TRUE
) AS m ON true
WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
ORDER BY m.version
""")

# What the planner would make of the limit and of the roles is kept from it by sub-selects: a plan
# for their very values would look cheaper than one for all, and be made anew at each call, which
# takes longer than the rest (docs/adr/0005). The bound that it sees is HISTORY_MESSAGES_MAX.
_HISTORY: Final[LiteralString] = """
-- pgcontext.@name
WITH RECURSIVE viewer AS (
    SELECT @viewer_columns, $3::bigint AS cap, $4::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
),
@lineage
SELECT @shown_columns
FROM @path AS l
LEFT JOIN LATERAL (
    SELECT @message_columns, @hidden_at AS deleted_at
    FROM @messages AS m
    WHERE @of_segment
      AND ((SELECT $6::text[]) IS NULL OR m.role = ANY ((SELECT $6::text[])::text[]))
      AND @chosen
    ORDER BY m.version @direction
    LIMIT 1000
) AS s ON true
WHERE s.version IS NOT NULL OR l.depth = 0
LIMIT (SELECT $5::bigint + 1)
"""

_NEWEST: Final[LiteralString] = _HISTORY.replace("@path", "lineage").replace("@direction", "DESC")

# The path is turned round, so that the oldest of its contexts comes first.
_OLDEST: Final[LiteralString] = (
    _HISTORY.replace("@name", "@name_after")
    .replace("@path", "(SELECT * FROM lineage ORDER BY depth DESC)")
    .replace("@direction", "ASC")
)


def _shown(statement: LiteralString) -> LiteralString:
    return compose(
        statement.replace("@name", "history")
        .replace("@hidden_at", "NULL::timestamptz")
        .replace("@chosen", "@visible")
    )


def _with_hidden(statement: LiteralString) -> LiteralString:
    hidden_at: LiteralString = """CASE WHEN l.hides_any THEN (
               SELECT t.created_at FROM @tombstones AS t
               WHERE t.tenant_id = $1 AND t.context_id = $2 AND t.version = m.version
                 AND t.restored_revision IS NULL
           ) END"""
    return compose(
        statement.replace("@name", "history")
        .replace("@hidden_at", hidden_at)
        .replace("@chosen", "@in_view")
    )


# $2 context, $3 highest version, $4 version to stop above, $5 limit, $6 roles or NULL.
# Returns the newest that match, in any order, and one more if there is one; also a row of NULLs
# when the context itself wrote none of them, so that no row means no context. Along
# messages_version_key backwards, context by context, until there are enough.
HISTORY: Final[LiteralString] = _shown(_NEWEST)

# The same parameters and columns, but the oldest above $4 instead of the newest.
HISTORY_AFTER: Final[LiteralString] = _shown(_OLDEST)

# The same two, with what the context itself hid.
HISTORY_WITH_HIDDEN: Final[LiteralString] = _with_hidden(_NEWEST)
HISTORY_AFTER_WITH_HIDDEN: Final[LiteralString] = _with_hidden(_OLDEST)

# $2 context, $3 highest version, $4 token budget, $5 how many times the usual number of messages
# to look at, $6 messages at most, $7 pinned messages at most.
# Returns the pinned messages (`place` 0), then the others with their `place`, 1 the newest, and
# `looked_at` and `asked_for`: fewer looked at than asked for means the beginning was reached.
#
# How many of the newest messages a budget can hold is estimated from the context's own average
# and rounded up well; only those that may matter are sent: the ones within the budget, and a few
# more, for the group that the budget cuts. The caller asks again for more where that was not
# enough, which only happens when messages that cannot be shown took the room, or the newest are
# much shorter than the average.
WINDOW: Final[LiteralString] = compose("""
-- pgcontext.window
WITH RECURSIVE viewer AS (
    SELECT @viewer_columns, $3::bigint AS cap, 0::bigint AS floor,
           least($6::numeric, $5::numeric * (
               64 + ceil(2.0 * $4::bigint * c.message_count / greatest(c.total_tokens, 1))
           ))::bigint AS asked_for
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
),
@lineage,
pinned AS (
    SELECT s.*, 0::bigint AS place, 0::bigint AS newer_tokens
    FROM lineage AS l
    CROSS JOIN LATERAL (
        SELECT @message_columns FROM @messages AS m
        WHERE @of_segment
          AND m.role IN ('system', 'developer')
          AND @visible
        ORDER BY m.version DESC
        LIMIT $7::bigint + 1
    ) AS s
    LIMIT $7::bigint + 1
),
newest AS (
    SELECT s.*,
           row_number() OVER by_age AS place,
           sum(s.token_count) OVER by_age - s.token_count AS newer_tokens
    FROM (
        SELECT s.*
        FROM lineage AS l
        CROSS JOIN LATERAL (
            SELECT @message_columns FROM @messages AS m
            WHERE @of_segment
              AND m.role NOT IN ('system', 'developer')
              AND @visible
            ORDER BY m.version DESC
            LIMIT (SELECT asked_for FROM viewer)
        ) AS s
        LIMIT (SELECT asked_for FROM viewer)
    ) AS s
    WINDOW by_age AS (ORDER BY s.version DESC ROWS UNBOUNDED PRECEDING)
),
kept AS (
    SELECT * FROM pinned
    UNION ALL
    SELECT * FROM newest
    -- Asked again, what takes the room can't be shown: then all that was looked at matters.
    WHERE $5::numeric > 1
       OR newest.place <= 16 + (SELECT count(*) FROM newest WHERE newest.newer_tokens <= $4)
)
SELECT viewer.asked_for, (SELECT count(*) FROM newest) AS looked_at, s.place,
       @shown_columns
FROM viewer
LEFT JOIN (SELECT kept.*, NULL::timestamptz AS deleted_at FROM kept) AS s ON true
ORDER BY s.place
""")

# What hiding and showing again have in common: the context locked, the messages of the view that
# are meant (`member`, with `deleted_at` where the context hides them), and whether to go ahead.
_CHOSEN: Final[LiteralString] = """locked AS MATERIALIZED (
    SELECT c.id, c.revision
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2 AND c.deleted_at IS NULL
    FOR NO KEY UPDATE
),
viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, 0::bigint AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $2
),
@lineage,
wanted AS (SELECT DISTINCT unnest($3::text[]::bigint[]) AS version),
member AS MATERIALIZED (
    SELECT s.*
    FROM wanted AS w
    JOIN lineage AS l ON w.version > l.lo AND w.version <= l.hi
    CROSS JOIN LATERAL (
        SELECT @message_columns, (
            SELECT t.created_at FROM @tombstones AS t
            WHERE t.tenant_id = $1 AND t.context_id = $2 AND t.version = m.version
              AND t.restored_revision IS NULL
        ) AS deleted_at
        FROM @messages AS m
        WHERE m.tenant_id = $1 AND m.context_id = l.id AND m.version = w.version
          AND @in_view
        LIMIT 1
    ) AS s
),
allowed AS (
    SELECT locked.revision + 1 AS revision
    FROM locked JOIN viewer ON viewer.revision = locked.revision
    WHERE (SELECT count(*) FROM member) = (SELECT count(*) FROM wanted)
)"""

# Both change the counters by what they changed of the view, and mark the context's own messages,
# so that searches over the tenant leave the hidden ones out; inherited ones are not touched.
_APPLIED: Final[LiteralString] = """marked AS (
    UPDATE @messages AS m
    SET deleted_at = @moment
    FROM changed
    WHERE m.tenant_id = $1 AND m.context_id = $2 AND m.version = changed.version
),
counted AS (
    UPDATE @contexts AS c
    SET message_count = c.message_count @sign n.messages,
        total_tokens = c.total_tokens @sign n.tokens,
        revision = c.revision + 1,
        updated_at = now()
    FROM (
        SELECT count(*) AS messages, sum(member.token_count) AS tokens
        FROM changed JOIN member ON member.version = changed.version
    ) AS n
    WHERE c.tenant_id = $1 AND c.id = $2 AND n.messages > 0
)"""

_OUTCOME: Final[LiteralString] = """w.version AS wanted_version,
       s.id, s.context_id, s.version, s.created_at, s.role, s.content, s.tool_call_id,
       s.tool_name, s.token_count, s.model, s.payload, s.idempotency_key, s.embedding_model,
       s.embedding_pending, @deleted_at AS deleted_at
FROM locked
CROSS JOIN viewer
CROSS JOIN wanted AS w
LEFT JOIN member AS s ON s.version = w.version
ORDER BY w.version"""


def _choosing(statement: LiteralString) -> LiteralString:
    return statement.replace("@chosen", _CHOSEN).replace("@outcome", _OUTCOME)


# $2 context, $3 versions. Hides them in this context's view, under the context's row lock.
# Returns one row a version, its message or NULLs when the view has none; nothing is changed then.
# `stale`: the context changed between the snapshot and the lock; nothing was changed, ask again
# under the lock. No row: no such context.
DELETE_MESSAGES: Final[LiteralString] = compose(
    _choosing("""
-- pgcontext.delete_messages
WITH RECURSIVE @chosen,
changed AS (
    INSERT INTO @tombstones AS t (tenant_id, context_id, version, revision)
    SELECT $1, $2, member.version, allowed.revision
    FROM allowed CROSS JOIN member
    WHERE member.deleted_at IS NULL
    RETURNING t.version
),
@applied
SELECT viewer.revision <> locked.revision AS stale, @outcome
""")
    .replace("@applied", _APPLIED)
    .replace("@moment", "now()")
    .replace("@sign", "-")
    .replace("@deleted_at", "coalesce(s.deleted_at, now())")
)

# The same parameters and columns. Shows again what this context itself hid. Also `stale` when
# one that the snapshot shows as hidden was not found: a purge took it meanwhile.
RESTORE_MESSAGES: Final[LiteralString] = compose(
    _choosing("""
-- pgcontext.restore_messages
WITH RECURSIVE @chosen,
changed AS (
    UPDATE @tombstones AS t
    SET restored_revision = allowed.revision
    FROM allowed CROSS JOIN member
    WHERE t.tenant_id = $1 AND t.context_id = $2 AND t.version = member.version
      AND t.restored_revision IS NULL
    RETURNING t.version
),
@applied
SELECT viewer.revision <> locked.revision
           OR EXISTS (SELECT FROM allowed) AND EXISTS (
               SELECT FROM member
               WHERE member.deleted_at IS NOT NULL
                 AND NOT EXISTS (SELECT FROM changed WHERE changed.version = member.version)
           ) AS stale,
       @outcome
""")
    .replace("@applied", _APPLIED)
    .replace("@moment", "NULL")
    .replace("@sign", "+")
    .replace("@deleted_at", "NULL::timestamptz")
)

# $2 and $3 two contexts, $4 messages at most.
# Returns common_id, common_version, how many of the two contexts were `found`, and a row for each
# message that only one of them shows (`only_a`). Above the last common version everything counts;
# up to it only what one of them hides can differ.
DIFF: Final[LiteralString] = compose("""
-- pgcontext.diff
WITH RECURSIVE viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, @whole_path AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id IN ($2, $3) AND c.deleted_at IS NULL
),
@lineage,
@common,
split AS (SELECT coalesce((SELECT common.version FROM common), 0) AS version),
doubtful AS (
    SELECT DISTINCT t.version
    FROM (SELECT DISTINCT id FROM lineage WHERE hides_any) AS l
    CROSS JOIN LATERAL (
        SELECT t.version FROM @tombstones AS t
        WHERE t.tenant_id = $1 AND t.context_id = l.id
          AND t.version <= (SELECT split.version FROM split)
        OFFSET 0
    ) AS t
),
shown AS (
    SELECT l.viewer, s.*
    FROM lineage AS l
    CROSS JOIN LATERAL (
        SELECT @message_columns FROM @messages AS m
        WHERE @of_segment
          AND m.version > (SELECT split.version FROM split)
          AND @visible
        LIMIT $4::bigint + 1
    ) AS s
    UNION ALL
    SELECT l.viewer, s.*
    FROM lineage AS l
    JOIN doubtful AS d ON d.version > l.lo AND d.version <= l.hi
    CROSS JOIN LATERAL (
        SELECT @message_columns FROM @messages AS m
        WHERE m.tenant_id = $1 AND m.context_id = l.id AND m.version = d.version
          AND @visible
        LIMIT 1
    ) AS s
),
single AS (
    SELECT shown.*, shown.viewer = $2 AS only_a
    FROM shown
    WHERE NOT EXISTS (
        SELECT FROM shown AS other
        WHERE other.id = shown.id AND (other.viewer <> shown.viewer OR $2 = $3)
    )
    ORDER BY shown.version
    LIMIT $4::bigint + 1
)
SELECT (SELECT count(*) FROM viewer) AS found, common.id AS common_id,
       common.version AS common_version, s.only_a, @shown_columns
FROM (SELECT 1) AS one
LEFT JOIN common ON true
LEFT JOIN (SELECT single.*, NULL::timestamptz AS deleted_at FROM single) AS s ON true
ORDER BY s.version
""")

# $2 source, $3 into, $4 rebase, $5 the first 32 hexadecimal digits and dashes of the ids to give
# (their last four count the messages), $6 messages at most.
# Returns source_found, common_id, common_version, actual (the version of `into`), available (how
# many messages there are to merge), and the messages written. No row: `into` is not there.
#
# Under the row lock of `into`; the source is read as the snapshot shows it.
MERGE: Final[LiteralString] = compose("""
-- pgcontext.merge
WITH RECURSIVE locked AS MATERIALIZED (
    SELECT c.id, c.latest_version
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id = $3 AND c.deleted_at IS NULL
    FOR NO KEY UPDATE
),
viewer AS (
    SELECT @viewer_columns, c.latest_version AS cap, @whole_path AS floor
    FROM @contexts AS c
    WHERE c.tenant_id = $1 AND c.id IN ($2, $3) AND c.deleted_at IS NULL
),
@lineage,
@common,
source AS MATERIALIZED (
    SELECT s.*, row_number() OVER (ORDER BY s.version) AS ordinal
    FROM common
    CROSS JOIN LATERAL (
        SELECT m.version, m.role, m.content, m.tool_call_id, m.tool_name, m.token_count, m.model,
               m.payload, m.embedding, m.embedding_model, m.embed_after
        FROM lineage AS l
        CROSS JOIN LATERAL (
            SELECT m.* FROM @messages AS m
            WHERE @of_segment
              AND m.version > common.version
              AND @visible
            OFFSET 0
        ) AS m
        WHERE l.viewer = $2
        LIMIT $6::bigint + 1
    ) AS s
),
head AS (
    UPDATE @contexts AS c
    SET latest_version = c.latest_version + n.messages,
        message_count = c.message_count + n.messages,
        total_tokens = c.total_tokens + n.tokens,
        revision = c.revision + 1,
        updated_at = now()
    FROM (SELECT count(*) AS messages, sum(token_count) AS tokens FROM source) AS n
    CROSS JOIN common
    CROSS JOIN locked
    WHERE c.tenant_id = $1 AND c.id = $3 AND n.messages BETWEEN 1 AND $6
      AND ($4 OR locked.latest_version = common.version)
    RETURNING c.latest_version - n.messages AS base
),
written AS (
    INSERT INTO @messages AS m (
        tenant_id, id, context_id, version, role, content, tool_call_id, tool_name, token_count,
        model, payload, embedding, embedding_model, embed_after
    )
    SELECT $1, ($5::text || lpad(to_hex(s.ordinal), 4, '0'))::uuid, $3, head.base + s.ordinal,
           s.role, s.content, s.tool_call_id, s.tool_name, s.token_count, s.model, s.payload,
           s.embedding, s.embedding_model, s.embed_after
    FROM head CROSS JOIN source AS s
    RETURNING @message_columns
)
SELECT EXISTS (SELECT FROM viewer WHERE viewer.id = $2) AS source_found,
       common.id AS common_id, common.version AS common_version,
       locked.latest_version AS actual, (SELECT count(*) FROM source) AS available,
       @shown_columns
FROM locked
LEFT JOIN common ON true
LEFT JOIN (SELECT written.*, NULL::timestamptz AS deleted_at FROM written) AS s ON true
ORDER BY s.version
""")

# $2 context, $3 and $4 the first and last id. What an earlier try of a merge wrote.
MERGED: Final[LiteralString] = compose("""
-- pgcontext.merged
SELECT @message_columns, m.deleted_at
FROM @messages AS m
WHERE m.tenant_id = $1 AND m.context_id = $2
  AND m.id BETWEEN $3::uuid AND $4::uuid
ORDER BY m.version
""")
