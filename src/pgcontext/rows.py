"""From the database's rows to models. The one place where a row is untyped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pgcontext.models import Context, Message

if TYPE_CHECKING:
    from uuid import UUID

_decode = msgspec.json.decode


def context(row: Any, tenant_id: UUID) -> Context:  # noqa: ANN401 (a row)
    """Make a context of a row with CONTEXT_COLUMNS."""
    return Context(
        tenant_id=tenant_id,
        id=row["id"],
        name=row["name"],
        metadata=_decode(row["metadata"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        message_count=row["message_count"],
        total_tokens=row["total_tokens"],
        latest_version=row["latest_version"],
        revision=row["revision"],
        parent_id=row["parent_id"],
        fork_version=row["fork_version"],
        fork_revision=row["fork_revision"],
        expires_at=row["expires_at"],
        deleted_at=row["deleted_at"],
    )


def message(row: Any, tenant_id: UUID) -> Message:  # noqa: ANN401 (a row)
    """Make a message of a row that ends with MESSAGE_COLUMNS and deleted_at."""
    (
        message_id,
        context_id,
        version,
        created_at,
        role,
        content,
        tool_call_id,
        tool_name,
        token_count,
        model,
        payload,
        idempotency_key,
        embedding_model,
        embedding_pending,
        deleted_at,
    ) = row[-15:]
    return Message(
        tenant_id,
        message_id,
        context_id,
        version,
        created_at,
        role,
        content,
        tool_call_id,
        tool_name,
        token_count,
        model,
        None if payload is None else _decode(payload),
        idempotency_key,
        deleted_at,
        embedding_model,
        embedding_pending,
    )


def messages(rows: list[Any], tenant_id: UUID) -> list[Message]:
    """Make messages of rows, leaving out the row of NULLs that an empty outer join gives."""
    return [message(row, tenant_id) for row in rows if row["version"] is not None]
