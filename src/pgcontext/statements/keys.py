"""Statements about API keys, and the one that tells whether the database is migrated.

$1 is the tenant in every statement but REVISION. Nothing secret is in any of them: what is stored
of a key's secret is its hash.
"""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# $2 id. Returns no row for a key that is unknown, revoked or expired; else its scope, the hash of
# its secret, and the seconds that are left to it (NULL: no end is set). By the database's clock,
# which is the one that the two ends were set by. By primary key.
KEY_LOOK_UP: Final[LiteralString] = compose("""
-- pgcontext.key_look_up
SELECT k.scope, k.secret_hash,
       extract(epoch FROM least(k.expires_at, k.revoked_at) - now())::double precision
           AS seconds_left
FROM @api_keys AS k
WHERE k.tenant_id = $1 AND k.id = $2
  AND (k.expires_at IS NULL OR k.expires_at > now())
  AND (k.revoked_at IS NULL OR k.revoked_at > now())
""")

# $2 id, $3 name, $4 scope, $5 hash of the secret, $6 expires_at. Returns the key.
KEY_CREATE: Final[LiteralString] = compose("""
-- pgcontext.key_create
INSERT INTO @api_keys AS k (tenant_id, id, name, scope, secret_hash, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING k.id, k.name, k.scope, k.created_at, k.expires_at, k.revoked_at
""")

# $2 limit. Returns keys, newest first: their ids are made in that order. By primary key, backwards.
KEY_LIST: Final[LiteralString] = compose("""
-- pgcontext.key_list
SELECT k.id, k.name, k.scope, k.created_at, k.expires_at, k.revoked_at
FROM @api_keys AS k
WHERE k.tenant_id = $1
ORDER BY k.id DESC
LIMIT $2
""")

# $2 id. Revoking one that is revoked leaves the moment; returns the key.
KEY_REVOKE: Final[LiteralString] = compose("""
-- pgcontext.key_revoke
UPDATE @api_keys AS k
SET revoked_at = least(k.revoked_at, now())
WHERE k.tenant_id = $1 AND k.id = $2
RETURNING k.id, k.name, k.scope, k.created_at, k.expires_at, k.revoked_at
""")

# $2 id of the old key, $3 id of the new one, $4 hash of its secret, $5 seconds for which the old
# one goes on. Returns the new key, which takes over name, scope and expiry; no row when the old one
# does not live, or was rotated already: its row is locked by the first of two at once.
KEY_ROTATE: Final[LiteralString] = compose("""
-- pgcontext.key_rotate
WITH old AS (
    UPDATE @api_keys AS k
    SET revoked_at = now() + make_interval(secs => $5)
    WHERE k.tenant_id = $1 AND k.id = $2 AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > now())
    RETURNING k.name, k.scope, k.expires_at
)
INSERT INTO @api_keys AS n (tenant_id, id, name, scope, secret_hash, expires_at)
SELECT $1, $3, old.name, old.scope, $4, old.expires_at
FROM old
RETURNING n.id, n.name, n.scope, n.created_at, n.expires_at, n.revoked_at
""")

# Returns the revision of the database; no row before the first migration. Of no tenant.
REVISION: Final[LiteralString] = compose("""
-- pgcontext.revision
SELECT v.version_num::text AS revision
FROM @revisions AS v
""")
