"""The store: contexts, their messages, forks, windows and search over one PostgreSQL.

Each method checks its arguments, sends one statement and makes models of the rows. A call that
is refused may take a second statement to say why; other exceptions are named where they are.
"""

from __future__ import annotations

from pgcontext.store.embedding import EmbeddingMethods
from pgcontext.store.forks import ForkMethods
from pgcontext.store.messages import MessageMethods
from pgcontext.store.retention import RetentionMethods
from pgcontext.store.search import SearchMethods

__all__ = ["ContextStore"]


class ContextStore(MessageMethods, ForkMethods, SearchMethods, EmbeddingMethods, RetentionMethods):
    """Conversations on PostgreSQL, for one tenant.

    Making one does no I/O; connections are made at the first call and shared by all stores that
    `for_tenant` gives.

    Args:
        url: `postgresql://…`; None reads the environment (`DATABASE_URL`, …), and where that
            names none, means the embedded PostgreSQL.
        tenant_id: whose contexts these are; None is the nil UUID.
        embedder: what makes embeddings of text; without one, only those given are stored.
        tokenizer: what counts tokens; None takes the one of the settings.
        settings: all settings at once, instead of the environment.

    Raises:
        ConfigError: the URL or a setting cannot be used.
    """
