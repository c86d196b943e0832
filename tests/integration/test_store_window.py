from typing import Any
from uuid import UUID

import pytest

from pgcontext import ContextStore, InvalidInputError, LimitExceededError, Message, limits
from tests.support.chats import call, offline, result, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")
MANY = 1_000


def system(content: str = "Be brief.", **fields: Any) -> dict[str, Any]:
    """Make a system message of one token."""
    return user(content, **fields) | {"role": "system"}


async def window(
    store: ContextStore, batch: list[dict[str, Any]], max_tokens: int = MANY
) -> tuple[list[int], int, bool]:
    """Store a conversation and look at it through a window."""
    context = await store.create()
    await store.append(context.id, batch)
    shown = await store.window(context.id, max_tokens=max_tokens)
    assert shown.total_tokens == sum(message.token_count for message in shown.messages)
    return versions(shown.messages), shown.total_tokens, shown.truncated


async def test_an_empty_context_has_an_empty_window(store: ContextStore) -> None:
    """Nothing there, nothing left out."""
    context = await store.create()
    shown = await store.window(context.id, max_tokens=10)
    assert (shown.messages, shown.total_tokens, shown.truncated) == ([], 0, False)


async def test_the_newest_that_fit_come_oldest_first(store: ContextStore) -> None:
    """The budget is used from the end."""
    batch = [user(token_count=count) for count in (5, 4, 3, 2, 1)]
    assert await window(store, batch, 15) == ([1, 2, 3, 4, 5], 15, False)
    assert await window(store, batch, 14) == ([2, 3, 4, 5], 10, True)
    assert await window(store, batch, 9) == ([3, 4, 5], 6, True)
    assert await window(store, batch, 1) == ([5], 1, True)


async def test_what_does_not_fit_ends_the_window(store: ContextStore) -> None:
    """No older message comes in the place of one that was too large: no holes."""
    assert await window(store, [user(), user(token_count=50), user()], 10) == ([3], 1, True)


async def test_system_and_developer_messages_stay_first(store: ContextStore) -> None:
    """They come in their order before all others, and their tokens count."""
    batch = [user(), system(), user(), system() | {"role": "developer"}, user()]
    assert await window(store, batch) == ([2, 4, 1, 3, 5], 5, False)
    assert await window(store, batch, 3) == ([2, 4, 5], 3, True)
    assert await window(store, batch, 2) == ([2, 4], 2, True)


async def test_pinned_messages_that_alone_exceed_the_budget_raise(store: ContextStore) -> None:
    """A window without its instructions would be another conversation."""
    with pytest.raises(LimitExceededError, match="max_tokens"):
        await window(store, [system(token_count=11), user()], 10)
    assert await window(store, [system(token_count=10), user()], 10) == ([1], 10, True)


async def test_if_the_newest_group_does_not_fit_only_the_pinned_come(store: ContextStore) -> None:
    """And the window says that it is truncated."""
    assert await window(store, [system(), user(token_count=1), user(token_count=9)], 9) == (
        [1],
        1,
        True,
    )
    batch = [user(), call("a"), result("a", token_count=9)]
    assert await window(store, batch, 9) == ([], 0, True)


async def test_a_call_and_its_results_come_whole_or_not_at_all(store: ContextStore) -> None:
    """The group of four needs its four tokens."""
    batch = [user(), call("a", "b", "c"), result("b"), result("a"), result("c"), user()]
    assert await window(store, batch, 6) == ([1, 2, 3, 4, 5, 6], 6, False)
    assert await window(store, batch, 5) == ([2, 3, 4, 5, 6], 5, True)
    for budget in (1, 2, 3, 4):
        assert await window(store, batch, budget) == ([6], 1, True)


async def test_a_pending_call_at_the_very_end_is_kept(store: ContextStore) -> None:
    """The caller is about to answer it."""
    assert (await window(store, [user(), call("a", "b")]))[0] == [1, 2]
    assert (await window(store, [user(), call("a", "b"), result("a")]))[0] == [1, 2, 3]
    assert (await window(store, [user(), call("a"), system()]))[0] == [3, 1, 2]


async def test_elsewhere_a_call_with_a_result_missing_is_left_out(store: ContextStore) -> None:
    """With the results that it has, and neither counts as truncation."""
    assert await window(store, [user(), call("a"), user()]) == ([1, 3], 2, False)
    batch = [user(), call("a", "b"), result("a", token_count=90), user()]
    assert await window(store, batch, 2) == ([1, 4], 2, False)


async def test_a_result_without_its_call_is_left_out(store: ContextStore) -> None:
    """Before any call, behind another message, of another call, or without an id."""
    assert (await window(store, [result("a"), user()]))[0] == [2]
    assert (await window(store, [call("a"), user(), result("a")]))[0] == [2]
    assert (await window(store, [call("a"), result("b"), result("a"), user()]))[0] == [1, 3, 4]
    orphan = {"role": "tool", "content": "42", "token_count": 1}
    assert (await window(store, [user(), orphan, user()]))[0] == [1, 3]


async def test_system_messages_do_not_break_a_group(store: ContextStore) -> None:
    """They are taken out first."""
    batch = [user(), call("a"), system(), result("a"), user()]
    assert await window(store, batch) == ([3, 1, 2, 4, 5], 5, False)


async def test_call_ids_may_repeat_later(store: ContextStore) -> None:
    """A result answers the nearest call before it."""
    batch = [call("a"), result("a"), user(), call("a"), result("a"), user()]
    assert await window(store, batch) == ([1, 2, 3, 4, 5, 6], 6, False)
    assert await window(store, batch, 3) == ([4, 5, 6], 3, True)
    batch = [call("a"), user(), call("a"), result("a"), user()]
    assert await window(store, batch) == ([2, 3, 4, 5], 4, False)
    batch = [call("a"), result("a"), user(), call("a"), user()]
    assert await window(store, batch) == ([1, 2, 3, 5], 4, False)


async def test_an_assistant_without_calls_is_a_group_of_its_own(store: ContextStore) -> None:
    """Empty or null tool calls are no calls."""
    batch = [
        user(),
        {"role": "assistant", "content": "x", "tool_calls": [], "token_count": 1},
        {"role": "assistant", "content": "x", "tool_calls": None, "token_count": 1},
        {"role": "assistant", "content": "x", "token_count": 1},
        user(),
    ]
    assert await window(store, batch) == ([1, 2, 3, 4, 5], 5, False)


async def test_a_hidden_result_takes_its_call_out(store: ContextStore) -> None:
    """Only what is visible counts, in either direction."""
    context = await store.create()
    await store.append(context.id, [user(), call("a"), result("a"), user()])
    await store.delete_messages(context.id, [3])
    assert versions((await store.window(context.id, max_tokens=9)).messages) == [1, 4]
    await store.restore_messages(context.id, [3])
    await store.delete_messages(context.id, [2])
    assert versions((await store.window(context.id, max_tokens=9)).messages) == [1, 4]
    await store.restore_messages(context.id, [2])
    assert versions((await store.window(context.id, max_tokens=9)).messages) == [1, 2, 3, 4]


async def test_a_window_looks_through_the_lineage(store: ContextStore) -> None:
    """A fork between a call and its result is one view."""
    root = await store.create()
    await store.append(root.id, [system(), user(), call("a"), result("a"), user("other way")])
    fork = await store.fork(root.id, at_version=3)
    pending = await store.window(fork.id, max_tokens=9)
    assert versions(pending.messages) == [1, 2, 3]
    await store.append(fork.id, [result("a", "different"), user()])
    shown = await store.window(fork.id, max_tokens=9)
    assert versions(shown.messages) == [1, 2, 3, 4, 5]
    assert [message.context_id for message in shown.messages] == [root.id] * 3 + [fork.id] * 2
    small = await store.window(fork.id, max_tokens=4)
    assert (versions(small.messages), small.truncated) == ([1, 3, 4, 5], True)


async def test_a_window_at_a_version_ends_there(store: ContextStore) -> None:
    """What is the very end depends on the version; beyond the end it is all there is."""
    context = await store.create()
    await store.append(context.id, [user(), call("a"), result("a"), user(), system()])

    async def shown(at_version: int) -> list[int]:
        return versions(
            (await store.window(context.id, max_tokens=9, at_version=at_version)).messages
        )

    assert [await shown(version) for version in (0, 1, 2, 3)] == [[], [1], [1, 2], [1, 2, 3]]
    assert await shown(4) == [1, 2, 3, 4]
    assert await shown(5) == await shown(99) == [5, 1, 2, 3, 4]


async def test_free_messages_always_fit(store: ContextStore) -> None:
    """Zero tokens cost nothing, whatever the budget."""
    batch = [user(token_count=0)] * 3 + [user(token_count=5)] + [user(token_count=0)] * 2
    assert await window(store, batch, 5) == ([1, 2, 3, 4, 5, 6], 5, False)
    assert await window(store, batch, 4) == ([5, 6], 0, True)
    assert await window(store, batch, 0) == ([5, 6], 0, True)


async def test_a_far_system_message_is_found_behind_a_long_history(store: ContextStore) -> None:
    """However far back, the instructions come along."""
    context = await store.create()
    await store.append(context.id, [system(), *users(999)])
    for _ in range(3):
        await store.append(context.id, users(1_000))
    shown = await store.window(context.id, max_tokens=4)
    assert versions(shown.messages) == [1, 3_998, 3_999, 4_000]
    assert shown.truncated


async def test_a_window_holds_at_most_its_bound(store: ContextStore) -> None:
    """More messages than the bound are left out and the window says so."""
    context = await store.create()
    most = limits.WINDOW_MESSAGES_MAX
    for _ in range(0, most + 1_000, 1_000):
        await store.append(context.id, [user("", token_count=0)] * 1_000)
    shown = await store.window(context.id, max_tokens=1)
    assert 0 < len(shown.messages) <= most
    assert shown.truncated
    assert shown.messages[-1].version == most + 1_000


async def test_more_pinned_messages_than_the_bound_raise(store: ContextStore) -> None:
    """At the bound they come, above they are refused."""
    context = await store.create()
    await store.append(context.id, [system(token_count=0)] * limits.WINDOW_PINNED_MESSAGES_MAX)
    shown = await store.window(context.id, max_tokens=1)
    assert len(shown.messages) == limits.WINDOW_PINNED_MESSAGES_MAX
    await store.append(context.id, system(token_count=0))
    with pytest.raises(LimitExceededError):
        await store.window(context.id, max_tokens=1)


async def test_window_messages_are_those_of_history(store: ContextStore) -> None:
    """The same objects, whole."""
    context = await store.create()
    await store.append(context.id, [user(), call("a"), result("a", extra={"k": 1})])
    read: list[Message] = await store.history(context.id)
    assert (await store.window(context.id, max_tokens=9)).messages == read


@pytest.mark.parametrize("value", [-1, 1.5, "10", None, True], ids=repr)
async def test_a_budget_that_is_no_number_of_tokens_is_refused(value: Any) -> None:
    """Tokens are counted in whole numbers from 0."""
    with pytest.raises(InvalidInputError, match="max_tokens"):
        await offline().window(ID, max_tokens=value)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, 2**63], ids=repr)
async def test_what_is_no_version_is_refused(value: Any) -> None:
    """As for history."""
    with pytest.raises(InvalidInputError, match="at_version"):
        await offline().window(ID, max_tokens=10, at_version=value)


async def test_a_big_message_that_cannot_be_shown_takes_no_room(store: ContextStore) -> None:
    """A result whose call was hidden counts nothing, however many tokens it has."""
    context = await store.create()
    await store.append(
        context.id, [{"role": "user", "content": f"{n}", "token_count": 20} for n in range(100)]
    )
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    await store.append(
        context.id,
        [
            {"role": "assistant", "content": None, "tool_calls": calls, "token_count": 5},
            {"role": "tool", "tool_call_id": "c", "content": "long", "token_count": 9_000},
            {"role": "assistant", "content": "done", "token_count": 20},
        ],
    )
    await store.delete_messages(context.id, [101])
    window = await store.window(context.id, max_tokens=4_000)
    assert (len(window.messages), window.total_tokens, window.truncated) == (101, 2_020, False)
