import copy
import itertools
import math
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    ContextStore,
    InvalidInputError,
    LimitExceededError,
    NewMessage,
    VersionConflictError,
    limits,
)
from tests.support.chats import call, contents, offline, user, users, versions

ID = UUID("01890000-0000-7000-8000-000000000001")

# Messages as people have them from chat completions and its relatives.
CHATS: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "user", "content": ""},
    {"role": "user", "content": None},
    {"role": "user"},
    {"role": "user", "content": "hi", "name": "ada"},
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "Be brief."},
    {"role": "assistant", "content": "hi", "refusal": None, "annotations": []},
    {"role": "assistant", "content": "hi", "tool_calls": None},
    {"role": "assistant", "content": "hi", "tool_calls": []},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
    {"role": "tool", "tool_call_id": "c1", "content": "42", "name": None},
    {"role": "tool", "content": "42"},
    {"role": "tool", "tool_call_id": None, "content": "42"},
    {"role": "user", "content": []},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
    },
    {"role": "user", "content": "naïve 東京 👩‍👩‍👧 \u202e ''\"\\ %s $1 {} \x01\r\n\t"},
    {"role": "user", "content": "<|endoftext|><|im_start|>system"},
    {
        "role": "user",
        "content": "x",
        "cache_control": {"type": "ephemeral"},
        "numbers": [0, -1, 2**53, 2**63, 10**30, 10**400, True, False, None],
        "floats": [0.1, 1e300, -0.5, 5e-324, 1e15, 1e16, 1e22, 123456789012345680.0],
        "": "empty key",
        "ключ": {"вложенный": ["ü"]},
        "payload": {"content": 1},
        "version": 3,
        "tool_name": "not ours",
        "context_id": "not ours",
        "created_at": "not ours",
    },
]


async def test_what_was_appended_comes_back_key_for_key(store: ContextStore) -> None:
    """as_dict() is the mapping, from append and from history, whatever its form."""
    context = await store.create()
    before = copy.deepcopy(CHATS)
    appended = await store.append(context.id, CHATS)
    assert before == CHATS
    assert [message.as_dict() for message in appended] == CHATS
    read = await store.history(context.id)
    assert [message.as_dict() for message in read] == CHATS
    assert read == appended


async def test_types_survive_where_equality_is_blind(store: ContextStore) -> None:
    """1, 1.0 and True are equal to Python and not the same to JSON."""
    context = await store.create()
    mapping = {"role": "user", "content": "x", "values": [1, 1.0, True, 0, 0.0, False]}
    (message,) = await store.append(context.id, mapping)
    (read,) = await store.history(context.id)
    for values in (message.as_dict()["values"], read.as_dict()["values"]):
        assert [type(value) for value in values] == [int, float, bool, int, float, bool]


async def test_a_message_carries_what_the_database_decided(store: ContextStore) -> None:
    """Ids, versions and times are there when append returns."""
    context = await store.create()
    before = datetime.now(UTC) - timedelta(minutes=1)
    first, second = await store.append(context.id, [user("a"), user("b")])
    assert (first.version, second.version) == (1, 2)
    assert first.id.version == second.id.version == 7
    assert first.tenant_id == UUID(int=0)
    assert first.context_id == context.id
    assert before < first.created_at == second.created_at
    assert first.created_at.utcoffset() == timedelta(0)
    assert not first.replayed
    assert not first.embedding_pending
    assert first.deleted_at is None


@pytest.mark.parametrize(
    "batch",
    [
        user("a"),
        [user("a")],
        (user("a"),),
        NewMessage(role="user", content="a", token_count=1),
        [NewMessage(role="user", content="a", token_count=1)],
        iter([user("a")]),
        (message for message in [user("a")]),
        MappingProxyType(user("a")),
        [OrderedDict(user("a"))],
    ],
    ids=lambda batch: type(batch).__name__,
)
async def test_messages_may_come_in_any_shape(store: ContextStore, batch: Any) -> None:
    """One mapping, one NewMessage, or any iterable of them."""
    context = await store.create()
    (message,) = await store.append(context.id, batch)
    assert message.as_dict() == {"role": "user", "content": "a"}


async def test_a_new_message_is_its_mapping(store: ContextStore) -> None:
    """What isn't set of a NewMessage isn't a key of the mapping, `extra` adds keys."""
    context = await store.create()
    calls = call("c1")["tool_calls"]
    messages = await store.append(
        context.id,
        [
            NewMessage(role="user", content="hi", name="ada", extra={"k": [1]}),
            NewMessage(role="assistant", tool_calls=calls, model="gpt", token_count=9),
            NewMessage(role="tool", tool_call_id="c1", name="look", content="found"),
            user("plain"),
        ],
    )
    first, second, third, fourth = (message.as_dict() for message in messages)
    assert first == {"role": "user", "content": "hi", "name": "ada", "k": [1]}
    assert {**second, "content": None} == {
        "role": "assistant",
        "content": None,
        "tool_calls": calls,
    }
    assert third == {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "found"}
    assert fourth == {"role": "user", "content": "plain"}
    assert (messages[1].model, messages[1].token_count) == ("gpt", 9)
    assert (messages[2].tool_call_id, messages[2].tool_name) == ("c1", "look")


async def test_the_stores_own_fields_are_kept_apart(store: ContextStore) -> None:
    """id, model, token_count and the embedding are columns and not part of the mapping."""
    context, id, other = await store.create(), uuid4(), uuid4()
    mapping = user("x", id=id, model="gpt", token_count=9)
    messages = await store.append(context.id, [mapping, user("y", id=str(other))])
    assert [message.id for message in messages] == [id, other]
    assert (messages[0].model, messages[0].token_count) == ("gpt", 9)
    assert messages[0].as_dict() == {"role": "user", "content": "x"}


async def test_counters_follow_an_append(store: ContextStore) -> None:
    """The context counts messages, tokens, its version and one change a call."""
    context = await store.create()
    await store.append(context.id, [user(token_count=3), user(token_count=0)])
    await store.append(context.id, user(token_count=4))
    after = await store.get(context.id)
    assert (after.message_count, after.total_tokens, after.latest_version) == (3, 7, 3)
    assert after.revision > context.revision
    assert after.updated_at > context.updated_at


async def test_tokens_are_counted_when_not_given(store: ContextStore) -> None:
    """Content's text plus the compact JSON of the tool calls; 0 without either."""

    class Letters:
        name = "letters"

        def count(self, text: str) -> int:
            return len(text)

    counting = ContextStore(tokenizer=Letters(), settings=store.settings)
    context = await counting.create()
    calls = [{"id": "ü", "function": {"name": "f"}}]
    messages = await counting.append(
        context.id,
        [
            {"role": "user", "content": "four"},
            {"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "x"}]},
            {"role": "user", "content": None},
            {"role": "assistant", "content": "x", "tool_calls": calls},
            {"role": "assistant", "content": "x", "tool_calls": []},
        ],
    )
    await counting.aclose()
    compact = len('[{"id":"ü","function":{"name":"f"}}]')
    assert [message.token_count for message in messages[:4]] == [4, 2, 0, 1 + compact]
    assert messages[4].token_count in {1, 3}


async def test_tokens_are_exact_by_default(store: ContextStore) -> None:
    """The default vocabulary counts as OpenAI's current models do, special text as text."""
    context = await store.create()
    messages = await store.append(
        context.id,
        [{"role": "user", "content": text} for text in ("hello world", "", "<|endoftext|>")],
    )
    assert [message.token_count for message in messages] == [2, 0, 7]


# ---------------------------------------------------------------------------------------------
# What is refused, before any SQL


@pytest.mark.parametrize(
    "batch",
    [
        [],
        (),
        iter(()),
        {},
        None,
        7,
        "hello",
        b"hello",
        ["hello"],
        [user(), None],
        [user(), [user()]],
        [("role", "user")],
    ],
    ids=repr,
)
async def test_what_is_no_message_is_refused(batch: Any) -> None:
    """An empty batch, or something that isn't a mapping, is bad input."""
    with pytest.raises(InvalidInputError):
        await offline().append(ID, batch)


BAD_FIELDS: list[dict[Any, Any]] = [
    {"role": None},
    {"role": "User"},
    {"role": "function"},
    {"role": ""},
    {"role": 7},
    {"role": ["user"]},
    {"content": 7},
    {"content": {"type": "text"}},
    {"content": b"bytes"},
    {"content": ("a", "tuple")},
    {"content": "nul \0"},
    {"content": "lone \ud800"},
    {"content": [{"type": "text", "text": "nul \0"}]},
    {"content": [{"type": "text", "text": "lone \udfff"}]},
    {"name": "nul \0"},
    {"name": "lone \ud800"},
    {"tool_call_id": "nul \0"},
    {"tool_call_id": "lone \ud800"},
    {"tool_calls": [{"id": "nul \0"}]},
    {"model": 7},
    {"model": "nul \0"},
    {"model": "lone \ud800"},
    {"token_count": -1},
    {"token_count": 1.5},
    {"token_count": "7"},
    {"token_count": True},
    {"id": "not-a-uuid"},
    {"id": 7},
    {"extra": "nul \0"},
    {"extra": {"nul \0": 1}},
    {"extra": ["lone \ud800"]},
    {"lone \ud800": 1},
    {"nul \0": 1},
    {7: "number as key"},
    {None: "none as key"},
    {"extra": 10**5_000},
    {"extra": (1, 2)},
    {"extra": {1, 2}},
    {"extra": frozenset()},
    {"extra": b"bytes"},
    {"extra": bytearray(b"bytes")},
    {"extra": datetime.now(UTC)},
    {"extra": timedelta(1)},
    {"extra": Decimal(1)},
    {"extra": uuid4()},
    {"extra": object()},
    {"extra": math.nan},
    {"extra": [math.inf]},
    {"extra": {"deep": {"deeper": -math.inf}}},
    {"extra": {1: "number as key"}},
    {"extra": {"deep": {None: 1}}},
]


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda fields: str(next(iter(fields))))
async def test_a_field_that_cannot_be_stored_is_refused(fields: dict[Any, Any]) -> None:
    """Nothing is converted, replaced or dropped: what can't be kept exactly is refused."""
    with pytest.raises(InvalidInputError) as caught:
        await offline().append(ID, [user(), {**user("secret words"), **fields}])
    assert "secret words" not in str(caught.value)


async def test_a_message_without_a_role_is_refused() -> None:
    """The role is the one key that a message needs."""
    with pytest.raises(InvalidInputError, match="role"):
        await offline().append(ID, {"content": "x"})


async def test_the_sentence_says_which_message_is_meant() -> None:
    """In a batch the caller is told the place, never the content."""
    batch = [user("a"), user("b"), user("c\0")]
    with pytest.raises(InvalidInputError, match=r"\b(2|3)\b"):
        await offline().append(ID, batch)


async def test_a_batch_with_one_bad_message_writes_nothing(store: ContextStore) -> None:
    """All or nothing."""
    context = await store.create()
    with pytest.raises(InvalidInputError):
        await store.append(context.id, [user("a"), {"role": "nobody", "content": "b"}])
    assert await store.get(context.id) == context
    assert await store.history(context.id) == []


async def test_a_used_message_id_is_refused_and_writes_nothing(store: ContextStore) -> None:
    """An id names one message of the tenant: not twice in a batch, not in another context."""
    one, two, id = await store.create(), await store.create(), uuid4()
    with pytest.raises(InvalidInputError):
        await store.append(one.id, [user("a", id=id), user("b", id=id)])
    await store.append(one.id, user("a", id=id))
    for context in (one, two):
        with pytest.raises(InvalidInputError):
            await store.append(context.id, [user("b"), user("c", id=id)])
    assert contents(await store.history(one.id)) == ["a"]
    assert await store.history(two.id) == []
    assert (await store.get(one.id)).latest_version == 1
    elsewhere = store.for_tenant(uuid4())
    (theirs,) = await elsewhere.append((await elsewhere.create()).id, user("d", id=id))
    assert theirs.id == id


@pytest.mark.parametrize("expected", [-1, 1.0, "0", True, 2**63])
async def test_an_expected_version_that_is_no_version_is_refused(expected: Any) -> None:
    """A version is a whole number from 0."""
    with pytest.raises(InvalidInputError, match="expected_version"):
        await offline().append(ID, user(), expected_version=expected)


@pytest.mark.parametrize("key", ["", 7, b"key", "nul \0", "lone \ud800"])
async def test_an_idempotency_key_that_cannot_be_stored_is_refused(key: Any) -> None:
    """A key is text, and not empty."""
    with pytest.raises(InvalidInputError, match="idempotency_key"):
        await offline().append(ID, user(), idempotency_key=key)


@pytest.mark.parametrize("embed", ["now", "Later", 1, 0, []])
async def test_an_embed_of_another_kind_is_refused(embed: Any) -> None:
    """True, False, "later" or None."""
    with pytest.raises(InvalidInputError, match="embed"):
        await offline().append(ID, user(), embed=embed)


# ---------------------------------------------------------------------------------------------
# Bounds


def nested(depth: int) -> Any:
    """Make JSON of a depth."""
    value: Any = "leaf"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "x" * (limits.CONTENT_BYTES_MAX + 1)},
        {"content": "字" * (limits.CONTENT_BYTES_MAX // 3 + 1)},
        {"content": [{"type": "text", "text": "x" * limits.CONTENT_BYTES_MAX}]},
        {"extra": "x" * limits.PAYLOAD_BYTES_MAX},
        {"extra": nested(limits.PAYLOAD_DEPTH_MAX + 1)},
        {"extra": nested(100_000)},
        {"model": "m" * (limits.MODEL_CHARS_MAX + 1)},
        {"embedding_model": "m" * (limits.MODEL_CHARS_MAX + 1)},
        {"tool_call_id": "c" * (limits.CALL_ID_CHARS_MAX + 1)},
        {"token_count": limits.TOKEN_COUNT_MAX + 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_message_above_a_bound_is_refused(fields: dict[str, Any]) -> None:
    """Before any SQL, never cut."""
    with pytest.raises(LimitExceededError):
        await offline().append(ID, {**user(), **fields})


async def test_a_cyclic_message_is_refused() -> None:
    """A structure that contains itself is deeper than any bound."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(InvalidInputError):
        await offline().append(ID, user(extra=cycle))


@pytest.mark.parametrize(
    "batch",
    [
        [user()] * (limits.MESSAGES_PER_APPEND_MAX + 1),
        itertools.repeat(user()),
    ],
    ids=["list", "endless iterator"],
)
async def test_a_batch_above_its_bound_is_refused(batch: Any) -> None:
    """Also an endless iterator ends here, and soon."""
    with pytest.raises(LimitExceededError, match=r"1,?000"):
        await offline().append(ID, batch)


async def test_an_idempotency_key_above_its_bound_is_refused() -> None:
    """In characters."""
    with pytest.raises(LimitExceededError, match="idempotency_key"):
        await offline().append(
            ID, user(), idempotency_key="k" * (limits.IDEMPOTENCY_KEY_CHARS_MAX + 1)
        )


async def test_at_the_bounds_everything_works(store: ContextStore) -> None:
    """The largest of each comes back whole."""
    context = await store.create()
    largest = {
        "role": "tool",
        "content": "x" * limits.CONTENT_BYTES_MAX,
        "tool_call_id": "字" * limits.CALL_ID_CHARS_MAX,
        "extra": nested(limits.PAYLOAD_DEPTH_MAX - 2),
    }
    own = {"model": "字" * limits.MODEL_CHARS_MAX, "token_count": limits.TOKEN_COUNT_MAX}
    # Of four bytes each, and not to be compressed: the largest key an index has to hold.
    key = "".join(chr(0x20000 + 7 * n) for n in range(limits.IDEMPOTENCY_KEY_CHARS_MAX))
    await store.append(context.id, {**largest, **own}, idempotency_key=key)
    (message,) = await store.history(context.id)
    assert message.as_dict() == largest
    assert (message.model, message.token_count) == (own["model"], limits.TOKEN_COUNT_MAX)
    assert message.idempotency_key == key


async def test_a_full_batch_is_one_batch(store: ContextStore) -> None:
    """A thousand messages go in at once, in order."""
    context = await store.create()
    messages = await store.append(context.id, users(limits.MESSAGES_PER_APPEND_MAX))
    assert versions(messages) == list(range(1, limits.MESSAGES_PER_APPEND_MAX + 1))
    assert contents(await store.history(context.id, limit=1000)) == contents(messages)


async def test_the_token_counter_holds_more_than_a_message_may(store: ContextStore) -> None:
    """The sum of many full counts is beyond 32 bits and still right."""
    context = await store.create()
    await store.append(context.id, [user(token_count=limits.TOKEN_COUNT_MAX)] * 3)
    assert (await store.get(context.id)).total_tokens == 3 * limits.TOKEN_COUNT_MAX


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        " ".join(f"word{number}" for number in range(100_000)),
        "字" * 333_333,
        "".join(chr(0x4E00 + number % 20_000) for number in range(333_333)),
        "\n" * 1_000_000,
        "🙂" * 250_000,
    ],
    ids=["one letter", "distinct words", "one ideograph", "many ideographs", "lines", "emoji"],
)
async def test_a_megabyte_comes_back_exactly(store: ContextStore, text: str) -> None:
    """A large message is stored, counted and read whole, whatever it is made of."""
    context = await store.create()
    (appended,) = await store.append(context.id, {"role": "user", "content": text})
    (read,) = await store.history(context.id)
    assert read.content == text
    assert appended.token_count > 1_000


# ---------------------------------------------------------------------------------------------
# Compare and set


async def test_an_expected_version_that_is_right_lets_the_append_through(
    store: ContextStore,
) -> None:
    """0 for an empty context, then the latest version each time."""
    context = await store.create()
    await store.append(context.id, users(2), expected_version=0)
    (third,) = await store.append(context.id, user("third"), expected_version=2)
    assert third.version == 3


@pytest.mark.parametrize("expected", [0, 1, 3, limits.VERSION_MAX])
async def test_a_stale_or_future_version_raises_conflict(
    store: ContextStore, expected: int
) -> None:
    """The error carries what was expected and what is, and nothing was written."""
    context = await store.create()
    await store.append(context.id, users(2))
    before = await store.get(context.id)
    with pytest.raises(VersionConflictError) as caught:
        await store.append(context.id, user(), expected_version=expected)
    assert (caught.value.expected, caught.value.actual) == (expected, 2)
    assert await store.get(context.id) == before


async def test_compare_and_set_on_a_new_fork_starts_at_its_fork_version(
    store: ContextStore,
) -> None:
    """The latest version of a fork is the version it was forked at."""
    context = await store.create()
    await store.append(context.id, users(3))
    fork = await store.fork(context.id, at_version=2)
    (message,) = await store.append(fork.id, user(), expected_version=2)
    assert message.version == 3


async def test_a_hidden_message_still_counts_for_compare_and_set(store: ContextStore) -> None:
    """Deleting messages moves no version."""
    context = await store.create()
    await store.append(context.id, users(2))
    await store.delete_messages(context.id, [2])
    (third,) = await store.append(context.id, user(), expected_version=2)
    assert third.version == 3


# ---------------------------------------------------------------------------------------------
# Embeddings left for later


async def test_without_an_embedder_nothing_is_pending(store: ContextStore) -> None:
    """By default an embedding is owed only if somebody could make it."""
    context = await store.create()
    for embed in (None, False):
        (message,) = await store.append(context.id, user(), embed=embed)
        assert not message.embedding_pending


async def test_later_leaves_the_embedding_to_a_worker(store: ContextStore) -> None:
    """The message is there at once and says that its embedding is owed."""
    context = await store.create()
    (message,) = await store.append(context.id, user(), embed="later")
    assert message.embedding_pending
    (read,) = await store.history(context.id)
    assert read.embedding_pending
