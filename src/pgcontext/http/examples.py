"""Examples for the OpenAPI description, made of the real types so that they stay right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from pgcontext.http import bodies
from pgcontext.http.bodies import Items
from pgcontext.models import Context, Diff, EraseReport, Hit, Message, Page, PurgeReport, Window

TENANT: Final = UUID(int=0)
CONTEXT_ID: Final = UUID("0199d3b4-6d2e-7c1a-9f0e-3a5b8c7d6e1f")
FORK_ID: Final = UUID("0199d3b5-12f0-7e88-8a41-90c2d4e6f801")
MOMENT: Final = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)

CONTEXT: Final = Context(
    tenant_id=TENANT,
    id=CONTEXT_ID,
    name="Where is my bicycle?",
    metadata={"channel": "web"},
    created_at=MOMENT,
    updated_at=MOMENT,
    message_count=1,
    total_tokens=6,
    latest_version=1,
    revision=1,
    parent_id=None,
    fork_version=None,
    fork_revision=None,
    expires_at=None,
    deleted_at=None,
)
FORK: Final = msgspec.structs.replace(
    CONTEXT,
    id=FORK_ID,
    name="Another answer",
    metadata={},
    revision=0,
    parent_id=CONTEXT_ID,
    fork_version=1,
    fork_revision=1,
)
MESSAGE: Final = Message(
    TENANT,
    UUID("0199d3b4-7000-7a11-8b22-c33d44e55f66"),
    CONTEXT_ID,
    1,
    MOMENT,
    "user",
    "Where is my bicycle?",
    None,
    None,
    6,
    None,
    None,
    "order-17-question-1",
    None,
    None,
)
HIT: Final = Hit(
    message=MESSAGE,
    distance=0.412,
    text_score=0.608,
    score=0.7256,
    found_by=("vector", "text"),
    neighbors=[],
)

# The body of a request, by operation.
REQUESTS: Final[dict[str, Any]] = {
    "create": {"name": "Where is my bicycle?", "metadata": {"channel": "web"}},
    "update": {"name": "The lost bicycle"},
    "append": {"messages": [{"role": "user", "content": "Where is my bicycle?"}]},
    "delete_messages": {"versions": [1]},
    "restore_messages": {"versions": [1]},
    "fork": {"at_version": 1, "name": "Another answer"},
    "merge": {"into": str(FORK_ID)},
    "search": {"query": "a missing bicycle", "limit": 5, "neighbors": 1},
    "embed_pending": {"limit": 100},
    "erase": {"versions": [1]},
    "purge": {"older_than_seconds": 30 * 86_400},
}

# What an operation answers, by the type of it.
REPLIES: Final[dict[Any, Any]] = {
    Context: CONTEXT,
    Page[Context]: Page([CONTEXT], None),
    Items[Context]: Items([CONTEXT, FORK]),
    Items[Message]: Items([MESSAGE]),
    Items[Hit]: Items([HIT]),
    Window: Window([MESSAGE], 6, truncated=False),
    Diff: Diff(CONTEXT_ID, 1, [], [msgspec.structs.replace(MESSAGE, version=2)]),
    PurgeReport: PurgeReport(contexts=2, messages=31),
    EraseReport: EraseReport(messages=1, contexts=2),
    bodies.Embedded: bodies.Embedded(31),
    bodies.Health: bodies.Health(),
    bodies.Readiness: bodies.Readiness("0004"),
}
