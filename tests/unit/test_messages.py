import time
from typing import Any
from uuid import UUID

import msgspec
import pytest

from pgcontext import InvalidInputError, NewMessage
from pgcontext.ids import uuid7
from pgcontext.messages import drafts


class Words:
    """A tokenizer that counts words and remembers what it was asked."""

    name = "words"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def count(self, text: str) -> int:
        """Count the words."""
        self.asked.append(text)
        return len(text.split())


def check(*messages: Any, tokenizer: Any = None, embedding_model: str | None = None) -> list[Any]:
    """Check a batch as append does."""
    return drafts(
        list(messages),
        dimensions=2,
        embedding_model=embedding_model,
        tokenizer=lambda: tokenizer or Words(),
    )


def test_the_tokenizer_is_not_even_made_when_every_count_is_given() -> None:
    """Whoever counts tokens themselves never loads a vocabulary."""

    def forbidden() -> Any:
        raise AssertionError

    (draft,) = drafts(
        {"role": "user", "content": "hello", "token_count": 7},
        dimensions=2,
        embedding_model=None,
        tokenizer=forbidden,
    )
    assert draft.token_count == 7


def test_text_and_the_compact_json_of_tool_calls_are_counted() -> None:
    """Nothing else of the message is."""
    words = Words()
    calls = [{"id": "c1", "function": {"name": "look up", "arguments": "{}"}}]
    (draft,) = check(
        {"role": "assistant", "content": "one two", "tool_calls": calls, "name": "ada", "x": "y z"},
        tokenizer=words,
    )
    assert words.asked == ["one two", msgspec.json.encode(calls).decode()]
    assert draft.token_count == 2 + len(words.asked[1].split())


def test_nothing_to_say_costs_nothing() -> None:
    """No text and no calls: no tokens, and the tokenizer isn't asked."""
    words = Words()
    batch: list[Any] = [{"content": None}, {"content": ""}, {}, {"tool_calls": None}]
    counted = check(*({"role": "assistant", **message} for message in batch), tokenizer=words)
    assert [draft.token_count for draft in counted] == [0, 0, 0, 0]
    assert words.asked == []


@pytest.mark.parametrize("count", [0, 1, 2**31 - 1])
def test_a_count_of_any_size_reaches_the_database(count: int) -> None:
    """Zero included: the row says what the caller said."""
    (draft,) = check({"role": "user", "content": "x", "token_count": count})
    assert msgspec.json.decode(msgspec.json.encode(draft))["token_count"] == count


@pytest.mark.parametrize("count", [-1, 2.0, 2**31, "many", True, float("nan")])
def test_a_tokenizer_that_miscounts_is_refused(count: Any) -> None:
    """A plugged-in tokenizer is held to the same bounds as a caller's count."""

    class Broken:
        name = "broken"

        def count(self, _text: str) -> Any:
            return count

    with pytest.raises(InvalidInputError):
        check({"role": "user", "content": "x"}, tokenizer=Broken())


@pytest.mark.parametrize("index", [0, 1, 5])
def test_the_place_of_the_bad_message_is_named(index: int) -> None:
    """Counted from 0, as the caller's list is."""
    batch: list[Any] = [{"role": "user", "content": "fine", "token_count": 1}] * 6
    batch[index] = {"role": "user", "content": 7}
    with pytest.raises(InvalidInputError, match=f"essage {index}\\b"):
        check(*batch)


@pytest.mark.parametrize("calls", ["[]", {"id": "c"}, ["c"], [None], 7, [["c"]]])
def test_tool_calls_are_a_list_of_objects(calls: Any) -> None:
    """What a window looks into has to have its shape."""
    with pytest.raises(InvalidInputError, match="tool_calls"):
        check({"role": "assistant", "tool_calls": calls})


@pytest.mark.parametrize("content", [["text"], [None], [7], [["x"]], {"text": "x"}, 7, True])
def test_content_is_text_or_parts(content: Any) -> None:
    """Parts are objects."""
    with pytest.raises(InvalidInputError, match="content"):
        check({"role": "user", "content": content})


def test_the_text_of_parts_is_joined_by_lines() -> None:
    """Only text parts say something; the parts themselves stay as they are."""
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "https://example.org/text.png"}},
        {"type": "text", "text": "two"},
        {"type": "text", "text": None},
    ]
    (draft,) = check({"role": "user", "content": parts, "token_count": 1})
    assert draft.content == "one\ntwo"
    assert draft.payload == {"content": parts}


@pytest.mark.parametrize("extra", [[], "x", {"content": "twice"}, {"role": "user"}])
def test_extra_keys_of_a_new_message_are_a_mapping_of_others(extra: Any) -> None:
    """A field can't be said twice."""
    with pytest.raises(InvalidInputError, match="extra"):
        check(NewMessage(role="user", content="x", extra=extra))


def test_an_embedding_gets_the_stores_model_unless_it_names_its_own() -> None:
    """And a model without an embedding is a mistake."""
    message = {"role": "user", "content": "x", "token_count": 1, "embedding": [1, 0]}
    one, two = check(message, {**message, "embedding_model": "mine"}, embedding_model="store's")
    assert (one.embedding_model, two.embedding_model) == ("store's", "mine")
    with pytest.raises(InvalidInputError, match="embedding_model"):
        check({"role": "user", "content": "x", "embedding_model": "mine"})


def test_ids_are_version_7_of_this_moment() -> None:
    """48 bits of milliseconds, the version, the variant, and no two alike."""
    before = time.time_ns() // 1_000_000
    made = [uuid7() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    for id in made:
        assert isinstance(id, UUID)
        assert id.version == 7
        assert id.variant == "specified in RFC 4122"
        assert before <= id.int >> 80 <= after
