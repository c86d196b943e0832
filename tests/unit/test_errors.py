import copy
import pickle
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from pgcontext import errors
from pgcontext.errors import ContextStoreError

ID = UUID("01890000-0000-7000-8000-000000000001")
EXAMPLES: list[ContextStoreError] = [
    errors.ContextStoreError("Something is off.", sqlstate="XX000"),
    errors.ConfigError("Set DATABASE_URL."),
    errors.InvalidInputError("limit must be a whole number."),
    errors.LimitExceededError("limit is 5,000; at most 1,000 are accepted."),
    errors.DimensionMismatchError("The embedding has 3 dimensions, the database 8."),
    errors.ContextNotFoundError(ID),
    errors.MessageNotFoundError(ID, (3, 4)),
    errors.VersionConflictError(2, 5),
    errors.IdempotencyConflictError("The idempotency key was used for other messages."),
    errors.SchemaMismatchError("Run: pgcontext db migrate", sqlstate="42P01"),
    errors.EmbeddingError("The embedding server is busy.", retryable=True, status=429),
    errors.PoolTimeoutError("No connection became free within 10 s."),
    errors.UnavailableError("The database is gone.", sqlstate="57P01"),
]


def every_error(base: type[ContextStoreError] = ContextStoreError) -> Iterator[type]:
    """Yield the hierarchy that the module defines, the base first."""
    if base.__module__ == errors.__name__:
        yield base
    for child in base.__subclasses__():
        yield from every_error(child)


def test_every_class_of_the_hierarchy_has_an_example_here() -> None:
    """A new error class can't be forgotten by the tests below."""
    assert {type(example) for example in EXAMPLES} == set(every_error())


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_crosses_to_another_process(error: ContextStoreError, protocol: int) -> None:
    """An error pickles with everything it carries, whatever its constructor."""
    twin = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 (our own bytes)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)
    assert twin.retryable is error.retryable


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_copies(error: ContextStoreError) -> None:
    """Copying goes the same way as pickling."""
    assert vars(copy.deepcopy(error)) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_one_sentence_with_a_sqlstate(error: ContextStoreError) -> None:
    """Every error says something in one line and has the attribute, None included."""
    assert str(error)
    assert "\n" not in str(error)
    assert error.sqlstate is None or len(error.sqlstate) == 5


def test_only_failures_that_pass_by_themselves_are_retryable() -> None:
    """`retryable` is true for the pool, the connection and an embedding server that is busy."""
    assert {type(error) for error in EXAMPLES if error.retryable} == {
        errors.EmbeddingError,
        errors.PoolTimeoutError,
        errors.UnavailableError,
    }


def test_an_embedding_error_knows_whether_it_passes() -> None:
    """It may be the server's moment, or a key that is wrong: told when it is made."""
    refused = errors.EmbeddingError("The key is not accepted.", status=401)
    assert (refused.retryable, refused.status) == (False, 401)


def test_errors_are_also_what_python_programmers_catch() -> None:
    """Each class derives from the builtin that says the same, where there is one."""
    assert issubclass(errors.InvalidInputError, ValueError)
    assert issubclass(errors.ContextNotFoundError, LookupError)
    assert issubclass(errors.MessageNotFoundError, LookupError)
    assert issubclass(errors.PoolTimeoutError, TimeoutError)
    assert issubclass(errors.UnavailableError, ConnectionError)


def test_a_version_conflict_carries_both_versions() -> None:
    """The caller can decide again without another look."""
    error = errors.VersionConflictError(2, 5)
    assert (error.expected, error.actual) == (2, 5)


def test_a_missing_message_names_its_versions_in_bounded_length() -> None:
    """Ten thousand missing versions make a short sentence and a full attribute."""
    error = errors.MessageNotFoundError(ID, tuple(range(10_000)))
    assert len(str(error)) < 200
    assert len(error.versions) == 10_000


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("40001", errors.UnavailableError),
        ("40P01", errors.UnavailableError),
        ("53100", errors.UnavailableError),
        ("53300", errors.UnavailableError),
        ("55P03", errors.UnavailableError),
        ("57014", errors.UnavailableError),
        ("57P01", errors.UnavailableError),
        ("57P02", errors.UnavailableError),
        ("57P03", errors.UnavailableError),
        ("08000", errors.UnavailableError),
        ("08006", errors.UnavailableError),
        ("08P01", errors.UnavailableError),
        ("25006", errors.UnavailableError),
        ("42P01", errors.SchemaMismatchError),
        ("42703", errors.SchemaMismatchError),
        ("42704", errors.SchemaMismatchError),
        ("42883", errors.SchemaMismatchError),
        ("3F000", errors.SchemaMismatchError),
        ("42501", errors.ConfigError),
        ("28P01", errors.ConfigError),
        ("28000", errors.ConfigError),
        ("3D000", errors.ConfigError),
        ("22P02", errors.ContextStoreError),
        ("XX000", errors.ContextStoreError),
    ],
)
def test_a_refusal_of_the_database_becomes_the_right_error(
    sqlstate: str, kind: type[ContextStoreError]
) -> None:
    """The SQLSTATE alone decides, and travels along."""
    error = errors.from_sqlstate(sqlstate)
    assert type(error) is kind
    assert error.sqlstate == sqlstate
    assert error.retryable is (kind is errors.UnavailableError)
    assert sqlstate in str(error)


def test_a_database_that_is_not_migrated_says_the_command() -> None:
    """The sentence can be pasted into a terminal."""
    assert "pgcontext db migrate" in str(errors.from_sqlstate("42P01"))


def test_not_found_says_only_what_the_caller_already_knows() -> None:
    """Whether the context exists for another tenant doesn't show."""
    asked = uuid4()
    assert str(errors.ContextNotFoundError(asked)) == f"Context {asked} was not found."
