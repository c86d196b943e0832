"""Each statement fits the migrated database, and its columns fit the models made of them."""

from __future__ import annotations

import types
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import asyncpg
import pytest

from pgcontext import Context, Message, migrate, statements
from tests.support.migrations import VERSIONS, settings_of
from tests.support.sql import all_statements

if TYPE_CHECKING:
    from collections.abc import Callable

# What crosses the wire without a look-up of types on each new connection.
PLAIN_TYPES: Final = {
    *("bool", "float4", "float8", "int4", "int8", "json", "jsonb", "numeric", "text", "text[]"),
    *("timestamptz", "uuid", "varchar"),
}
# How the database says what a model's field holds.
TYPES: Final[dict[Any, set[str]]] = {
    UUID: {"uuid"},
    str: {"text"},
    bool: {"bool"},
    int: {"int4", "int8"},
    datetime: {"timestamptz"},
    dict: {"jsonb"},
}
# Fields that a statement does not return: whose rows they are is known, and so is a replay.
KNOWN_TO_THE_CALLER: Final = {"tenant_id", "replayed"}

CONTEXTS: Final = {
    *("ANCESTORS", "CREATE", "DELETE", "FORK", "FORK_AT", "FORKS", "GET", "LIST", "RESTORE"),
    "UPDATE",
}
MESSAGES: Final = {
    *("APPEND_REFUSED", "DELETE_MESSAGES", "DIFF", "EXPORT_MESSAGES", "HISTORY", "HISTORY_AFTER"),
    *("HISTORY_AFTER_WITH_HIDDEN", "HISTORY_WITH_HIDDEN"),
    *("MERGE", "MERGED", "RESTORE_MESSAGES", "WINDOW"),
    *("SEARCH_CONTEXT_HYBRID", "SEARCH_CONTEXT_TEXT", "SEARCH_CONTEXT_VECTOR"),
    *("SEARCH_CONTEXT_HYBRID_AROUND", "SEARCH_CONTEXT_TEXT_AROUND", "SEARCH_CONTEXT_VECTOR_AROUND"),
    *("SEARCH_TENANT_HYBRID", "SEARCH_TENANT_TEXT", "SEARCH_TENANT_VECTOR"),
    *("SEARCH_TENANT_HYBRID_AROUND", "SEARCH_TENANT_TEXT_AROUND", "SEARCH_TENANT_VECTOR_AROUND"),
}
# What the statements about API keys return; of a secret not even the hash, but to compare it.
API_KEY: Final = {
    "id": "uuid",
    "name": "text",
    "scope": "text",
    "created_at": "timestamptz",
    "expires_at": "timestamptz",
    "revoked_at": "timestamptz",
}
# What the others return, and what makes no model of it looks at.
OTHERS: Final = {
    "APPEND": {"base": "int8", "created_at": "timestamptz"},
    "EMBED_CLAIM": {"id": "uuid", "content": "text", "embed_after": "timestamptz"},
    "EMBED_FILL": {"messages": "int8"},
    "EMBED_OTHERS": {
        "id": "uuid",
        "content": "text",
        "embedding_model": "text",
        "last_id": "uuid",
    },
    "EMBED_OTHERS_COUNT": {"messages": "int8"},
    "EMBED_OWED": {"due": "int8", "later": "int8"},
    "EMBED_RELEASE": {},
    "EMBED_REPLACE": {"messages": "int8"},
    "ERASE": {"missing": "text[]", "messages": "int8", "contexts": "int8"},
    "ERASE_OWNERS": {"id": "uuid"},
    "EXPIRE": {},
    "EXPORT_HIDDEN": {"version": "int8"},
    "INSPECT": {
        "version": "text",
        "version_number": "int4",
        "is_standby": "bool",
        "pgvector": "text",
        "pgvector_offered": "text",
        "dimensions": "int4",
    },
    "KEY_CREATE": API_KEY,
    "KEY_LIST": API_KEY,
    "KEY_LOOK_UP": {"scope": "text", "secret_hash": "text", "seconds_left": "float8"},
    "KEY_REVOKE": API_KEY,
    "KEY_ROTATE": API_KEY,
    "LOCK": {"id": "uuid"},
    "LOCK_TREES": {"id": "uuid"},
    "PURGE_CONTEXTS": {"contexts": "int8"},
    "PURGE_MESSAGES": {"messages": "int8"},
    "REVISION": {"revision": "text"},
    "PURGE_OWNERS": {"id": "uuid"},
}


def fields_of(model: type) -> dict[str, tuple[set[str], bool]]:
    """The fields that a statement returns: the types that fit, and whether NULL does."""
    hints = get_type_hints(model)
    return {
        name: _fitting(hints[name])
        for name in model.__struct_fields__  # type: ignore[attr-defined]
        if name not in KNOWN_TO_THE_CALLER
    }


def _fitting(hint: Any) -> tuple[set[str], bool]:
    options = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    plain = next(option for option in options if option is not type(None))
    origin = get_origin(plain) or plain
    return TYPES[str if origin is Literal else origin], type(None) in options


@pytest.fixture(params=VERSIONS)
async def migrated(request: pytest.FixtureRequest, make_database: Callable[..., str]) -> Any:
    """A connection to a database whose tables are in another schema than is looked in first."""
    url = make_database(version=request.param, migrated=False)
    migrate.upgrade(settings=settings_of(url, schema="chats"))
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def test_statements_prepare(migrated: asyncpg.Connection) -> None:
    """The server accepts each of them, and takes and gives plain types only."""
    for name, text in all_statements().items():
        prepared = await migrated.prepare(statements.in_schema(text, "chats"))
        taken = {parameter.name for parameter in prepared.get_parameters()}
        given = {column.type.name for column in prepared.get_attributes()}
        assert taken | given <= PLAIN_TYPES, name


async def test_columns_fit_their_models(migrated: asyncpg.Connection) -> None:
    """Every field has its column, of its type; a message's are the last, in the order read."""
    for name, text in all_statements().items():
        prepared = await migrated.prepare(statements.in_schema(text, "chats"))
        columns = {column.name: column.type.name for column in prepared.get_attributes()}
        if name in OTHERS:
            assert columns == OTHERS[name], name
            continue
        model = Context if name in CONTEXTS else Message
        fields = fields_of(model)
        wrong = {
            field: columns.get(field)
            for field, (fitting, _) in fields.items()
            if columns.get(field) not in fitting
        }
        assert not wrong, (name, wrong)
        if model is Message:
            # By place, as `rows.message` reads them.
            order = [field for field in fields if field != "deleted_at"] + ["deleted_at"]
            assert list(columns)[-len(order) :] == order, name


def test_no_statement_is_left_out() -> None:
    """A new statement has to be put into one of the tables above."""
    assert set(all_statements()) == CONTEXTS | MESSAGES | set(OTHERS)
    public = {name for name in statements.__all__ if name.isupper()}
    assert public <= set(all_statements())


@pytest.mark.parametrize(("table", "model"), [("contexts", Context), ("messages", Message)])
async def test_fields_are_optional_where_columns_may_be_null(
    connection: asyncpg.Connection, table: str, model: type
) -> None:
    """A model promises a value exactly where the database does."""
    rows = await connection.fetch(
        "SELECT attname, attnotnull FROM pg_attribute WHERE attrelid = $1::text::regclass", table
    )
    nullable = {row["attname"]: not row["attnotnull"] for row in rows}
    fields = fields_of(model)
    fields.pop("embedding_pending", None)  # made of embed_after
    assert {name: optional for name, (_, optional) in fields.items()} == {
        name: nullable[name] for name in fields
    }
