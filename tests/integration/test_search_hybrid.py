"""Search by words and meaning at once: what may be asked, who is found, and who asks whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pytest

from pgcontext import (
    ContextNotFoundError,
    ContextStore,
    EmbeddingError,
    InvalidInputError,
    limits,
)
from tests.support.chats import axis, contents, offline, user, versions
from tests.support.embedders import Words, with_embedder

if TYPE_CHECKING:
    from uuid import UUID

    from pgcontext import Hit

MANY: Final = 260  # more than any limit


@pytest.fixture
def embedder() -> Words:
    """Of the store."""
    return Words()


@pytest.fixture
def hybrid(store: ContextStore, embedder: Words) -> ContextStore:
    """The store, with an embedder."""
    return with_embedder(store, embedder)


async def talk(store: ContextStore, *said: str | dict[str, Any]) -> UUID:
    """Make a context of these messages and return its id."""
    context = await store.create()
    await store.append(context.id, [user(one) if isinstance(one, str) else one for one in said])
    return context.id


def found(hits: list[Hit]) -> list[str | None]:
    return contents(hit.message for hit in hits)


async def test_words_are_searched_for_both_ways_where_there_is_an_embedder(
    store: ContextStore, hybrid: ContextStore
) -> None:
    """auto is hybrid then, and text for a store without one."""
    id = await talk(hybrid, "red apples", "green pears")
    for scope in (id, None):
        hits = await hybrid.search("apples", context_id=scope)
        assert hits == await hybrid.search("apples", context_id=scope, mode="hybrid")
        assert [(hit.message.content, hit.found_by) for hit in hits] == [
            ("red apples", ("vector", "text")),
            ("green pears", ("vector",)),
        ]
        assert found(await store.search("apples", context_id=scope)) == ["red apples"]


async def test_the_query_is_embedded_once_and_only_for_meaning(
    hybrid: ContextStore, embedder: Words
) -> None:
    """One text in one call; a search for words or by an embedding asks nobody."""
    await talk(hybrid, "red apples")
    embedder.asked.clear()
    await hybrid.search("apples", mode="hybrid", diversity=0.5, neighbors=2)
    assert embedder.asked == [["apples"]]
    await hybrid.search("apples", mode="text")
    await hybrid.search(embedder.vector("apples"))
    assert embedder.asked == [["apples"]]


async def test_an_embedding_brings_no_words(hybrid: ContextStore) -> None:
    """So it can't be searched for both ways."""
    with pytest.raises(InvalidInputError, match="mode hybrid needs a query of words"):
        await hybrid.search(axis(0), mode="hybrid")


async def test_meaning_needs_an_embedder() -> None:
    """Whoever asks for both and has none is told, before any SQL."""
    with pytest.raises(InvalidInputError, match="needs a store with an embedder"):
        await offline().search("apples", mode="hybrid")


async def test_an_embedder_that_fails_fails_the_search_and_words_remain(
    hybrid: ContextStore, embedder: Words
) -> None:
    """Half an answer would look like a whole one; mode="text" is there for who wants it."""
    await talk(hybrid, "red apples")
    embedder.refuses = ["apples"]
    modes: tuple[Any, ...] = ("auto", "hybrid", "vector")
    for mode in modes:
        with pytest.raises(EmbeddingError):
            await hybrid.search("apples", mode=mode)
    assert found(await hybrid.search("apples", mode="text")) == ["red apples"]


async def test_words_that_say_nothing_leave_the_meaning(hybrid: ContextStore) -> None:
    """A question of stop words alone, or of signs, still has nearest messages."""
    id = await talk(hybrid, "red apples", "green pears")
    for query in ("what is the", "!!!", "🙂"):
        for scope in (id, None):
            hits = await hybrid.search(query, context_id=scope, mode="hybrid")
            assert len(hits) == 2
            assert all((hit.found_by, hit.text_score) == (("vector",), None) for hit in hits)
            assert hits[0].score == pytest.approx(0.3)
            assert hits[1].score == pytest.approx(0)


async def test_a_quotation_is_required_of_the_words_alone(hybrid: ContextStore) -> None:
    """What doesn't quote it is found by its meaning only."""
    id = await talk(hybrid, "a red apple fell", "an apple, red", "rain")
    for scope in (id, None):
        hits = await hybrid.search('"red apple"', context_id=scope, mode="hybrid")
        assert {hit.message.content: hit.found_by for hit in hits} == {
            "a red apple fell": ("vector", "text"),
            "an apple, red": ("vector",),
            "rain": ("vector",),
        }
        assert hits[0].message.content == "a red apple fell"


async def test_embeddings_of_another_model_are_found_by_words_and_never_compared(
    store: ContextStore, hybrid: ContextStore
) -> None:
    """Without a distance, whatever their vectors are; and max_distance leaves them out."""
    id = await talk(with_embedder(store, Words("older")), "red apples", "green pears")
    await hybrid.append(id, user("yellow apples"))
    for scope in (id, None):
        hits = await hybrid.search("apples", context_id=scope)
        by = {hit.message.content: (hit.found_by, hit.distance is None) for hit in hits}
        assert by == {
            "yellow apples": (("vector", "text"), False),
            "red apples": (("text",), True),
        }
        near = await hybrid.search("apples", context_id=scope, max_distance=2)
        assert found(near) == ["yellow apples"]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
async def test_nothing_there_is_no_hit_and_no_context_is_an_error(
    store: ContextStore, hybrid: ContextStore, mode: Any
) -> None:
    """An empty context or tenant has none; one that isn't there, for this tenant, is not found."""
    assert await hybrid.search("apples", mode=mode) == []
    empty = (await hybrid.create()).id
    assert await hybrid.search("apples", context_id=empty, mode=mode) == []
    full = await talk(hybrid, "apples")
    stranger = with_embedder(store.for_tenant(uuid4()))
    assert await stranger.search("apples", mode=mode) == []
    with pytest.raises(ContextNotFoundError):
        await stranger.search("apples", context_id=full, mode=mode)
    with pytest.raises(ContextNotFoundError):
        await hybrid.search("apples", context_id=uuid4(), mode=mode)
    await hybrid.delete(full)
    assert await hybrid.search("apples", mode=mode) == []
    with pytest.raises(ContextNotFoundError):
        await hybrid.search("apples", context_id=full, mode=mode)


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
@pytest.mark.parametrize("diversity", [None, 0, 0.5, 1])
async def test_as_many_hits_come_as_are_asked_for(
    hybrid: ContextStore, mode: Any, diversity: float | None
) -> None:
    """Up to the bound, each once, thinned or not, the best of all always among them."""
    id = await talk(hybrid, *(f"apple number {number % 40}" for number in range(MANY)))
    most = limits.SEARCH_HITS_MAX
    for scope in (id, None):
        (best, *_) = await hybrid.search("apple", context_id=scope, mode=mode)
        for limit in (1, 7, most):
            hits = await hybrid.search(
                "apple", context_id=scope, mode=mode, limit=limit, diversity=diversity
            )
            assert len({hit.message.id for hit in hits}) == limit
            assert hits[0].score == best.score or diversity == 1


async def test_thinning_prefers_what_is_new(hybrid: ContextStore) -> None:
    """Of messages that say the very same one comes, before any other of them comes again."""
    id = await talk(hybrid, *["an apple a day"] * 12, "apple pie", "apple juice", "no apple")
    for scope in (id, None):
        plain = await hybrid.search("an apple a day", context_id=scope, limit=4)
        assert set(found(plain)) == {"an apple a day"}
        hits = await hybrid.search("an apple a day", context_id=scope, limit=4, diversity=0.9)
        assert set(found(hits)) == {"an apple a day", "apple pie", "apple juice", "no apple"}


async def test_thinning_compares_no_embeddings_of_two_models(make_store: Any) -> None:
    """Equal numbers of two models say nothing about how alike two messages are."""
    one, other = make_store(embedding_model="one"), make_store(embedding_model="other")
    id = await talk(other, user("apple 1", embedding=axis(0)))
    await one.append(id, [user(f"apple {number}", embedding=axis(0)) for number in (2, 3)])
    hits = await one.search("apple", context_id=id, limit=2, mode="text")
    assert found(hits) == ["apple 3", "apple 2"]
    hits = await one.search("apple", context_id=id, limit=2, diversity=0.9, mode="text")
    assert found(hits) == ["apple 3", "apple 1"]


async def test_neighbors_come_with_both_kinds_of_hits(hybrid: ContextStore) -> None:
    """Through the lineage in a context; over the tenant as the hit's own context shows them."""
    root = await talk(hybrid, "one", "two", "three", "apple four")
    fork = (await hybrid.fork(root)).id
    await hybrid.append(fork, [user("five"), user("apple six"), user("seven")], embed="later")
    await hybrid.delete_messages(fork, [3])
    for scope, around in ((fork, {4: [2, 5], 6: [5, 7]}), (None, {4: [3], 6: [5, 7]})):
        hits = await hybrid.search("apple", context_id=scope, neighbors=1)
        by_words = {hit.message.version: hit for hit in hits if "text" in hit.found_by}
        assert {at: versions(hit.neighbors) for at, hit in by_words.items()} == around
        assert by_words[4].found_by == ("vector", "text")
        assert (by_words[6].found_by, by_words[6].distance) == (("text",), None)
        assert by_words[6].message.embedding_pending


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_of_equally_good_hits_the_newest_comes_first(hybrid: ContextStore, mode: Any) -> None:
    """And the order is the same whenever it is asked for."""
    id = await talk(hybrid, *["apple"] * 9)
    for scope in (id, None):
        hits = await hybrid.search("apple", context_id=scope, mode=mode, limit=9)
        assert versions(hit.message for hit in hits) == [9, 8, 7, 6, 5, 4, 3, 2, 1]


async def test_the_oldest_of_equally_near_hits_comes_first(hybrid: ContextStore) -> None:
    """By meaning alone what was said first is the source of what was said again."""
    id = await talk(hybrid, *["apple"] * 9)
    for scope in (id, None):
        hits = await hybrid.search("apple", context_id=scope, mode="vector", limit=9)
        assert versions(hit.message for hit in hits) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
