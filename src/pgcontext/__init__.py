"""Conversations for LLM applications on your own PostgreSQL: versions, forks, windows, search.

from pgcontext import ContextStore
"""

from pgcontext.embedding import CallableEmbedder, Embedder, HttpEmbedder, LocalEmbedder
from pgcontext.errors import (
    ConfigError,
    ContextNotFoundError,
    ContextStoreError,
    DimensionMismatchError,
    EmbeddingError,
    IdempotencyConflictError,
    InvalidInputError,
    LimitExceededError,
    MessageNotFoundError,
    PoolTimeoutError,
    SchemaMismatchError,
    UnavailableError,
    VersionConflictError,
)
from pgcontext.models import (
    Context,
    Diff,
    EraseReport,
    Hit,
    Message,
    NewMessage,
    Page,
    PurgeReport,
    Window,
)
from pgcontext.settings import Settings
from pgcontext.store import ContextStore
from pgcontext.tokens import Tokenizer

__all__ = [
    "CallableEmbedder",
    "ConfigError",
    "Context",
    "ContextNotFoundError",
    "ContextStore",
    "ContextStoreError",
    "Diff",
    "DimensionMismatchError",
    "Embedder",
    "EmbeddingError",
    "EraseReport",
    "Hit",
    "HttpEmbedder",
    "IdempotencyConflictError",
    "InvalidInputError",
    "LimitExceededError",
    "LocalEmbedder",
    "Message",
    "MessageNotFoundError",
    "NewMessage",
    "Page",
    "PoolTimeoutError",
    "PurgeReport",
    "SchemaMismatchError",
    "Settings",
    "Tokenizer",
    "UnavailableError",
    "VersionConflictError",
    "Window",
    "__version__",
]

__version__ = "0.1.0"
