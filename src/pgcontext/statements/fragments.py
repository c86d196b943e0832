"""The pieces that statements share, and how they are put together.

A statement is a constant. Where it says `@lineage`, the text of that fragment stands; where it
says `@messages`, `@contexts`, `@tombstones` or `@nearest`, the name of that object in the store's
schema. Nothing a caller passes ever becomes text of a statement.

The view of a context, in three fragments:

`viewer`: every statement makes this CTE: the row of the context looked through, with the versions
to look at: those above `floor` up to `cap`.

`@lineage`: the path from the viewer to the root, one row a context, the viewer first. Each context
contributes the versions above `lo` up to `hi`: what it wrote itself, as far as its child inherits
it. Along the path the contexts that hide something are collected (`hiders`), each with the
revision up to which its hiding counts (`as_ofs`): for the viewer all of it, for an ancestor what
was hidden at the moment of forking. Rows are made as they are asked for, so a statement that has
enough after two contexts never looks at the third.

`@visible`: whether the viewer shows message `m` of the path's context `l`. A viewer whose
`message_count` equals its `latest_version` hides nothing anywhere, and asks no tombstone.
"""

from typing import Final, LiteralString

# Every join below is forced to go by key, by LATERAL with a LIMIT: a hash join would read all
# contexts, or all tombstones, of the tenant.
LINEAGE: Final[LiteralString] = """lineage AS (
    SELECT v.id AS viewer, 0 AS depth, v.id, v.parent_id, v.fork_revision, v.floor,
           coalesce(v.fork_version, 0) AS lo,
           least(v.latest_version, v.cap) AS hi,
           v.message_count < v.latest_version AS hides_any,
           CASE WHEN v.message_count < v.latest_version
                THEN ARRAY[v.id] ELSE '{}' END AS hiders,
           CASE WHEN v.message_count < v.latest_version
                THEN ARRAY[9223372036854775807] ELSE '{}' END AS as_ofs
    FROM viewer AS v
    UNION ALL
    SELECT l.viewer, l.depth + 1, p.id, p.parent_id, p.fork_revision, l.floor,
           coalesce(p.fork_version, 0), least(l.lo, l.hi), l.hides_any,
           CASE WHEN p.hides THEN l.hiders || p.id ELSE l.hiders END,
           CASE WHEN p.hides THEN l.as_ofs || l.fork_revision ELSE l.as_ofs END
    FROM lineage AS l
    CROSS JOIN LATERAL (
        SELECT c.id, c.parent_id, c.fork_version, c.fork_revision,
               l.hides_any AND EXISTS (
                   SELECT FROM @tombstones AS t
                   WHERE t.tenant_id = $1 AND t.context_id = c.id
               ) AS hides
        FROM @contexts AS c
        WHERE c.tenant_id = $1 AND c.id = l.parent_id
        LIMIT 1
    ) AS p
    WHERE least(l.lo, l.hi) > l.floor
)"""

_NOT_HIDDEN: Final[LiteralString] = """(NOT l.hides_any OR NOT EXISTS (
    SELECT FROM unnest(l.hiders, l.as_ofs) AS h (id, as_of)
    CROSS JOIN LATERAL (
        SELECT FROM @tombstones AS t
        WHERE t.tenant_id = $1 AND t.context_id = h.id AND t.version = m.version
          AND t.revision <= h.as_of
          AND (t.restored_revision IS NULL OR t.restored_revision > h.as_of)
          AND @counting
        LIMIT 1
    ) AS t
))"""

VISIBLE: Final[LiteralString] = _NOT_HIDDEN.replace("\n          AND @counting", "")

# The same, but what the viewer itself hid still counts: it can be shown and restored. What an
# ancestor hid, or what was erased (revision 0), does not.
IN_VIEW: Final[LiteralString] = _NOT_HIDDEN.replace(
    "@counting", "(t.context_id <> l.viewer OR t.revision = 0)"
)

# As purge asks it, of a context `l.id`: what it hid lately it could still show again.
KEPT: Final[LiteralString] = _NOT_HIDDEN.replace(
    "@counting",
    "(t.context_id <> l.id OR t.created_at <= (SELECT cutoff.moment FROM cutoff))",
)

# The versions of `l` that a statement looks at. Where there are none, as in a fork that wrote
# nothing, the index is not asked either.
OF_SEGMENT: Final[LiteralString] = """greatest(l.lo, l.floor) < l.hi
        AND m.tenant_id = $1 AND m.context_id = l.id
        AND m.version > greatest(l.lo, l.floor) AND m.version <= l.hi"""

VIEWER_COLUMNS: Final[LiteralString] = """c.id, c.parent_id, c.fork_version, c.fork_revision,
           c.latest_version, c.message_count, c.total_tokens, c.revision"""

CONTEXT_COLUMNS: Final[LiteralString] = """c.id, c.name, c.metadata, c.created_at, c.updated_at,
       c.message_count, c.total_tokens, c.latest_version, c.revision,
       c.parent_id, c.fork_version, c.fork_revision, c.expires_at, c.deleted_at"""

# In the order of `rows.message`. `deleted_at` is not among them: it depends on the view.
MESSAGE_COLUMNS: Final[LiteralString] = """m.id, m.context_id, m.version, m.created_at, m.role,
       m.content, m.tool_call_id, m.tool_name, m.token_count, m.model, m.payload,
       m.idempotency_key, m.embedding_model, m.embed_after IS NOT NULL AS embedding_pending"""

SHOWN_COLUMNS: Final[LiteralString] = """s.id, s.context_id, s.version, s.created_at, s.role,
       s.content, s.tool_call_id, s.tool_name, s.token_count, s.model, s.payload,
       s.idempotency_key, s.embedding_model, s.embedding_pending, s.deleted_at"""

# When two contexts meet: the nearest context that both go through, and the last version of it
# that both see. `a` and `b` are the viewers $2 and $3.
COMMON: Final[LiteralString] = """common AS (
    SELECT a.id, least(a.hi, b.hi) AS version
    FROM lineage AS a JOIN lineage AS b ON b.id = a.id
    WHERE a.viewer = $2 AND b.viewer = $3
    ORDER BY a.depth
    LIMIT 1
)"""

# A floor below the first version: the path goes on to the root, past a fork that inherits nothing.
WHOLE_PATH: Final[LiteralString] = "-1::bigint"

_FRAGMENTS: Final[tuple[tuple[LiteralString, LiteralString], ...]] = (
    ("@lineage", LINEAGE),
    ("@visible", VISIBLE),
    ("@in_view", IN_VIEW),
    ("@kept", KEPT),
    ("@of_segment", OF_SEGMENT),
    ("@viewer_columns", VIEWER_COLUMNS),
    ("@context_columns", CONTEXT_COLUMNS),
    ("@message_columns", MESSAGE_COLUMNS),
    ("@shown_columns", SHOWN_COLUMNS),
    ("@common", COMMON),
    ("@whole_path", WHOLE_PATH),
)


def compose(statement: LiteralString) -> LiteralString:
    """Put the fragments where a statement names them."""
    for name, text in _FRAGMENTS:
        statement = statement.replace(name, text)
    return statement.strip()
