"""The exceptions of pgcontext and how a failure of the database becomes one of them.

    ContextStoreError
    ├── ConfigError                  the settings or the URL are not usable
    ├── InvalidInputError            an argument is not acceptable; no SQL was sent
    │   ├── LimitExceededError       ... because it is larger than a bound in `limits`
    │   └── DimensionMismatchError   ... because an embedding has another length
    ├── ContextNotFoundError
    ├── MessageNotFoundError
    ├── VersionConflictError         compare-and-set lost; carries `expected` and `actual`
    ├── IdempotencyConflictError     the key was used for other messages
    ├── SchemaMismatchError          the database is not migrated, or is newer than this code
    ├── EmbeddingError               an embedder failed; a message that it was for is stored
    ├── PoolTimeoutError             no connection became free in time
    └── UnavailableError             the database could not be reached or gave up

No message carries a password, a URL with one, message content or another tenant's existence.
"""

from typing import Any, Final, NamedTuple
from uuid import UUID


class ContextStoreError(Exception):
    """Base of everything pgcontext raises.

    Attributes:
        retryable: whether the same call may succeed later without any change.
        sqlstate: the five-character code of the database, where it was the one that refused.
    """

    retryable: bool = False

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes, so that subclasses may have any constructor."""
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(
    kind: type[ContextStoreError], args: tuple[Any, ...], state: dict[str, Any]
) -> ContextStoreError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(ContextStoreError):
    """The settings or the database URL cannot be used; raised without any I/O where possible."""


class InvalidInputError(ContextStoreError, ValueError):
    """An argument is not acceptable. Nothing was written."""


class LimitExceededError(InvalidInputError):
    """An argument, or what it asks for, is larger than a bound in `pgcontext.limits`."""


class DimensionMismatchError(InvalidInputError):
    """An embedding has another number of dimensions than the database's column."""


class ContextNotFoundError(ContextStoreError, LookupError):
    """No such context for this tenant, or it is soft-deleted."""

    def __init__(self, context_id: UUID, *, sqlstate: str | None = None) -> None:
        super().__init__(f"Context {context_id} was not found.", sqlstate=sqlstate)
        self.context_id = context_id


class MessageNotFoundError(ContextStoreError, LookupError):
    """The context's view has no message with one of these versions. Nothing was changed."""

    def __init__(self, context_id: UUID, versions: tuple[int, ...]) -> None:
        shown = ", ".join(map(str, versions[:10])) + (", …" if len(versions) > 10 else "")  # noqa: PLR2004
        super().__init__(f"Context {context_id} shows no message with version {shown}.")
        self.context_id = context_id
        self.versions = versions


class VersionConflictError(ContextStoreError):
    """The context is not at the version the caller expected. Nothing was written.

    Attributes:
        expected: the version the caller named.
        actual: the context's `latest_version` when the call was refused.
    """

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(
            f"The context is at version {actual}, not at the expected {expected}; "
            "read what is new and decide again."
        )
        self.expected = expected
        self.actual = actual


class IdempotencyConflictError(ContextStoreError):
    """The idempotency key was used in this context for other messages. Nothing was written."""


class SchemaMismatchError(ContextStoreError):
    """The database is not migrated to what this code needs, or is newer."""


class EmbeddingError(ContextStoreError):
    """Text could not be embedded, also after bounded retries.

    Never raised by `append`, which stores the messages and marks them for later.

    Attributes:
        retryable: whether the failure passes by itself: the embedding server was busy or away.
        status: the HTTP status it answered with, where it was one that refused.
    """

    def __init__(self, message: str, *, retryable: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.status = status


class PoolTimeoutError(ContextStoreError, TimeoutError):
    """No connection of the pool became free in time. Nothing was sent."""

    retryable = True


class UnavailableError(ContextStoreError, ConnectionError):
    """The database could not be reached, or gave up, also after bounded retries."""

    retryable = True


QUERY_CANCELED_SQLSTATE: Final = "57014"

# Failures that pass by themselves: the statement is safe to send again, since it either did not
# happen or is recognised by ids that were chosen before the first try.
# Source: PostgreSQL documentation, appendix A.
RETRYABLE_SQLSTATES: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53100",  # disk_full, until somebody makes room
        "53300",  # too_many_connections
        "55P03",  # lock_not_available
        QUERY_CANCELED_SQLSTATE,  # a statement timeout of the server: for the caller to repeat
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
        "23503",  # foreign_key_violation: what it refers to, or was about to remove, just changed
        "25006",  # read_only_sql_transaction: a failover is under way
    }
)
RETRYABLE_SQLSTATE_CLASSES: Final = frozenset({"08"})  # connection_exception

SCHEMA_SQLSTATES: Final = frozenset(
    {
        "3F000",  # invalid_schema_name
        "42P01",  # undefined_table
        "42703",  # undefined_column
        "42704",  # undefined_object: the `vector` type
        "42883",  # undefined_function
    }
)
PRIVILEGE_SQLSTATE: Final = "42501"  # insufficient_privilege


def is_retryable_sqlstate(sqlstate: str) -> bool:
    """Tell whether the failure with this SQLSTATE passes by itself."""
    return sqlstate in RETRYABLE_SQLSTATES or sqlstate[:2] in RETRYABLE_SQLSTATE_CLASSES


def from_sqlstate(sqlstate: str) -> ContextStoreError:
    """Make the exception a caller gets for a refusal by the database.

    The server's own text is left out on purpose: it may quote values, and it is translated.
    """
    if is_retryable_sqlstate(sqlstate):
        refusal = _PASSING
    elif sqlstate in SCHEMA_SQLSTATES:
        refusal = _NO_SCHEMA
    else:
        refusal = _REFUSALS.get(sqlstate, _OTHER)
    return refusal.kind(f"{refusal.sentence} (SQLSTATE {sqlstate})", sqlstate=sqlstate)


class _Refusal(NamedTuple):
    kind: type[ContextStoreError]
    sentence: str


_PASSING = _Refusal(
    UnavailableError, "The database gave up on the statement, also after retries; try again later."
)
_NO_SCHEMA = _Refusal(
    SchemaMismatchError,
    "The database does not have the schema this version needs; run: pgcontext db migrate",
)
_OTHER = _Refusal(ContextStoreError, "The database refused the statement.")
_CREDENTIALS = _Refusal(
    ConfigError, "The database refused the user name or password; check DATABASE_URL."
)
_REFUSALS: Final = {
    # data_exception: pgvector compared unequal lengths
    "22000": _Refusal(
        DimensionMismatchError,
        "The database's embeddings have other dimensions than PGCONTEXT_DIMENSIONS says: set it to "
        "those that pgcontext db status shows, or change them with: pgcontext db dimensions N",
    ),
    "28000": _CREDENTIALS,  # invalid_authorization_specification
    "28P01": _CREDENTIALS,  # invalid_password
    "3D000": _Refusal(ConfigError, "The database that DATABASE_URL names does not exist."),
    PRIVILEGE_SQLSTATE: _Refusal(
        ConfigError,
        "The database role may not use pgcontext's tables: it lacks SELECT, INSERT, UPDATE or "
        "DELETE on them, or row-level security holds it to another tenant. Connect as their owner, "
        "or see docs/guide.md, Row-level security.",
    ),
}
