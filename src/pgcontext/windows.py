"""Fits the newest messages into a token budget without tearing a tool call from its results.

A group is a message that stands alone, or an assistant's tool calls with the results that answer
them before the next other message. A group comes whole or not at all. Calls with a result missing
and results without a call are left out and count nothing, except a call at the very end: it is
still being worked on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pgcontext.errors import LimitExceededError
from pgcontext.models import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgcontext.models import Message


def fit(
    pinned: Sequence[Message], newest: Sequence[Message], max_tokens: int, *, all_there: bool
) -> Window | None:
    """Fill a window.

    Args:
        pinned: the system and developer messages, in any order. They come first, always.
        newest: the other messages, newest first, without gap from the newest on.
        max_tokens: the budget, in tokens.
        all_there: whether `newest` reaches back to the first message.

    Returns:
        The window, or None when older messages are needed to tell.

    Raises:
        LimitExceededError: the pinned messages alone are more than the budget.
    """
    ordered_pins = sorted(pinned, key=lambda message: message.version)
    total = sum(message.token_count for message in ordered_pins)
    if total > max_tokens:
        msg = (
            f"The system and developer messages alone have {total:,} tokens, more than max_tokens "
            f"({max_tokens:,}); raise it or delete some of them."
        )
        raise LimitExceededError(msg)
    chosen: list[Message] = []
    for group in _groups(newest):
        tokens = sum(message.token_count for message in group)
        if total + tokens > max_tokens:
            return _window(ordered_pins, chosen, total, truncated=True)
        total += tokens
        chosen.extend(group)
    if not all_there:
        return None
    return _window(ordered_pins, chosen, total, truncated=False)


def _window(
    pinned: list[Message], newest_first: list[Message], total: int, *, truncated: bool
) -> Window:
    return Window([*pinned, *reversed(newest_first)], total, truncated)


def _groups(newest: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield the groups that can be shown, newest first, each newest first within."""
    results: list[Message] = []
    at_end = True
    for message in newest:
        if message.role == "tool":
            results.append(message)
            continue
        calls = call_ids(message)
        answers = [result for result in results if result.tool_call_id in calls]
        if at_end or len({answer.tool_call_id for answer in answers}) == len(calls):
            yield [*answers, message]
        results = []
        at_end = False


def call_ids(message: Message) -> frozenset[str]:
    """Return the ids of the tool calls that a message makes."""
    calls: Any = (message.payload or {}).get("tool_calls") if message.role == "assistant" else None
    return frozenset(
        call_id
        for call in cast("list[dict[str, Any]]", calls or [])
        if isinstance(call_id := call.get("id"), str)
    )
