"""Every bound of pgcontext, in one place, with its unit at the end of the name.

A value above a bound is refused with `LimitExceededError`; nothing is ever clamped in silence.
"""

from typing import Final

SCHEMA_REVISION: Final = "0004"
"""The Alembic revision this version of the code is written against (the head of migrations/)."""

# What a caller may hand in.
MESSAGES_PER_APPEND_MAX: Final = 1_000
CONTENT_BYTES_MAX: Final = 8 * 1024 * 1024
PAYLOAD_BYTES_MAX: Final = 8 * 1024 * 1024
PAYLOAD_INTEGER_BITS_MAX: Final = 8_192
PAYLOAD_DEPTH_MAX: Final = 64
METADATA_BYTES_MAX: Final = 64 * 1024
NAME_CHARS_MAX: Final = 1_024
MODEL_CHARS_MAX: Final = 256
CALL_ID_CHARS_MAX: Final = 1_024
IDEMPOTENCY_KEY_CHARS_MAX: Final = 512
QUERY_CHARS_MAX: Final = 32_768
TOKEN_COUNT_MAX: Final = 2**31 - 1
VERSION_MAX: Final = 2**63 - 1

# What the command line reads at once: a file may be any length, one conversation in it not.
IMPORT_CONVERSATION_BYTES_MAX: Final = 256 * 1024 * 1024
IMPORT_BATCH_BYTES_MAX: Final = 1024 * 1024

# What one call may give back.
HISTORY_MESSAGES_MAX: Final = 1_000
LIST_CONTEXTS_MAX: Final = 200
FORKS_CONTEXTS_MAX: Final = 10_000
LINEAGE_DEPTH_MAX: Final = 10_000
DIFF_MESSAGES_MAX: Final = 10_000
MERGE_MESSAGES_MAX: Final = 10_000
ROLES_PER_CALL_MAX: Final = 16
VERSIONS_PER_CALL_MAX: Final = 10_000
WINDOW_MESSAGES_MAX: Final = 10_000
WINDOW_PINNED_MESSAGES_MAX: Final = 1_000
SEARCH_HITS_MAX: Final = 200
SEARCH_NEIGHBORS_MAX: Final = 20
PURGE_AGE_DAYS_MAX: Final = 36_500
PURGE_ROWS_PER_STATEMENT_MAX: Final = 10_000

# API keys, and what a request over HTTP may bring.
KEY_CHARS_MAX: Final = 256
KEYS_LISTED_COUNT_MAX: Final = 10_000
KEYS_REMEMBERED_COUNT_MAX: Final = 10_000
KEY_CACHE_SECONDS_DEFAULT: Final = 30.0
KEY_CACHE_SECONDS_MAX: Final = 300.0
KEY_GRACE_SECONDS_MAX: Final = 30 * 86_400
REQUEST_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
REQUEST_QUERY_BYTES_MAX: Final = 64 * 1024
REQUEST_BODY_SECONDS_MAX: Final = 30.0
RETRY_AFTER_SECONDS: Final = 2

# A function: what it may return (Lambda's own bound, less what goes around a body), and how long
# before its time is up an answer is given, and what was cut off may take to end.
FUNCTION_ANSWER_BYTES_MAX: Final = 5 * 1024 * 1024
FUNCTION_MARGIN_SECONDS: Final = 0.5
FUNCTION_LEAD_SECONDS: Final = 0.1
FUNCTION_SETTLE_SECONDS: Final = 0.25

# Embeddings. pgvector indexes `halfvec` up to 4,000 dimensions.
EMBEDDING_DIMENSIONS_DEFAULT: Final = 1_536
EMBEDDING_DIMENSIONS_MAX: Final = 4_000
EMBEDDING_DIMENSIONS_LOCAL: Final = 256

# What an embedding server is asked for. By default no more than servers take as they are delivered:
# 32 texts (text-embeddings-inference), 8,192 tokens a text (OpenAI; rarely less than three
# characters each), and 300,000 tokens (OpenAI) or 2 MB (text-embeddings-inference) in one request,
# of which a character is at worst one or four.
EMBEDDING_SECONDS_DEFAULT: Final = 30.0
EMBEDDING_CONNECT_SECONDS_MAX: Final = 5.0
EMBEDDING_ATTEMPTS_MAX: Final = 5
EMBEDDING_BACKOFF_SECONDS_BASE: Final = 0.25
EMBEDDING_BACKOFF_SECONDS_MAX: Final = 8.0
EMBEDDING_REQUESTS_DEFAULT: Final = 4
EMBEDDING_BATCH_TEXTS_DEFAULT: Final = 32
EMBEDDING_BATCH_CHARS_MAX: Final = 256_000
EMBEDDING_TEXT_CHARS_DEFAULT: Final = 24_000
EMBEDDING_CUT_CHARS_MIN: Final = 500
EMBEDDING_ANSWER_BYTES_PER_TEXT_MAX: Final = 128 * 1024
EMBEDDING_REFUSAL_BYTES_MAX: Final = 64 * 1024

# Embeddings that come later: what one call takes on, how much of it is claimed at once, how many
# texts an embedder may refuse before it counts as failing, and when what failed is tried again.
EMBED_MESSAGES_MAX: Final = 10_000
EMBED_BATCH_MESSAGES_MAX: Final = 200
EMBED_BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
EMBED_LOOKED_AT_MESSAGES_MAX: Final = 5_000
EMBED_REFUSED_MESSAGES_MAX: Final = 5
EMBED_FAILURES_COUNT_MAX: Final = 10  # in a row, while halving a batch takes eight
EMBED_RETRY_SECONDS: Final = 60.0
EMBED_BACKOFF_SECONDS_MAX: Final = 86_400.0

# A search over a tenant reads so many signatures in the time in which the HNSW index answers.
EXACT_ROWS_DEFAULT: Final = 150_000
EXACT_ROWS_MAX: Final = 2**31 - 1

# What a setting may say in seconds, at most.
SETTING_SECONDS_MAX: Final = 1_000_000.0

# The connection to the database.
POOL_CONNECTIONS_MAX: Final = 3
POOL_CONNECTIONS_DIRECT_MAX: Final = 100
POOL_IDLE_SECONDS_MAX: Final = 30.0
CONNECT_SECONDS_MAX: Final = 10.0
ACQUIRE_SECONDS_MAX: Final = 10.0
STATEMENT_SECONDS_MAX: Final = 30.0
ATTEMPTS_MAX: Final = 4
BACKOFF_SECONDS_BASE: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 2.0
CLOSE_SECONDS_MAX: Final = 2.0
SLOW_STATEMENT_SECONDS: Final = 1.0

# The oldest server and extension the statements are written for.
POSTGRESQL_VERSION_MIN: Final = 15
PGVECTOR_VERSION_MIN: Final = (0, 8, 0)
PGVECTOR_VERSION_ADVISED: Final = (0, 8, 4)

# The embedded PostgreSQL.
EMBEDDED_START_SECONDS_MAX: Final = 60.0
EMBEDDED_STOP_SECONDS_MAX: Final = 30.0
EMBEDDED_MIGRATE_SECONDS_MAX: Final = 3_600.0
EMBEDDED_LOG_BYTES_MAX: Final = 1024 * 1024

# Migrations: how long to wait for one that runs already, and for a lock on a table.
MIGRATION_TURN_SECONDS_MAX: Final = 600
MIGRATION_LOCK_SECONDS_MAX: Final = 10
LANGUAGE_BATCH_MESSAGES_MAX: Final = 1_000
