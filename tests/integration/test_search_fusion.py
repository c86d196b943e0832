"""How words are ranked, and how both halves of a hybrid search become one score."""

from collections.abc import Iterable
from uuid import UUID

import asyncpg
import pytest

from pgcontext import ContextStore, Hit
from tests.support import DIMENSIONS
from tests.support.chats import user
from tests.support.embedders import Words, with_embedder


async def talk(store: ContextStore, contents: Iterable[str]) -> UUID:
    """Make a context of these messages and return its id."""
    context = await store.create()
    await store.append(context.id, [user(content) for content in contents])
    return context.id


def found(hits: list[Hit]) -> list[str | None]:
    """Say what the hits say, best first."""
    return [hit.message.content for hit in hits]


async def test_a_rare_word_outweighs_two_common_ones(store: ContextStore) -> None:
    """What few messages say tells more than what nearly all of them say."""
    common = [f"Caroline went out on day {day}" for day in range(20)]
    context_id = await talk(store, [*common, "The pottery was closed"])
    for scope in (context_id, None):
        hits = await store.search("Where did Caroline go for pottery", context_id=scope)
        assert hits[0].message.content == "The pottery was closed"


async def test_a_long_prompt_stored_often_does_not_crowd_out_an_answer(
    store: ContextStore,
) -> None:
    """A text that mentions everything matches every query, and is behind a short one that does."""
    prompt = " ".join(f"topic{number} policy refund booking passenger" for number in range(150))
    for _ in range(12):
        await talk(store, [prompt])
    await talk(store, ["A refund of the booking was refused"])
    hits = await store.search("refund for my booking", mode="text")
    assert len(hits) == 10
    assert hits[0].message.content == "A refund of the booking was refused"


async def test_the_text_score_grows_with_the_words_that_a_message_has(store: ContextStore) -> None:
    """Between 0 and 1, whatever else the query finds."""
    context_id = await talk(store, ["red apples", "green pears", "red apples, green pears"])
    hits = await store.search("red apples and green pears", context_id=context_id)
    scores = {hit.message.content: hit.text_score or 0 for hit in hits}
    assert all(0 < score < 1 for score in scores.values())
    assert scores["red apples"] == pytest.approx(scores["green pears"])
    assert scores["red apples, green pears"] == pytest.approx(2 * scores["red apples"], rel=0.05)


@pytest.mark.parametrize("within", [True, False], ids=["context", "tenant"])
async def test_a_hybrid_score_is_made_of_both_as_decided(
    store: ContextStore, *, within: bool
) -> None:
    """0.7 of the text score and 0.3 of how near it is between the nearest and the farthest."""
    store = with_embedder(store)
    contents = [
        f"message {number} about {'apples' if number % 3 else 'pears'}" for number in range(30)
    ]
    context_id = await talk(store, contents)
    scope = context_id if within else None
    hits = await store.search("apples", context_id=scope, limit=30, mode="hybrid")
    assert len(hits) == 30
    distances = [hit.distance for hit in hits if hit.distance is not None]
    assert len(distances) == 30
    near, far = min(distances), max(distances)
    for hit in hits:
        assert hit.distance is not None
        nearness = (far - hit.distance) / (far - near)
        assert hit.score == pytest.approx(0.7 * (hit.text_score or 0) + 0.3 * nearness)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert 0 <= hits[-1].score <= hits[0].score <= 1


async def test_a_message_without_an_embedding_is_found_by_its_words(store: ContextStore) -> None:
    """What waits for its embedding counts as near as its words rank: here they are the best."""
    await talk(store, ["the kestrel was found"])
    hybrid = with_embedder(store)
    await talk(hybrid, ["a falcon was seen", "rain all day"])
    hits = await hybrid.search("kestrel", mode="hybrid")
    waiting = next(hit for hit in hits if hit.message.content == "the kestrel was found")
    assert waiting.found_by == ("text",)
    assert waiting.distance is None
    assert waiting.score == pytest.approx(0.7 * (waiting.text_score or 0) + 0.3)
    assert hits[0] == waiting


@pytest.mark.parametrize("within", [True, False], ids=["context", "tenant"])
async def test_what_waits_for_its_embedding_is_not_buried_by_what_has_one(
    store: ContextStore, *, within: bool
) -> None:
    """The best by words is among the first, however much is near by meaning."""
    hybrid = with_embedder(store)
    id = await talk(hybrid, [f"the flight on day {number}" for number in range(60)])
    await store.append(id, [user("ZQ7742 is lost"), user("nobody had a flight, or knew of one")])
    for mode in ("text", "hybrid"):
        scope = id if within else None
        hits = await hybrid.search("my flight ZQ7742", mode=mode, context_id=scope, limit=70)
        assert found(hits)[0] == "ZQ7742 is lost", mode
    assert found(hits).index("nobody had a flight, or knew of one") > 10


@pytest.mark.parametrize("mode", ["text", "hybrid"])
@pytest.mark.parametrize("within", [True, False], ids=["context", "tenant"])
async def test_the_one_message_with_an_identifier_is_found_among_many_with_common_words(
    store: ContextStore, mode: str, *, within: bool
) -> None:
    """However many messages share the other words of the query."""
    store = with_embedder(store, Words())
    common = [f"Caroline went to the support group, visit {visit}" for visit in range(600)]
    context_id = await talk(store, [*common[:300], "HAT136 is lost", *common[300:]])
    scope = context_id if within else None
    query = "When did Caroline go to the support group about HAT136?"
    hits = await store.search(query, context_id=scope, mode=mode)  # type: ignore[arg-type]
    assert hits[0].message.content == "HAT136 is lost"


@pytest.mark.parametrize("within", [True, False])
async def test_an_identifier_is_looked_up_first_in_a_query_of_many_words(
    store: ContextStore, *, within: bool
) -> None:
    """Words beyond those that are looked up one by one are the short ones."""
    common = [f"Caroline went to the support group, visit {visit}" for visit in range(600)]
    context_id = await talk(store, [*common[:300], "HAT136 is lost", *common[300:]])
    short = " ".join(f"x{number}" for number in range(60))
    query = f"Caroline went to the support group, visit {short} HAT136?"
    hits = await store.search(query, context_id=context_id if within else None, mode="text")
    assert hits[0].message.content == "HAT136 is lost"


async def seems_as_large(connection: asyncpg.Connection, messages: int) -> None:
    """Let the planner's statistics say what they are, of a table of so many rows."""
    await connection.execute("ANALYZE messages")
    await connection.execute(
        "UPDATE pg_class SET reltuples = $1 WHERE oid = 'messages'::regclass", messages
    )


@pytest.mark.parametrize("named", [100, 1], ids=["both named", "only the other named"])
async def test_what_others_say_often_is_found_where_it_is_rare(
    store: ContextStore, connection: asyncpg.Connection, named: int
) -> None:
    """A tenant's identifier is no less looked up because all messages of another have it."""
    await connection.execute(f"ALTER TABLE messages ALTER COLUMN tenant_id SET STATISTICS {named}")
    await talk(store, ["HAT136 is late"] * 900)
    mine = store.for_tenant(UUID(int=1))
    common = [f"Caroline went to the support group, visit {visit}" for visit in range(600)]
    await talk(mine, [*common[:300], "HAT136 is lost", *common[300:]])
    await seems_as_large(connection, 40_000)
    hits = await mine.search("When did Caroline go to the support group about HAT136?")
    assert hits[0].message.content == "HAT136 is lost"


async def test_a_large_tenant_is_asked_for_rare_words_first_and_then_for_all(
    store: ContextStore, connection: asyncpg.Connection
) -> None:
    """Two messages have the rare ones; the common ones find the rest, as many as are asked for."""
    common = [f"Caroline went to the support group, visit {visit}" for visit in range(600)]
    await talk(store, [*common[:300], "HAT136 is lost", *common[300:]])
    await seems_as_large(connection, 100_000)
    hits = await store.search("Caroline and the support group, visit 599: HAT136", limit=50)
    assert len(hits) == 50
    assert {common[599], "HAT136 is lost"} == set(found(hits[:2]))


@pytest.mark.parametrize("messages", [1_000, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("within", [True, False], ids=["context", "tenant"])
async def test_a_word_is_rare_among_what_has_the_phrase(
    store: ContextStore, connection: asyncpg.Connection, messages: int, *, within: bool
) -> None:
    """However many messages have it without, and those are no hits."""
    common = [f"Caroline and her support group, visit {visit}" for visit in range(300)]
    one = "HAT136, as the support group said, and much more of what it said and did"
    context_id = await talk(store, [*["HAT136 is late"] * 60, *common[:150], one, *common[150:]])
    await seems_as_large(connection, messages)
    query = 'Caroline visits the "support group" about HAT136'
    hits = await store.search(query, context_id=context_id if within else None, limit=200)
    assert one in found(hits)
    assert "HAT136 is late" not in found(hits)


@pytest.mark.parametrize("within", [True, False], ids=["context", "tenant"])
async def test_what_has_no_direction_is_at_no_distance(
    store: ContextStore, connection: asyncpg.Connection, *, within: bool
) -> None:
    """A vector of zeros, which only SQL can store, is found by words and spoils no score."""
    store = with_embedder(store)
    context_id = await talk(store, ["red apples", "green apples", "blue plums", "dry bread"])
    zeros = str([0] * DIMENSIONS)
    await connection.execute(
        "UPDATE messages SET embedding = $1::text::vector WHERE content ~ 'green|bread'", zeros
    )
    scope = context_id if within else None
    hits = await store.search("apples", mode="vector", context_id=scope)
    assert sorted(map(str, found(hits))) == ["blue plums", "red apples"]
    hits = await store.search("apples", context_id=scope)
    assert sorted(map(str, found(hits))) == ["blue plums", "green apples", "red apples"]
    assert all(0 <= hit.score <= 1 for hit in hits)
    [undirected] = [hit for hit in hits if hit.message.content == "green apples"]
    assert undirected.distance is None
    assert undirected.found_by == ("text",)
    assert undirected.score == pytest.approx(0.7 * (undirected.text_score or 0) + 0.3)
