"""From the caller's mappings to the rows that an append writes.

A column holds what is plain text; everything else a mapping says goes into `payload`, key for
key, so that `Message.as_dict` gives back exactly what came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from uuid import UUID

import msgspec

from pgcontext import inputs, limits
from pgcontext.errors import InvalidInputError, LimitExceededError
from pgcontext.ids import uuid7
from pgcontext.models import Message, NewMessage

if TYPE_CHECKING:
    from datetime import datetime

    from pgcontext.tokens import Tokenizer

    MessageInput: TypeAlias = Mapping[str, Any] | NewMessage

# Keys of a mapping that are the store's own and don't come back from `as_dict`.
STORE_KEYS = frozenset({"id", "model", "token_count", "embedding", "embedding_model"})


class Draft(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A checked message on its way into the database; encodes to what APPEND reads.

    `payload` holds values as `inputs.json_value` prepared them.
    """

    id: UUID
    role: str
    token_count: int
    content: str | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    model: str | None = None
    payload: dict[str, Any] | None = None
    embedding: str | None = None
    embedding_model: str | None = None
    pending: bool = False


def drafts(
    messages: object,
    *,
    dimensions: int,
    embedding_model: str | None,
    tokenizer: Callable[[], Tokenizer],
) -> list[Draft]:
    """Check a batch.

    Args:
        messages: one mapping or `NewMessage`, or an iterable of them.
        dimensions: length of the embeddings.
        embedding_model: the model of embeddings that come without one.
        tokenizer: gives the tokenizer, asked only when a message has no `token_count`.

    Raises:
        InvalidInputError: says which message (counted from 0) and what about it.
    """
    given = (cast("object", messages),) if isinstance(messages, (Mapping, NewMessage)) else messages
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        msg = "messages must be a mapping, a NewMessage, or an iterable of them."
        raise InvalidInputError(msg)
    result: list[Draft] = []
    for index, message in enumerate(cast("Iterable[object]", given)):
        if index >= limits.MESSAGES_PER_APPEND_MAX:
            msg = (
                f"At most {limits.MESSAGES_PER_APPEND_MAX:,} messages are accepted at once; "
                "append them in several batches."
            )
            raise LimitExceededError(msg)
        try:
            result.append(_draft(message, dimensions, embedding_model, tokenizer))
        except InvalidInputError as error:
            error.args = (f"Message {index}: {error}",)
            raise
    if not result:
        msg = "messages must not be empty."
        raise InvalidInputError(msg)
    if len({draft.id for draft in result}) < len(result):
        msg = "Two messages of the batch have the same id."
        raise InvalidInputError(msg)
    return result


def _draft(
    message: object,
    dimensions: int,
    embedding_model: str | None,
    tokenizer: Callable[[], Tokenizer],
) -> Draft:
    mapping = _mapping(message)
    if "role" not in mapping:
        msg = "role is missing."
        raise InvalidInputError(msg)
    given_id = mapping.get("id")
    draft = Draft(
        id=uuid7() if given_id is None else inputs.uuid(given_id, "id"),
        role=inputs.role(mapping["role"]),
        token_count=0,
        model=inputs.optional_text(mapping.get("model"), "model", chars_max=limits.MODEL_CHARS_MAX),
    )
    _split(draft, mapping)
    _embed(draft, mapping, dimensions, embedding_model)
    given = mapping.get("token_count")
    draft.token_count = inputs.integer(
        _count(draft, tokenizer()) if given is None else given,
        "token_count",
        least=0,
        most=limits.TOKEN_COUNT_MAX,
    )
    return draft


def _split(draft: Draft, message: Mapping[str, Any]) -> None:
    """Put each key into its column, or into the payload."""
    payload: dict[str, Any] = {}
    for key, value in message.items():
        if key in STORE_KEYS or key == "role":
            continue
        if key == "content" and type(value) is str:
            draft.content = value
        elif key == "tool_call_id" and type(value) is str:
            draft.tool_call_id = inputs.text(value, key, chars_max=limits.CALL_ID_CHARS_MAX)
        elif key == "name" and type(value) is str and draft.role == "tool":
            draft.tool_name = inputs.text(value, key, chars_max=limits.NAME_CHARS_MAX)
        else:
            payload[key] = value
    _check_calls(payload.get("tool_calls"))
    if "content" in payload:
        draft.content = _text_of_parts(payload["content"])
    if (
        draft.content is not None
        and inputs.storable(draft.content, "content") > limits.CONTENT_BYTES_MAX
    ):
        msg = f"content must have at most {limits.CONTENT_BYTES_MAX:,} bytes in UTF-8."
        raise LimitExceededError(msg)
    if payload:
        draft.payload = inputs.json_value(payload, "the message")
        if len(msgspec.json.encode(draft.payload)) > limits.PAYLOAD_BYTES_MAX:
            msg = f"what is not content must have at most {limits.PAYLOAD_BYTES_MAX:,} bytes."
            raise LimitExceededError(msg)


def _check_calls(calls: object) -> None:
    if calls is None:
        return
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) for call in cast("list[object]", calls)
    ):
        msg = "tool_calls must be a list of objects."
        raise InvalidInputError(msg)


def _text_of_parts(content: object) -> str | None:
    """Return the text of content in parts, for counting and searching; the parts stay as given."""
    if content is None:
        return None
    if not isinstance(content, list):
        msg = "content must be text, a list of content parts, or None."
        raise InvalidInputError(msg)
    texts: list[str] = []
    for part in cast("list[object]", content):
        if not isinstance(part, dict):
            msg = "a content part must be an object."
            raise InvalidInputError(msg)
        text = cast("dict[str, object]", part).get("text")
        if isinstance(text, str):
            texts.append(text)
    return "\n".join(texts) if texts else None


def _embed(
    draft: Draft, message: Mapping[str, Any], dimensions: int, embedding_model: str | None
) -> None:
    given = message.get("embedding")
    model = inputs.optional_text(
        message.get("embedding_model"), "embedding_model", chars_max=limits.MODEL_CHARS_MAX
    )
    if given is not None:
        draft.embedding = inputs.embedding(given, dimensions=dimensions)
        draft.embedding_model = embedding_model if model is None else model
    elif model is not None:
        msg = "embedding_model is given without an embedding."
        raise InvalidInputError(msg)


def _count(draft: Draft, tokenizer: Tokenizer) -> int:
    """Count the tokens of the text and of the compact JSON of the tool calls."""
    tokens = tokenizer.count(draft.content) if draft.content else 0
    calls = draft.payload.get("tool_calls") if draft.payload else None
    if calls:
        tokens += tokenizer.count(msgspec.json.encode(calls).decode())
    return tokens


def _mapping(message: object) -> Mapping[str, Any]:
    """Return the message as a mapping; of a `NewMessage`, the one that says the same."""
    if isinstance(message, Mapping):
        return cast("Mapping[str, Any]", message)
    if not isinstance(message, NewMessage):
        msg = "a message must be a mapping or a NewMessage."
        raise InvalidInputError(msg)
    mapping: dict[str, Any] = {"role": message.role, "content": message.content}
    for key in (
        "tool_calls",
        "tool_call_id",
        "name",
        "model",
        "token_count",
        "embedding",
        "embedding_model",
        "id",
    ):
        value = getattr(message, key)
        if value is not None:
            mapping[key] = value
    if message.extra is not None:
        if not isinstance(cast("object", message.extra), Mapping):
            msg = "extra must be a mapping."
            raise InvalidInputError(msg)
        taken = mapping.keys() & message.extra.keys()
        if taken:
            msg = f"extra repeats a field: {', '.join(sorted(map(str, taken)))}."
            raise InvalidInputError(msg)
        mapping.update(message.extra)
    return mapping


def encode(batch: list[Draft]) -> str:
    """Return the JSON that APPEND reads."""
    return msgspec.json.encode(batch).decode()


def written(
    batch: list[Draft],
    *,
    tenant_id: UUID,
    context_id: UUID,
    base: int,
    created_at: datetime,
    idempotency_key: str | None,
) -> list[Message]:
    """Return the messages as the database now holds them, without asking it for them."""
    return [
        Message(
            tenant_id=tenant_id,
            id=draft.id,
            context_id=context_id,
            version=base + ordinal,
            created_at=created_at,
            role=cast("Any", draft.role),
            content=draft.content,
            tool_call_id=draft.tool_call_id,
            tool_name=draft.tool_name,
            token_count=draft.token_count,
            model=draft.model,
            payload=plain(draft.payload),
            idempotency_key=idempotency_key,
            deleted_at=None,
            embedding_model=draft.embedding_model,
            embedding_pending=draft.pending,
        )
        for ordinal, draft in enumerate(batch, start=1)
    ]


def plain(payload: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the payload as reading it back gives it, sharing nothing with the caller's."""
    return None if payload is None else msgspec.json.decode(msgspec.json.encode(payload))


def same(batch: list[Draft], earlier: list[Message]) -> bool:
    """Tell whether an earlier batch says the same; ids, times and embeddings don't count."""
    return len(batch) == len(earlier) and all(
        (draft.role, draft.content, draft.tool_call_id, draft.tool_name, draft.model)
        == (message.role, message.content, message.tool_call_id, message.tool_name, message.model)
        and plain(draft.payload) == message.payload
        for draft, message in zip(batch, earlier, strict=True)
    )
