"""Every SQL text of the request path, one constant per operation.

Statements take and return built-in scalars, `json`/`jsonb` and `text[]` only: anything else makes
asyncpg look types up on each new connection. They are named as the store's methods; the name is
the statement's first line and shows in `pg_stat_activity`.
"""

from functools import lru_cache
from typing import Final, LiteralString

from pgcontext.statements.contexts import (
    ANCESTORS,
    CREATE,
    DELETE,
    FORK,
    FORK_AT,
    FORKS,
    GET,
    LIST,
    LOCK,
    RESTORE,
    UPDATE,
)
from pgcontext.statements.embedding import (
    EMBED_CLAIM,
    EMBED_FILL,
    EMBED_OTHERS,
    EMBED_OTHERS_COUNT,
    EMBED_OWED,
    EMBED_RELEASE,
    EMBED_REPLACE,
)
from pgcontext.statements.messages import (
    APPEND,
    APPEND_REFUSED,
    DELETE_MESSAGES,
    DIFF,
    HISTORY,
    HISTORY_AFTER,
    HISTORY_AFTER_WITH_HIDDEN,
    HISTORY_WITH_HIDDEN,
    MERGE,
    MERGED,
    RESTORE_MESSAGES,
    WINDOW,
)
from pgcontext.statements.retention import (
    ERASE,
    ERASE_OWNERS,
    EXPIRE,
    LOCK_TREES,
    PURGE_CONTEXTS,
    PURGE_MESSAGES,
    PURGE_OWNERS,
)
from pgcontext.statements.search import (
    SEARCH_CONTEXT_HYBRID,
    SEARCH_CONTEXT_HYBRID_AROUND,
    SEARCH_CONTEXT_TEXT,
    SEARCH_CONTEXT_TEXT_AROUND,
    SEARCH_CONTEXT_VECTOR,
    SEARCH_CONTEXT_VECTOR_AROUND,
    SEARCH_TENANT_HYBRID,
    SEARCH_TENANT_HYBRID_AROUND,
    SEARCH_TENANT_TEXT,
    SEARCH_TENANT_TEXT_AROUND,
    SEARCH_TENANT_VECTOR,
    SEARCH_TENANT_VECTOR_AROUND,
)

__all__ = [
    "ANCESTORS",
    "APPEND",
    "APPEND_REFUSED",
    "CREATE",
    "DELETE",
    "DELETE_MESSAGES",
    "DIFF",
    "EMBED_CLAIM",
    "EMBED_FILL",
    "EMBED_OTHERS",
    "EMBED_OTHERS_COUNT",
    "EMBED_OWED",
    "EMBED_RELEASE",
    "EMBED_REPLACE",
    "ERASE",
    "ERASE_OWNERS",
    "EXPIRE",
    "FORK",
    "FORKS",
    "FORK_AT",
    "GET",
    "HISTORY",
    "HISTORY_AFTER",
    "HISTORY_AFTER_WITH_HIDDEN",
    "HISTORY_WITH_HIDDEN",
    "LIST",
    "LOCK",
    "LOCK_TREES",
    "MERGE",
    "MERGED",
    "PURGE_CONTEXTS",
    "PURGE_MESSAGES",
    "PURGE_OWNERS",
    "RESTORE",
    "RESTORE_MESSAGES",
    "SEARCH_CONTEXT_HYBRID",
    "SEARCH_CONTEXT_HYBRID_AROUND",
    "SEARCH_CONTEXT_TEXT",
    "SEARCH_CONTEXT_TEXT_AROUND",
    "SEARCH_CONTEXT_VECTOR",
    "SEARCH_CONTEXT_VECTOR_AROUND",
    "SEARCH_TENANT_HYBRID",
    "SEARCH_TENANT_HYBRID_AROUND",
    "SEARCH_TENANT_TEXT",
    "SEARCH_TENANT_TEXT_AROUND",
    "SEARCH_TENANT_VECTOR",
    "SEARCH_TENANT_VECTOR_AROUND",
    "UPDATE",
    "WINDOW",
    "in_schema",
]

_OBJECTS: Final = {
    "@contexts": "contexts",
    "@messages": "messages",
    "@tombstones": "tombstones",
    "@nearest": "pgcontext_nearest",
    "@matching": "pgcontext_matching",
    "@text_query": "pgcontext_text_query",
    "@api_keys": "api_keys",
    "@revisions": "pgcontext_alembic_version",
}


@lru_cache(maxsize=256)
def in_schema(statement: LiteralString, schema: str) -> str:
    """Return the statement with its tables in `schema`, a setting that was checked to be a name."""
    text: str = statement
    for mark, name in _OBJECTS.items():
        text = text.replace(mark, f'"{schema}".{name}')
    return text
