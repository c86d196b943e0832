import random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from pgcontext import ContextStore, Hit, InvalidInputError, LimitExceededError, limits
from tests.support.chats import offline, user


def found(hits: list[Hit]) -> list[str | None]:
    """Say what the hits say, best first."""
    return [hit.message.content for hit in hits]


async def talk(store: ContextStore, *contents: str) -> Any:
    """Make a context of these messages and return its id."""
    context = await store.create()
    if contents:
        await store.append(context.id, [user(content) for content in contents])
    return context.id


async def test_any_of_the_words_is_enough(store: ContextStore) -> None:
    """OR semantics: one word found is a hit, more words found are a better one."""
    await talk(store, "red apples", "green pears", "red apples and green pears", "blue plums")
    hits = await store.search("green apples")
    assert hits[0].message.content == "red apples and green pears"
    assert set(found(hits)) == {"red apples", "green pears", "red apples and green pears"}


async def test_a_hit_says_how_it_was_found(store: ContextStore) -> None:
    """Text alone: a score, no distance."""
    await talk(store, "red apples", "apples, apples, apples", "nothing")
    hits = await store.search("apple")
    assert len(hits) == 2
    for hit in hits:
        assert hit.distance is None
        assert hit.text_score is not None
        assert hit.text_score > 0
        assert hit.score == hit.text_score
        assert hit.found_by == ("text",)
        assert hit.neighbors == []
    assert hits[0].score >= hits[1].score


async def test_words_are_found_in_their_other_forms(store: ContextStore) -> None:
    """Stemming, and case does not matter."""
    await talk(store, "The REFUNDS were cancelled", "no match")
    for query in ("refund", "Refunding", "cancel", "CANCELLING"):
        assert found(await store.search(query)) == ["The REFUNDS were cancelled"]


async def test_a_question_of_stop_words_finds_nothing(store: ContextStore) -> None:
    """Words that every text has say nothing."""
    await talk(store, "the and of")
    assert await store.search("what is the") == []


@pytest.mark.parametrize(
    "query",
    [
        "apples & pears",
        "apples | !pears",
        "'apples",
        "apples' OR 1=1 --",
        "apples:*",
        "(apples",
        "apples <-> pears",
        '"apples',
        "\\apples\\",
        "apples %s $1 {}",
        "apples\n\tpears",
        "🍎 apples",
        "<b>apples</b>",
    ],
)
async def test_signs_in_a_query_are_no_operators(store: ContextStore, query: str) -> None:
    """Whatever a person types is words."""
    await talk(store, "apples")
    assert found(await store.search(query)) == ["apples"]


@pytest.mark.parametrize("query", ["!!!", "&", "()", "🙂", "'", "-", "--", ":*"])
async def test_a_query_of_signs_alone_finds_nothing(store: ContextStore, query: str) -> None:
    """And does not fail."""
    await talk(store, "apples & pears")
    assert await store.search(query) == []


@pytest.mark.parametrize("seed", range(4))
async def test_no_query_makes_the_search_fail(store: ContextStore, seed: int) -> None:
    """Addresses, paths, quotes and operators in any order are words, or nothing."""
    await talk(store, "see http://a.b/c\\d, C:\\dir\\file.txt and o'neil@a.bc")
    draw = random.Random(seed)
    for _ in range(100):
        start = draw.choice(["", "http://a.b/", "a.b@c.de"])
        query = start + "".join(draw.choices("\\'\"&|!:*()<>@./-_~#?=%+,; abE01é字", k=20))
        await store.search(query)


async def test_text_of_parts_is_found_and_other_values_are_not(store: ContextStore) -> None:
    """Search looks at what was said."""
    context = await store.create()
    parts = [{"type": "text", "text": "apples"}, {"type": "text", "text": "pears"}]
    await store.append(context.id, [user(note="apples"), {"role": "user", "content": parts}])
    for query in ("apples", "pears"):
        (hit,) = await store.search(query)
        assert hit.message.version == 2
        assert hit.message.as_dict()["content"] == parts


async def test_a_huge_message_is_stored_and_found_by_its_beginning(store: ContextStore) -> None:
    """A megabyte of distinct words, of one word, and of ideographs."""
    await talk(
        store,
        "beginning " + " ".join(f"word{number}" for number in range(100_000)),
        "beginning " + "x" * 1_000_000,
        "beginning " + "字" * 333_333,
        "beginning " + " ".join(chr(0x4E00 + number % 20_000) for number in range(250_000)),
    )
    assert len(await store.search("beginning")) == 4
    assert len(await store.search("word7")) == 1


async def test_a_context_is_searched_as_it_shows(store: ContextStore) -> None:
    """Inherited messages included, hidden ones and those behind the fork not."""
    root = await talk(store, "apple one", "apple two", "apple three", "apple four")
    fork = await store.fork(root, at_version=3)
    await store.append(fork.id, user("apple mine"))
    await store.delete_messages(fork.id, [1])
    await store.delete_messages(root, [2])
    hits = await store.search("apple", context_id=fork.id)
    assert set(found(hits)) == {"apple two", "apple three", "apple mine"}
    assert set(found(await store.search("apple", context_id=root))) == {
        "apple one",
        "apple three",
        "apple four",
    }


async def test_a_context_is_searched_up_to_a_version(store: ContextStore) -> None:
    """As history at that version shows it; beyond the end it is all."""
    id = await talk(store, "apple one", "apple two", "apple three")
    for at_version, count in ((0, 0), (1, 1), (2, 2), (3, 3), (99, 3)):
        hits = await store.search("apple", context_id=id, at_version=at_version)
        assert len(hits) == count


async def test_without_a_context_the_tenants_live_messages_are_searched(
    store: ContextStore,
) -> None:
    """Each message once, as its owner's head shows it; deleted contexts are silent."""
    root = await talk(store, "apple one", "apple two")
    fork = await store.fork(root)
    await store.append(fork.id, user("apple fork"))
    deleted = await talk(store, "apple deleted")
    await store.delete(deleted)
    await store.delete_messages(fork.id, [1])
    assert sorted(map(str, found(await store.search("apple")))) == [
        "apple fork",
        "apple one",
        "apple two",
    ]
    await store.delete_messages(root, [2])
    assert len(await store.search("apple")) == 2
    await store.restore_messages(root, [2])
    await store.restore(deleted)
    assert len(await store.search("apple")) == 4
    elsewhere = store.for_tenant(uuid4())
    assert await elsewhere.search("apple") == []


async def test_the_limit_keeps_the_best(store: ContextStore) -> None:
    """As many as asked for, no more, whatever the number there is."""
    await talk(store, *(f"apple {'apple ' * (number % 7)}" for number in range(300)))
    everything = await store.search("apple", limit=limits.SEARCH_HITS_MAX)
    assert len(everything) == limits.SEARCH_HITS_MAX
    scores = [hit.score for hit in everything]
    assert scores == sorted(scores, reverse=True)
    few = await store.search("apple", limit=3)
    assert [hit.score for hit in few] == scores[:3]
    assert len(await store.search("apple")) == 10


async def test_modes_of_a_text_query(store: ContextStore) -> None:
    """Without an embedder, auto is text, and meaning needs an embedding."""
    id = await talk(store, "apples")
    assert found(await store.search("apples", mode="auto")) == ["apples"]
    assert found(await store.search("apples", mode="text", context_id=id)) == ["apples"]
    with pytest.raises(InvalidInputError, match="embedder"):
        await store.search("apples", mode="vector")


@pytest.mark.parametrize(
    ("query", "arguments", "name"),
    [
        ("", {}, "query"),
        (" \n\t ", {}, "query"),
        ("nul \0", {}, "query"),
        ("lone \ud800", {}, "query"),
        (None, {}, "query"),
        (7, {}, "query"),
        (b"apples", {}, "query"),
        ("apples", {"mode": "fuzzy"}, "mode"),
        ("apples", {"mode": None}, "mode"),
        ("apples", {"mode": ["text"]}, "mode"),
        ("apples", {"max_distance": 0.5, "mode": "text"}, "max_distance"),
        ([0.5] * 8, {"mode": "text"}, "mode"),
    ],
    ids=repr,
)
async def test_a_query_that_cannot_be_is_refused(
    query: Any, arguments: dict[str, Any], name: str
) -> None:
    """Before any SQL, by the name of what is wrong."""
    with pytest.raises(InvalidInputError, match=name):
        await offline().search(query, **arguments)


async def test_a_query_has_a_bound(store: ContextStore) -> None:
    """A very long question works up to the bound and is refused above it."""
    await talk(store, "apples")
    words = " ".join(f"w{number}" for number in range(limits.QUERY_CHARS_MAX))
    longest = ("apples " + words)[: limits.QUERY_CHARS_MAX]
    assert found(await store.search(longest)) == ["apples"]
    with pytest.raises(LimitExceededError, match="query"):
        await store.search(longest + "x")


async def test_a_long_text_is_fetched_no_oftener_for_many_words(
    store: ContextStore, connection: asyncpg.Connection
) -> None:
    """What a search reads of the texts it ranks doesn't grow with the words of the query."""
    words = [f"word{number}" for number in range(2_000)]
    for _ in range(20):
        await talk(store, " ".join(words))

    async def blocks() -> int:
        await store._fetch(
            "-- pgcontext.show\nSELECT pg_stat_force_next_flush() WHERE $1::uuid IS NOT NULL"
        )
        count: int = await connection.fetchval(
            "SELECT toast_blks_hit + toast_blks_read FROM pg_statio_user_tables"
            " WHERE relname = 'messages'"
        )
        return count

    read = []
    for query in ("word7", " ".join(words[:100])):
        before = await blocks()
        assert len(await store.search(query)) == 10
        read.append(await blocks() - before)
    assert 0 < read[1] <= 2 * read[0]
