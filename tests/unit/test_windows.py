from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcontext import LimitExceededError, Message
from pgcontext.windows import fit

ID = UUID("01890000-0000-7000-8000-000000000001")
PINNED = {"system", "developer"}


def message(version: int, role: str, tokens: int = 1, **fields: Any) -> Message:
    """Make a message as the database gives it back."""
    calls = fields.pop("calls", None)
    values: dict[str, Any] = dict.fromkeys(Message.__struct_fields__)
    values |= {"tenant_id": ID, "id": ID, "context_id": ID, "embedding_pending": False}
    values |= {"created_at": datetime(2026, 1, 1, tzinfo=UTC), "replayed": False}
    values |= {"version": version, "role": role, "token_count": tokens, **fields}
    if calls is not None:
        values["payload"] = {"tool_calls": [{"id": id} for id in calls]}
    return Message(**values)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Draw conversations of all roles in which few call ids repeat, answered or not."""
    ids = st.sampled_from("abc")
    messages: list[Message] = []
    for version in range(1, draw(st.integers(0, 14)) + 1):
        role = draw(st.sampled_from(["user", "assistant", "tool", "tool", "system", "developer"]))
        fields: dict[str, Any] = {}
        if role == "assistant":
            fields["calls"] = draw(st.none() | st.lists(ids, unique=True, max_size=3))
        if role == "tool":
            fields["tool_call_id"] = draw(st.none() | ids)
        messages.append(message(version, role, draw(st.integers(0, 5)), **fields))
    return messages


def calls_of(message: Message) -> set[str]:
    """Say which calls a message makes."""
    return {call["id"] for call in (message.payload or {}).get("tool_calls", [])}


def well_formed_groups(messages: list[Message]) -> list[list[Message]]:
    """Group a conversation forwards, sentence by sentence as the design has it."""
    others = [message for message in messages if message.role not in PINNED]
    runs: list[list[Message]] = []
    for message in others:
        if message.role != "tool":
            runs.append([message])
        elif runs:
            runs[-1].append(message)
    groups = []
    for run in runs:
        caller, *results = run
        answers = [result for result in results if result.tool_call_id in calls_of(caller)]
        answered = {answer.tool_call_id for answer in answers} == calls_of(caller)
        if answered or run is runs[-1]:
            groups.append([caller, *answers])
    return groups


def tokens_of(messages: list[Message]) -> int:
    """Sum the tokens."""
    return sum(message.token_count for message in messages)


def window(messages: list[Message], max_tokens: int) -> Any:
    """Fit a whole conversation."""
    pinned = [message for message in messages if message.role in PINNED]
    others = [message for message in messages if message.role not in PINNED]
    return fit(pinned, others[::-1], max_tokens, all_there=True)


@given(conversations(), st.integers(0, 40))
def test_a_window_is_the_pinned_and_the_newest_whole_groups_that_fit(
    messages: list[Message], max_tokens: int
) -> None:
    """Every sentence of the design about windows, on any conversation and budget."""
    pinned = [message for message in messages if message.role in PINNED]
    if tokens_of(pinned) > max_tokens:
        with pytest.raises(LimitExceededError):
            window(messages, max_tokens)
        return
    groups = well_formed_groups(messages)
    expected: list[Message] = []
    left_out = False
    for group in reversed(groups):
        if tokens_of(pinned) + tokens_of(group) + tokens_of(expected) > max_tokens:
            left_out = True
            break
        expected = [*group, *expected]
    shown = window(messages, max_tokens)
    assert shown.messages == [*pinned, *expected]
    assert shown.total_tokens == tokens_of(shown.messages) <= max_tokens
    assert shown.truncated is left_out


@given(conversations(), st.integers(0, 40))
def test_a_window_never_tears_a_call_from_its_results(
    messages: list[Message], max_tokens: int
) -> None:
    """What a model's API refuses never comes out, except a call that is still pending."""
    try:
        shown = window(messages, max_tokens).messages
    except LimitExceededError:
        return
    others = [message for message in shown if message.role not in PINNED]
    owed: set[str] = set()
    for message in others:
        if message.role == "tool":
            caller = max(
                (m for m in others if m.version < message.version and m.role != "tool"),
                key=lambda m: m.version,
            )
            assert message.tool_call_id in calls_of(caller)
            owed -= {str(message.tool_call_id)}
        else:
            assert not owed
            owed = calls_of(message)
    if owed:
        # Only results may follow a pending call in the whole conversation.
        last = max(message.version for message in others if message.role != "tool")
        behind = [message for message in messages if message.version > last]
        assert all(message.role == "tool" or message.role in PINNED for message in behind)


@given(conversations(), st.integers(0, 40), st.integers(0, 14))
def test_the_newest_messages_alone_decide_or_ask_for_more(
    messages: list[Message], max_tokens: int, count: int
) -> None:
    """A look at the newest few gives the whole answer or says that it can't."""
    pinned = [message for message in messages if message.role in PINNED]
    others = [message for message in messages if message.role not in PINNED]
    try:
        partial = fit(pinned, others[::-1][:count], max_tokens, all_there=False)
    except LimitExceededError:
        return
    if partial is not None:
        assert partial == window(messages, max_tokens)


@given(conversations(), st.integers(0, 40))
def test_a_larger_budget_never_shows_less(messages: list[Message], max_tokens: int) -> None:
    """Windows grow with their budget, and at the end everything that fits together is there."""
    try:
        small = window(messages, max_tokens)
    except LimitExceededError:
        return
    large = window(messages, max_tokens + 1)
    assert {m.version for m in small.messages} <= {m.version for m in large.messages}
    if not small.truncated:
        assert large.messages == small.messages


def test_pinned_messages_may_come_in_any_order() -> None:
    """They are put in the order of their versions."""
    pinned = [message(3, "developer"), message(1, "system"), message(2, "system")]
    shown = fit(pinned, [], 9, all_there=True)
    assert shown is not None
    assert [m.version for m in shown.messages] == [1, 2, 3]
