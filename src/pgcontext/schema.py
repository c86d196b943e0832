"""The one description of the database, as SQLAlchemy metadata: tables and all about them.

Migrations are proven equal to it. The request path never imports this module; it exists for
Alembic, for tests and for users who join pgcontext's tables with their own.

`TenantMixin`, `TimestampMixin` and `SoftDeleteMixin` are made for reuse: a user's own declarative
classes can take them and get the same columns, and `tenant_policy` the same row-level security.
See docs/schema.md.
"""

from __future__ import annotations

import uuid  # noqa: TC003 (SQLAlchemy reads the annotations at run time)
from datetime import datetime  # noqa: TC003
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa
from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from pgcontext.functions.matching import matching_functions
from pgcontext.functions.nearest import nearest_functions
from pgcontext.functions.text import TEXT_LANGUAGE_DEFAULT, text_functions
from pgcontext.limits import EMBEDDING_DIMENSIONS_DEFAULT
from pgcontext.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

NIL_TENANT: Final = "00000000-0000-0000-0000-000000000000"

NAMING_CONVENTION: Final = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(referred_table_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
}


class TenantMixin:
    """The tenant, first in the primary key. Whoever has one tenant only never sees it."""

    tenant_id: Mapped[uuid.UUID] = mapped_column(
        sa.Uuid, primary_key=True, server_default=sa.text(f"'{NIL_TENANT}'"), sort_order=-100
    )


class TimestampMixin:
    """When the row was made and when it last changed, both by the database's clock.

    `updated_at` is set by whoever updates the row: a trigger would break on distributed tables.
    """

    created_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now(), sort_order=100
    )
    updated_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now(), sort_order=101
    )


class SoftDeleteMixin:
    """When the row was deleted; NULL while it lives."""

    deleted_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True), sort_order=110)


def tenant_policy(table: sa.Table) -> Iterator[sa.DDL]:
    """Yield the DDL that puts row-level security behind a table with a `tenant_id`.

    The expression is bare on purpose: wrapped in a SELECT it would lose the tenant's statistics.
    A custom setting that was reset reads as '', hence the nullif.
    """
    quoted = _PREPARER.format_table(table)
    yield _ddl(f"ALTER TABLE {quoted} ENABLE ROW LEVEL SECURITY")
    yield _ddl(
        f"CREATE POLICY {_PREPARER.quote(f'{table.name}_tenant')} ON {quoted} "
        "USING (tenant_id = nullif(current_setting('pgcontext.tenant_id', true), '')::uuid)"
    )


class _ContextColumns(TenantMixin, TimestampMixin, SoftDeleteMixin):
    id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.Text)
    # `metadata` is a reserved attribute name of declarative classes.
    metadata_: Mapped[dict[str, Any]] = mapped_column(
        "metadata", JSONB, server_default=sa.text("'{}'::jsonb")
    )
    message_count: Mapped[int] = mapped_column(sa.Integer, server_default=sa.text("0"))
    total_tokens: Mapped[int] = mapped_column(sa.BigInteger, server_default=sa.text("0"))
    latest_version: Mapped[int] = mapped_column(sa.BigInteger, server_default=sa.text("0"))
    revision: Mapped[int] = mapped_column(sa.BigInteger, server_default=sa.text("0"))
    parent_id: Mapped[uuid.UUID | None] = mapped_column(sa.Uuid)
    fork_version: Mapped[int | None] = mapped_column(sa.BigInteger)
    fork_revision: Mapped[int | None] = mapped_column(sa.BigInteger)
    expires_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805 (SQLAlchemy hands over the class)
        return (
            sa.ForeignKeyConstraint(
                ["tenant_id", "parent_id"],
                ["contexts.tenant_id", "contexts.id"],
                name="contexts_parent_fkey",
            ),
            sa.CheckConstraint(
                "(parent_id IS NULL) = (fork_version IS NULL)"
                " AND (parent_id IS NULL) = (fork_revision IS NULL)",
                name="fork",
            ),
            sa.CheckConstraint("message_count >= 0 AND total_tokens >= 0", name="counters"),
            # No index covers a column that an append changes, and pages keep room: updates of
            # this row stay HOT.
            {"postgresql_with": {"fillfactor": "70"}},
        )


class _MessageColumns(TenantMixin, SoftDeleteMixin):
    id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)
    context_id: Mapped[uuid.UUID] = mapped_column(sa.Uuid)
    version: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )
    role: Mapped[str] = mapped_column(sa.Text)
    content: Mapped[str | None] = mapped_column(sa.Text)
    tool_call_id: Mapped[str | None] = mapped_column(sa.Text)
    tool_name: Mapped[str | None] = mapped_column(sa.Text)
    token_count: Mapped[int] = mapped_column(sa.Integer, server_default=sa.text("0"))
    model: Mapped[str | None] = mapped_column(sa.Text)
    payload: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    idempotency_key: Mapped[str | None] = mapped_column(sa.Text)
    # The message's place in the batch that carried the key, from 1.
    batch_ordinal: Mapped[int | None] = mapped_column(sa.Integer)
    embedding_model: Mapped[str | None] = mapped_column(sa.Text, sort_order=121)
    # While an embedding is owed: from when on a worker may claim the message.
    embed_after: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True), sort_order=122)

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (
            sa.ForeignKeyConstraint(
                ["tenant_id", "context_id"],
                ["contexts.tenant_id", "contexts.id"],
                name="messages_context_fkey",
            ),
            # This key is what makes two messages with one version impossible.
            sa.UniqueConstraint("tenant_id", "context_id", "version", name="messages_version_key"),
            sa.CheckConstraint(
                "role IN ('user', 'assistant', 'system', 'tool', 'developer')", name="role"
            ),
            sa.CheckConstraint("version > 0", name="version"),
            sa.CheckConstraint("token_count >= 0", name="token_count"),
            sa.CheckConstraint(
                "(idempotency_key IS NULL) = (batch_ordinal IS NULL)", name="idempotency"
            ),
        )


class _TombstoneColumns(TenantMixin):
    context_id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)
    version: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    # The context's revision at which the version was hidden; 0 says erased, for everyone.
    revision: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    restored_revision: Mapped[int | None] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (
            sa.ForeignKeyConstraint(
                ["tenant_id", "context_id"],
                ["contexts.tenant_id", "contexts.id"],
                name="tombstones_context_fkey",
                ondelete="CASCADE",
            ),
        )


class _ApiKeyColumns(TenantMixin):
    id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text)
    scope: Mapped[str] = mapped_column(sa.Text)
    # SHA-256 in hexadecimal. The secret itself is nowhere.
    secret_hash: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(
        sa.DateTime(timezone=True), server_default=sa.func.now()
    )
    expires_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))

    @declared_attr.directive
    def __table_args__(cls) -> tuple[Any, ...]:  # noqa: N805
        return (
            sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name="scope"),
            sa.CheckConstraint("length(secret_hash) = 64", name="secret_hash"),
        )


def build_metadata(
    dimensions: int = EMBEDDING_DIMENSIONS_DEFAULT,
    schema: str | None = None,
    language: str = TEXT_LANGUAGE_DEFAULT,
) -> sa.MetaData:
    """Describe pgcontext's tables.

    Args:
        dimensions: the length of the embeddings, 1 to `EMBEDDING_DIMENSIONS_MAX`.
        schema: the schema of the tables, lower-case letters, digits and underscores; None leaves it
            to the search path (`public`).
        language: what text search takes texts to be in, a configuration of PostgreSQL's own.

    Returns:
        Metadata with the tables contexts, messages, tombstones and api_keys. `create_all` also
        makes their policies and the functions; the extension `vector` has to exist.

    Raises:
        ConfigError: an argument is none that settings may have. Functions name the schema and the
            language in texts, where a quote would end them.
    """
    Settings(dimensions=dimensions, schema=schema or "public", text_language=language).checked()
    prefix = _prefix(schema)

    class Base(DeclarativeBase):
        metadata = sa.MetaData(schema=schema, naming_convention=NAMING_CONVENTION)

    class ContextRow(_ContextColumns, Base):
        __tablename__ = "contexts"

    class MessageRow(_MessageColumns, Base):
        __tablename__ = "messages"
        embedding: Mapped[Any | None] = mapped_column(VECTOR(dimensions), sort_order=120)
        signature: Mapped[str | None] = mapped_column(
            BIT(dimensions),
            sa.Computed(f"binary_quantize(embedding)::bit({dimensions})", persisted=True),
            sort_order=123,
        )
        text_search: Mapped[str | None] = mapped_column(
            TSVECTOR,
            sa.Computed(f"{prefix}pgcontext_text_vector(content)", persisted=True),
            sort_order=124,
        )

    class TombstoneRow(_TombstoneColumns, Base):
        __tablename__ = "tombstones"

    class ApiKeyRow(_ApiKeyColumns, Base):  # pyright: ignore[reportUnusedClass] # it registers
        __tablename__ = "api_keys"

    _index_contexts(cast("sa.Table", ContextRow.__table__))
    _index_messages(cast("sa.Table", MessageRow.__table__), dimensions)
    _index_tombstones(cast("sa.Table", TombstoneRow.__table__))
    for table in Base.metadata.sorted_tables:
        for ddl in tenant_policy(table):
            event.listen(table, "after_create", ddl)
    # Before the tables: a column is generated by one of them.
    for function in text_functions(language, prefix):
        event.listen(Base.metadata, "before_create", _ddl(function))
    # Loading the library first lets a role that is no superuser SET hnsw.* in a function.
    event.listen(Base.metadata, "after_create", _ddl("SELECT '[1]'::vector"))
    for function in (*nearest_functions(dimensions, prefix), *matching_functions(prefix)):
        event.listen(Base.metadata, "after_create", _ddl(function))
    return Base.metadata


def _index_contexts(contexts: sa.Table) -> None:
    of = contexts.c
    # Newest first, by key.
    sa.Index("contexts_newest_idx", of.tenant_id, of.created_at, of.id)
    sa.Index(
        "contexts_parent_idx",
        of.tenant_id,
        of.parent_id,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    sa.Index(
        "contexts_metadata_idx",
        of.metadata,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    sa.Index(
        "contexts_deleted_idx",
        of.tenant_id,
        of.deleted_at,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    sa.Index(
        "contexts_expires_idx",
        of.tenant_id,
        of.expires_at,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def _index_messages(messages: sa.Table, dimensions: int) -> None:
    of = messages.c
    # One key writes one batch: the second of two callers at once runs into this.
    sa.Index(
        "messages_idempotency_idx",
        of.tenant_id,
        of.context_id,
        of.idempotency_key,
        of.batch_ordinal,
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    # A window keeps the system messages, however far back they are.
    sa.Index(
        "messages_pinned_idx",
        of.tenant_id,
        of.context_id,
        of.version,
        postgresql_where=sa.text("role IN ('system', 'developer')"),
    )
    sa.Index(
        "messages_deleted_idx",
        of.tenant_id,
        of.deleted_at,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    sa.Index(
        "messages_pending_idx",
        of.tenant_id,
        of.embed_after,
        postgresql_where=sa.text("embed_after IS NOT NULL"),
    )
    # All that a search over the tenant asks about a message, so that it can stay inside the index.
    sa.Index(
        "messages_signature_idx",
        of.tenant_id,
        of.role,
        of.created_at,
        postgresql_include=["id", "context_id", "model", "embedding_model", "signature"],
        postgresql_where=sa.text("deleted_at IS NULL AND embedding IS NOT NULL"),
    )
    # As halfvec: half the size at equal recall, and up to 4,000 dimensions instead of 2,000.
    sa.Index(
        "messages_embedding_idx",
        sa.literal_column(f"(embedding::halfvec({dimensions}))", HALFVEC(dimensions)).label("half"),
        postgresql_using="hnsw",
        postgresql_ops={"half": "halfvec_cosine_ops"},
        postgresql_where=sa.text("deleted_at IS NULL"),
        _table=messages,
    )
    sa.Index(
        "messages_text_idx",
        of.text_search,
        postgresql_using="gin",
        postgresql_where=sa.text("deleted_at IS NULL"),
    )


def _index_tombstones(tombstones: sa.Table) -> None:
    # Two callers who hide one version at once: the second finds it hidden.
    sa.Index(
        "tombstones_hidden_idx",
        tombstones.c.tenant_id,
        tombstones.c.context_id,
        tombstones.c.version,
        unique=True,
        postgresql_where=sa.text("restored_revision IS NULL"),
    )


def _prefix(schema: str | None) -> str:
    return f"{_PREPARER.quote_schema(schema)}." if schema else ""


def _ddl(text: str) -> sa.DDL:
    return sa.DDL(text.replace("%", "%%"))  # type: ignore[no-untyped-call] # a % would be a format


_PREPARER: Final = PGDialect().identifier_preparer  # type: ignore[no-untyped-call]

metadata: Final = build_metadata()
