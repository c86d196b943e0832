import pickle
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pgcontext import models
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

ID = UUID("01890000-0000-7000-8000-000000000001")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def message(**fields: Any) -> Message:
    """Make a message as the store would give it back."""
    defaults: dict[str, Any] = dict.fromkeys(Message.__struct_fields__)
    defaults |= {
        "tenant_id": ID,
        "id": ID,
        "context_id": ID,
        "version": 1,
        "created_at": NOW,
        "role": "user",
        "token_count": 0,
        "embedding_pending": False,
        "replayed": False,
    }
    return Message(**(defaults | fields))


def context() -> Context:
    """Make a context as the store would give it back."""
    fields: dict[str, Any] = dict.fromkeys(Context.__struct_fields__)
    fields |= dict.fromkeys(["message_count", "total_tokens", "latest_version", "revision"], 0)
    return Context(**(fields | {"tenant_id": ID, "id": ID, "metadata": {}, "created_at": NOW}))


EXAMPLES: list[msgspec.Struct] = [
    context(),
    message(content="hello"),
    NewMessage(role="user", content="hello"),
    Page([context()], None),
    Window([message()], 0, truncated=False),
    Diff(None, 0, [], [message()]),
    Hit(
        message=message(),
        distance=0.5,
        text_score=None,
        score=0.5,
        found_by=("vector",),
        neighbors=[],
    ),
    PurgeReport(0, 0),
    EraseReport(0, 0),
]


def test_every_model_has_an_example_here() -> None:
    """A new model can't be forgotten by the tests below."""
    defined = {
        value
        for value in vars(models).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == models.__name__
    }
    assert {type(example) for example in EXAMPLES} == defined


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_model_is_frozen_and_slotted(example: msgspec.Struct) -> None:
    """A result can't be changed, nor carry an attribute that it doesn't have."""
    name = example.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(example, name, None)
    with pytest.raises(AttributeError):
        example.surprise = 1  # type: ignore[attr-defined]
    assert not hasattr(example, "__dict__")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_model_pickles_and_compares_by_value(example: msgspec.Struct) -> None:
    """A result may cross to another process and is equal to itself there."""
    assert pickle.loads(pickle.dumps(example)) == example  # noqa: S301 (our own bytes)


def test_fields_are_those_of_the_design() -> None:
    """The names that callers rely on, in full."""
    assert " ".join(Context.__struct_fields__) == (
        "tenant_id id name metadata created_at updated_at message_count total_tokens "
        "latest_version revision parent_id fork_version fork_revision expires_at deleted_at"
    )
    assert " ".join(Message.__struct_fields__) == (
        "tenant_id id context_id version created_at role content tool_call_id tool_name "
        "token_count model payload idempotency_key deleted_at embedding_model "
        "embedding_pending replayed"
    )
    assert " ".join(NewMessage.__struct_fields__) == (
        "role content tool_calls tool_call_id name model token_count embedding "
        "embedding_model id extra"
    )
    assert " ".join(Hit.__struct_fields__) == (
        "message distance text_score score found_by neighbors"
    )
    assert Page.__struct_fields__ == ("items", "next_cursor")
    assert Window.__struct_fields__ == ("messages", "total_tokens", "truncated")
    assert Diff.__struct_fields__ == ("ancestor_id", "version", "only_a", "only_b")


@pytest.mark.parametrize(
    ("fields", "mapping"),
    [
        ({"content": "hello"}, {"role": "user", "content": "hello"}),
        ({}, {"role": "user"}),
        ({"payload": {"content": None}}, {"role": "user", "content": None}),
        (
            {"role": "tool", "content": "42", "tool_call_id": "c1", "tool_name": "add"},
            {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "add"},
        ),
        (
            {"content": "look", "payload": {"content": [{"type": "text", "text": "look"}]}},
            {"role": "user", "content": [{"type": "text", "text": "look"}]},
        ),
        (
            {"role": "assistant", "model": "m", "token_count": 7, "embedding_model": "e"},
            {"role": "assistant"},
        ),
    ],
)
def test_as_dict_is_the_mapping_without_the_stores_fields(
    fields: dict[str, Any], mapping: dict[str, Any]
) -> None:
    """Columns and payload together are what was appended."""
    assert message(**fields).as_dict() == mapping


def test_changing_what_as_dict_gave_does_not_change_the_message() -> None:
    """The mapping is the caller's own."""
    original = message(content="hello", payload={"extra": 1})
    original.as_dict()["extra"] = 2
    assert original.as_dict() == {"role": "user", "content": "hello", "extra": 1}
