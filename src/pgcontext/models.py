"""What the store gives back and takes: frozen, slotted, without behaviour beyond their fields."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec

Role: TypeAlias = Literal["user", "assistant", "system", "tool", "developer"]
Json: TypeAlias = dict[str, Any]
T = TypeVar("T")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation.

    Attributes:
        tenant_id: whose it is; the nil UUID for a single-tenant user.
        id: a UUIDv7 made by the client.
        name: a label for people, at most `NAME_CHARS_MAX` characters.
        metadata: a JSON object; `list` and `search` filter by containment in it.
        created_at: when it was created, in UTC.
        updated_at: when it last changed, in UTC.
        message_count: how many messages its view shows, inherited ones included.
        total_tokens: the sum of their token counts.
        latest_version: the version of its newest message, hidden or not; of a new fork, its
            `fork_version`.
        revision: counts every change of what the view shows: append, delete, restore.
        parent_id: the context it was forked from.
        fork_version: the last version it inherits from its parent.
        fork_revision: the parent's revision at the moment of forking.
        expires_at: from then on `purge` may remove it.
        deleted_at: when it was soft-deleted.
    """

    tenant_id: UUID
    id: UUID
    name: str | None
    metadata: Json
    created_at: datetime
    updated_at: datetime
    message_count: int
    total_tokens: int
    latest_version: int
    revision: int
    parent_id: UUID | None
    fork_version: int | None
    fork_revision: int | None
    expires_at: datetime | None
    deleted_at: datetime | None


# Not keyword-only: by position it is made seven times faster, and a page has up to a thousand.
class Message(msgspec.Struct, frozen=True):
    """One message of a context. Its content never changes.

    Attributes:
        tenant_id: whose it is.
        id: a UUIDv7 made by the client, unless the caller gave one.
        context_id: the context that wrote it, which for an inherited message is an ancestor.
        version: its 1-based place in the context's view.
        created_at: when it was stored, in UTC.
        role: who speaks.
        content: the text; of content in parts, the text of the text parts joined by newlines.
        tool_call_id: of a tool's result, the call it answers.
        tool_name: of a tool's result, the tool.
        token_count: tokens of the content and of the tool calls.
        model: the model that wrote it.
        payload: what the caller's mapping says beyond the fields above.
        idempotency_key: the key it was appended with.
        deleted_at: when the view it was read through hid it.
        embedding_model: the model of its embedding.
        embedding_pending: an embedding is still owed, because it was left for later or failed.
        replayed: this is the result of an earlier call with the same idempotency key.
    """

    tenant_id: UUID
    id: UUID
    context_id: UUID
    version: int
    created_at: datetime
    role: Role
    content: str | None
    tool_call_id: str | None
    tool_name: str | None
    token_count: int
    model: str | None
    payload: Json | None
    idempotency_key: str | None
    deleted_at: datetime | None
    embedding_model: str | None
    embedding_pending: bool = False
    replayed: bool = False

    def as_dict(self) -> Json:
        """Give back the mapping that was appended, key for key."""
        mapping: Json = {"role": self.role}
        if self.content is not None:
            mapping["content"] = self.content
        if self.tool_call_id is not None:
            mapping["tool_call_id"] = self.tool_call_id
        if self.tool_name is not None:
            mapping["name"] = self.tool_name
        if self.payload is not None:
            mapping.update(self.payload)
        return mapping


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to append, for those who prefer names to a mapping.

    Attributes:
        role: user, assistant, system, tool or developer.
        content: text, a list of content parts, or None.
        tool_calls: the calls an assistant makes, as in chat completions.
        tool_call_id: of a tool's result, the call it answers.
        name: of a tool's result, the tool; otherwise the speaker's name.
        model: the model that wrote it.
        token_count: its tokens; counted when None.
        embedding: floats, as many as the database has dimensions.
        embedding_model: the model that made `embedding`.
        id: its UUID; made when None.
        extra: further keys, kept and given back by `Message.as_dict`.
    """

    role: Role
    content: str | list[Json] | None = None
    tool_calls: list[Json] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    model: str | None = None
    token_count: int | None = None
    embedding: Any = None
    embedding_model: str | None = None
    id: UUID | None = None
    extra: Json | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a listing; `next_cursor` is None on the last."""

    items: list[T]
    next_cursor: str | None


class Window(msgspec.Struct, frozen=True):
    """The newest messages that fit a token budget, oldest first.

    Attributes:
        messages: system and developer messages first, then whole groups, oldest first.
        total_tokens: the sum of their token counts.
        truncated: older messages were left out because they did not fit.
    """

    messages: list[Message]
    total_tokens: int
    truncated: bool


class Diff(msgspec.Struct, frozen=True):
    """What two contexts do not share.

    Attributes:
        ancestor_id: the nearest context both views go through; None when they are unrelated.
        version: the last version they have in common, 0 when unrelated.
        only_a: messages that the first shows and the second does not, oldest first.
        only_b: the other way round.
    """

    ancestor_id: UUID | None
    version: int
    only_a: list[Message]
    only_b: list[Message]


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A message that search found.

    Attributes:
        message: the message.
        distance: cosine distance to the query, 0 to 2, smaller is nearer; None in a search by
            text, and where the message has no embedding of the same model.
        text_score: how much of what the query's words ask for it says, 0 to 1; None in a search by
            vector, and where it has none of them.
        score: what the hits are ordered by, larger is better; 1 - distance by vector, text_score by
            text, both together in hybrid.
        found_by: "vector" or "text", or both: which of them put it among the best.
        neighbors: messages around it in the view, oldest first, the hit itself left out.
    """

    message: Message
    distance: float | None
    text_score: float | None
    score: float
    found_by: tuple[str, ...]
    neighbors: list[Message]


class PurgeReport(msgspec.Struct, frozen=True):
    """How many rows `purge` removed."""

    contexts: int
    messages: int


class EraseReport(msgspec.Struct, frozen=True):
    """What `erase` did.

    Attributes:
        messages: how many messages lost their content.
        contexts: how many contexts showed at least one of them until now.
    """

    messages: int
    contexts: int
