"""What `pgcontext doctor` and `pgcontext demo` ask the server about itself."""

from typing import Final, LiteralString

from pgcontext.statements.fragments import compose

# Returns one row; the columns are the fields of `doctor.Server`. Reads the catalog only, and works
# before the first migration.
INSPECT: Final[LiteralString] = compose("""
-- pgcontext.inspect
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::integer AS version_number,
       pg_is_in_recovery() AS is_standby,
       (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'vector') AS pgvector,
       (SELECT a.default_version FROM pg_available_extensions AS a
        WHERE a.name = 'vector') AS pgvector_offered,
       (SELECT a.atttypmod FROM pg_attribute AS a
        WHERE a.attrelid = to_regclass('@messages') AND a.attname = 'embedding'
          AND NOT a.attisdropped) AS dimensions
""")
