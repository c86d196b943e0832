"""Statements of `pgcontext export --backup`: what a context itself holds, deleted or not.

The request path has no use for them. $1 is the tenant in every statement.
"""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# $2 context, $3 version to start above, $4 limit, $5 embeddings too.
# Returns embedding (as JSON text) and the message's columns, oldest first; what was erased is left
# out. Along messages_version_key.
EXPORT_MESSAGES: Final[LiteralString] = compose("""
-- pgcontext.export_messages
SELECT CASE WHEN $5::boolean THEN m.embedding::text END AS embedding,
       @message_columns, m.deleted_at
FROM @messages AS m
WHERE m.tenant_id = $1 AND m.context_id = $2 AND m.version > $3
  AND NOT EXISTS (
      SELECT FROM @tombstones AS t
      WHERE t.tenant_id = $1 AND t.context_id = $2 AND t.version = m.version AND t.revision = 0
  )
ORDER BY m.version
LIMIT $4
""")

# $2 context, $3 revision, $4 version. Returns the versions up to $4 that the context hid itself at
# that revision, those it inherits included. By primary key.
EXPORT_HIDDEN: Final[LiteralString] = compose("""
-- pgcontext.export_hidden
SELECT t.version
FROM @tombstones AS t
WHERE t.tenant_id = $1 AND t.context_id = $2 AND t.version <= $4
  AND t.revision BETWEEN 1 AND $3
  AND (t.restored_revision IS NULL OR t.restored_revision > $3)
ORDER BY t.version
""")
