"""What requests bring and answers hold, beyond the store's own models.

Fields are named as the arguments of the store's methods. An unknown field is refused: it may be a
typing error. What a field may hold is checked by the store, so only its form is checked here.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar, get_args
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from pgcontext import limits
from pgcontext.models import Json, Role
from pgcontext.store.search import Mode

T = TypeVar("T")

# Query parameters that may stand several times, and those whose text is JSON.
REPEATED: Final = frozenset({"roles"})
AS_JSON: Final = frozenset({"metadata"})
# What a header carries unchanged through every proxy: visible ASCII, spaces in between.
IDEMPOTENCY_KEY: Final = re.compile("[!-~]([ -~]*[!-~])?")


def most(**bound: Any) -> Meta:  # noqa: ANN401 (JSON)
    """Describe an upper bound that the store holds: beyond it is 413, not a wrong form."""
    return Meta(extra_json_schema=bound)


Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
Name: TypeAlias = Annotated[str, most(maxLength=limits.NAME_CHARS_MAX)]
Version: TypeAlias = Annotated[int, Meta(ge=0), most(maximum=limits.VERSION_MAX)]
Versions: TypeAlias = Annotated[
    list[Annotated[int, Meta(ge=1), most(maximum=limits.VERSION_MAX)]],
    Meta(min_length=1),
    most(maxItems=limits.VERSIONS_PER_CALL_MAX),
]
# Decoded as it came, since further fields are kept; what it may hold is the store's to check.
ChatMessage: TypeAlias = Annotated[
    Json,
    Meta(
        title="ChatMessage",
        extra_json_schema={
            "required": ["role"],
            "properties": {
                "role": {"enum": list(get_args(Role))},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"type": "object"}},
                        {"type": "null"},
                    ]
                },
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "tool_call_id": {"type": "string", "maxLength": limits.CALL_ID_CHARS_MAX},
                "name": {"type": "string", "maxLength": limits.NAME_CHARS_MAX},
                "model": {"type": "string", "maxLength": limits.MODEL_CHARS_MAX},
                "token_count": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": limits.TOKEN_COUNT_MAX,
                },
                "embedding": {"type": "array", "items": {"type": "number"}},
                "embedding_model": {"type": "string", "maxLength": limits.MODEL_CHARS_MAX},
                "id": {"type": "string", "format": "uuid"},
            },
        },
    ),
]


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters, or no body."""


class NewContext(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A context to make.

    Attributes:
        name: a label for people.
        metadata: a JSON object, to filter by.
        expires_at: from then on a purge may remove it.
        id: chosen by the caller, so that making it twice is noticed.
    """

    name: Name | None = None
    metadata: Json | None = None
    expires_at: Moment | None = None
    id: UUID | None = None


class ContextChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a context; what is left out stays.

    Attributes:
        name: null removes it.
        metadata: replaces the whole object; null empties it.
        expires_at: null removes it.
    """

    name: Name | UnsetType | None = UNSET
    metadata: Json | UnsetType | None = UNSET
    expires_at: Moment | UnsetType | None = UNSET


class NewMessages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Messages to append, all or none.

    Attributes:
        messages: one message or several, in the chat-completions form: role, content, tool_calls,
            tool_call_id, name; further fields are kept. The fields id, model, token_count,
            embedding and embedding_model are the store's own.
        expected_version: append only if the context's latest_version is this.
        embed: true embeds now, "later" leaves it to a worker, false leaves it.
    """

    messages: (
        Annotated[
            list[ChatMessage], Meta(min_length=1), most(maxItems=limits.MESSAGES_PER_APPEND_MAX)
        ]
        | ChatMessage
    )
    expected_version: Version | None = None
    embed: bool | Literal["later"] | None = None


class SomeVersions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some messages.

    Attributes:
        versions: their versions, in the context's view.
    """

    versions: Versions


class NewFork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fork to make.

    Attributes:
        at_version: the last version to inherit; null is the head, 0 nothing.
        name: of the fork.
        metadata: of the fork; it does not inherit its parent's.
        id: chosen by the caller, so that making it twice is noticed.
    """

    at_version: Version | None = None
    name: Name | None = None
    metadata: Json | None = None
    id: UUID | None = None


class Merge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to merge to.

    Attributes:
        into: the context that the messages are appended to.
        rebase: append them even if it has gone on since.
    """

    into: UUID
    rebase: bool = False


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to search for.

    Attributes:
        query: words, or an embedding.
        context_id: search what the history of this context shows; null searches all contexts.
        limit: hits at most.
        mode: vector searches by meaning, text by words, hybrid by both; auto is vector for an
            embedding, and for words hybrid where the service has an embedder, else text.
        roles: only these roles.
        since: only messages stored at or after this moment.
        until: only messages stored before this moment.
        metadata: only contexts whose metadata contains this.
        model: only messages written by this model.
        max_distance: only hits at most this cosine distance away.
        neighbors: messages to give with each hit, on each side.
        diversity: thin hits that say the same: 0 not at all, 1 as much as possible.
        at_version: with context_id: only up to this version.
    """

    query: (
        Annotated[str, Meta(min_length=1), most(maxLength=limits.QUERY_CHARS_MAX)]
        | Annotated[list[float], Meta(min_length=1)]
    )
    context_id: UUID | None = None
    limit: Annotated[int, Meta(ge=1), most(maximum=limits.SEARCH_HITS_MAX)] = 10
    mode: Mode = "auto"
    roles: list[Role] | None = None
    since: Moment | None = None
    until: Moment | None = None
    metadata: Json | None = None
    model: Annotated[str, most(maxLength=limits.MODEL_CHARS_MAX)] | None = None
    max_distance: Annotated[float, Meta(ge=0, le=2)] | None = None
    neighbors: Annotated[int, Meta(ge=0), most(maximum=limits.SEARCH_NEIGHBORS_MAX)] = 0
    diversity: Annotated[float, Meta(ge=0, le=1)] | None = None
    at_version: Version | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many owed embeddings to make.

    Attributes:
        limit: messages at most.
    """

    limit: Annotated[int, Meta(ge=1), most(maximum=limits.EMBED_MESSAGES_MAX)] = 100


class Embedded(msgspec.Struct, frozen=True):
    """What was embedded.

    Attributes:
        messages: how many were; 0 when nothing is due.
    """

    messages: int


class Purge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to remove for good.

    Attributes:
        older_than_seconds: what was deleted or had expired that long ago; 0 is everything deleted.
    """

    older_than_seconds: Annotated[float, Meta(ge=0, le=limits.PURGE_AGE_DAYS_MAX * 86_400.0)]


class Erasure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to forget.

    Attributes:
        versions: which messages; null is all that the context wrote itself, its name and metadata.
            Has to be said: a body that got lost must not mean everything.
    """

    versions: Versions | None


class Deleted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to look.

    Attributes:
        include_deleted: find it also when it is deleted.
    """

    include_deleted: bool = False


class Listing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which contexts to list.

    Attributes:
        limit: contexts at most.
        cursor: the next_cursor of the page before.
        metadata: only contexts whose metadata contains this, as JSON.
        include_deleted: soft-deleted ones too.
    """

    limit: Annotated[int, Meta(ge=1), most(maximum=limits.LIST_CONTEXTS_MAX)] = 50
    cursor: str | None = None
    metadata: Json | None = None
    include_deleted: bool = False


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which messages to read.

    Attributes:
        at_version: nothing above this version.
        before: only versions below this; with the first version of a page, the page before it.
        after: only versions above this, the oldest of them first; 0 is from the start.
        limit: messages at most.
        roles: only these roles; give it several times for several.
        include_deleted: also what this context hid, with deleted_at set.
    """

    at_version: Version | None = None
    before: Version | None = None
    after: Version | None = None
    limit: Annotated[int, Meta(ge=1), most(maximum=limits.HISTORY_MESSAGES_MAX)] = 100
    roles: list[Role] | None = None
    include_deleted: bool = False


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many tokens there is room for.

    Attributes:
        max_tokens: the newest messages that fit into this.
        at_version: nothing above this version.
    """

    max_tokens: Annotated[int, Meta(ge=0), most(maximum=limits.VERSION_MAX)]
    at_version: Version | None = None


class Depth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which forks.

    Attributes:
        recursive: forks of forks too, also below deleted ones.
    """

    recursive: bool = False


class Other(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to compare with.

    Attributes:
        other: the other context.
    """

    other: UUID


class Items(msgspec.Struct, Generic[T], frozen=True):
    """All that was asked for."""

    items: list[T]


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True):
    """The database answers and is migrated; to which revision."""

    revision: str
    status: Literal["ready"] = "ready"
