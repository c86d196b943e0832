from typing import Any
from uuid import uuid4

import asyncpg
import numpy as np
import pytest

from pgcontext import ContextStore, Hit, InvalidInputError
from tests.support import DIMENSIONS
from tests.support.chats import axis, user

# Vectors drawn once for all; the seed makes failures repeat.
RNG = np.random.default_rng(20_260_101)


def draw(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw vectors around a common direction, as embeddings of one subject are."""
    return RNG.normal(0.3, 1, (count, DIMENSIONS)).astype(np.float32)


def nearest(vectors: Any, query: Any) -> list[int]:
    """Order the numbers of the vectors by true cosine distance."""
    exact = np.asarray(vectors, dtype=np.float64)
    likeness = exact @ query / np.linalg.norm(exact, axis=1) / np.linalg.norm(query)
    return [int(index) for index in np.argsort(-likeness, kind="stable")]


def numbers(hits: list[Hit]) -> list[int]:
    """Say which numbered messages were found, best first."""
    return [int(str(hit.message.content)) for hit in hits]


async def numbered(store: ContextStore, vectors: Any, first: int = 0, **fields: Any) -> Any:
    """Make a context whose messages are numbers with these embeddings; return its id."""
    context = await store.create()
    await append(store, context.id, vectors, first, **fields)
    return context.id


async def append(store: ContextStore, id: Any, vectors: Any, first: int = 0, **fields: Any) -> None:
    """Append numbered messages with these embeddings."""
    batch = [
        user(str(first + index), embedding=vector, **fields) for index, vector in enumerate(vectors)
    ]
    await store.append(id, batch)


async def test_a_context_is_searched_exactly(store: ContextStore) -> None:
    """The order and the distances are those of a computation by hand."""
    vectors, query = draw(300), draw(1)[0]
    id = await numbered(store, vectors)
    hits = await store.search(query, context_id=id, limit=50)
    order = nearest(vectors, query)
    assert numbers(hits) == order[:50]
    for hit, index in zip(hits, order, strict=False):
        exact = 1 - vectors[index] @ query / np.linalg.norm(vectors[index]) / np.linalg.norm(query)
        assert hit.distance == pytest.approx(float(exact), abs=1e-4)


async def test_a_hit_says_how_it_was_found(store: ContextStore) -> None:
    """Meaning alone: a distance, no text score, a score that is larger for the nearer."""
    id = await numbered(store, [axis(0), axis(1), axis(0, towards=1, by=-3.0)])
    hits = await store.search(axis(0), context_id=id)
    assert [hit.distance for hit in hits] == [
        pytest.approx(0, abs=1e-6),
        pytest.approx(1 - 10**-0.5, abs=1e-4),
        pytest.approx(1, abs=1e-6),
    ]
    for hit in hits:
        assert hit.text_score is None
        assert hit.found_by == ("vector",)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


async def test_opposite_vectors_are_two_apart(store: ContextStore) -> None:
    """Distance is cosine distance, 0 to 2; length does not matter."""
    id = await numbered(store, [[-7 * value for value in axis(0)], [9 * v for v in axis(0)]])
    hits = await store.search(axis(0), context_id=id)
    assert [hit.distance for hit in hits] == [
        pytest.approx(0, abs=1e-6),
        pytest.approx(2, abs=1e-6),
    ]


async def test_a_context_is_searched_as_it_shows(store: ContextStore) -> None:
    """Inherited messages included; hidden ones, and those behind the fork, not."""
    vectors, query = draw(60), draw(1)[0]
    root = await numbered(store, vectors[:20])
    middle = await store.fork(root, at_version=15)
    await append(store, middle.id, vectors[20:40], 20)
    leaf = await store.fork(middle.id, at_version=30)
    await append(store, leaf.id, vectors[40:], 40)
    await store.delete_messages(leaf.id, [1, 20, 31])
    await store.delete_messages(root, [2, 3])
    await store.delete_messages(middle.id, [16])
    shown = [int(str(message.content)) for message in await store.history(leaf.id)]
    assert len(shown) == 15 + 15 + 20 - 3
    hits = await store.search(query, context_id=leaf.id, limit=100)
    assert numbers(hits) == [index for index in nearest(vectors, query) if index in shown]
    at_version = await store.search(query, context_id=leaf.id, limit=100, at_version=10)
    assert numbers(at_version) == [i for i in nearest(vectors, query) if i in shown and i < 10]


async def test_a_forks_hits_survive_the_deletion_of_its_parent(store: ContextStore) -> None:
    """Exactly what history shows, also when the owner of the messages is deleted."""
    vectors, query = draw(10), draw(1)[0]
    root = await numbered(store, vectors)
    fork = await store.fork(root)
    await store.delete(root)
    hits = await store.search(query, context_id=fork.id)
    assert numbers(hits) == nearest(vectors, query)
    assert await store.search(query) == []


async def test_the_tenant_is_searched_over_all_its_live_messages(store: ContextStore) -> None:
    """Each message once; hidden ones, deleted contexts and other tenants are silent."""
    vectors, query = draw(400), draw(1)[0]
    ids = [await numbered(store, vectors[n : n + 40], n) for n in range(0, 400, 40)]
    fork = await store.fork(ids[0])
    await store.delete_messages(fork.id, [1])
    await store.delete_messages(ids[1], range(1, 21))
    await store.delete(ids[2])
    elsewhere = store.for_tenant(uuid4())
    await numbered(elsewhere, [query, query], 900)
    live = [n for n in nearest(vectors, query) if not 40 <= n < 60 and not 80 <= n < 120]
    hits = await store.search(query, limit=10)
    assert len(hits) == 10
    assert len(set(numbers(hits)) & set(live[:10])) >= 9
    assert set(numbers(hits)) <= set(live)
    assert [hit.distance for hit in hits] == sorted(hit.distance or 0 for hit in hits)
    assert numbers(await elsewhere.search(query)) == [900, 901]


async def test_a_small_tenant_beside_a_large_one_finds_all_it_has(store: ContextStore) -> None:
    """Neighbours' vectors nearer to the query crowd nothing out."""
    query = np.array(axis(0), dtype=np.float32)
    crowd = query + draw(1_000) * 0.01
    far = -query + draw(12) * 0.1
    large = store.for_tenant(uuid4())
    await numbered(large, crowd)
    await numbered(store, far, 5_000)
    hits = await store.search(query, limit=10)
    assert numbers(hits) == [5_000 + index for index in nearest(far, query)][:10]


async def test_messages_without_an_embedding_are_not_found_by_meaning(
    store: ContextStore,
) -> None:
    """They have no distance; text still finds them."""
    context = await store.create()
    await store.append(context.id, [user("1", embedding=axis(0)), user("2 apples")])
    assert numbers(await store.search(axis(0), context_id=context.id)) == [1]
    assert numbers(await store.search(axis(0))) == [1]
    assert len(await store.search("apples", context_id=context.id)) == 1


async def test_messages_without_an_embedding_are_not_found_where_no_index_is_used(
    store: ContextStore, connection: asyncpg.Connection
) -> None:
    """Which messages are found does not hang on the plan: here a small tenant is sorted instead."""
    await numbered(store.for_tenant(uuid4()), draw(300))
    small = store.for_tenant(uuid4())
    context_id = await numbered(small, draw(1))
    await small.append(context_id, [user("mute"), user("mute")])
    await connection.execute("ANALYZE messages")
    assert numbers(await small.search(draw(1)[0])) == [0]


async def test_an_empty_context_and_an_empty_tenant_have_no_hits(store: ContextStore) -> None:
    """Nothing there is not an error."""
    context = await store.create()
    assert await store.search(axis(0), context_id=context.id) == []
    assert await store.search(axis(0)) == []


async def test_models_of_embeddings_are_never_compared(
    store: ContextStore, make_store: Any
) -> None:
    """A query belongs to the store's embedding model, unset by default."""
    context = await store.create()
    await store.append(
        context.id,
        [
            user("0", embedding=axis(0)),
            user("1", embedding=axis(0), embedding_model="a"),
            user("2", embedding=axis(0), embedding_model="b"),
        ],
    )
    for scope in (None, context.id):
        assert numbers(await store.search(axis(0), context_id=scope)) == [0]
        for model, number in (("a", 1), ("b", 2)):
            other = make_store(embedding_model=model)
            assert numbers(await other.search(axis(0), context_id=scope)) == [number]
        third = make_store(embedding_model="c")
        assert await third.search(axis(0), context_id=scope) == []


async def test_the_stores_embedding_model_is_kept_with_what_is_given_without_one(
    make_store: Any,
) -> None:
    """What is appended by a store is found by it."""
    store = make_store(embedding_model="a")
    id = await numbered(store, [axis(0)])
    (message,) = await store.history(id)
    assert message.embedding_model == "a"
    assert numbers(await store.search(axis(0))) == [0]


async def test_max_distance_cuts_exactly(store: ContextStore) -> None:
    """Only hits at most that far away, the bound included; fewer than the limit is fine."""
    vectors = [axis(0), axis(0, towards=1, by=1.0), axis(1), [-value for value in axis(0)]]
    id = await numbered(store, vectors)
    for scope in (id, None):
        for max_distance, count in ((0, 1), (0.2, 1), (0.3, 2), (0.99, 2), (1, 3), (2, 4)):
            hits = await store.search(axis(0), context_id=scope, max_distance=max_distance)
            assert numbers(hits) == list(range(count))


async def test_modes_of_an_embedding(store: ContextStore) -> None:
    """auto is vector; text needs words."""
    id = await numbered(store, [axis(0)])
    for mode in ("auto", "vector"):
        hits = await store.search(axis(0), context_id=id, mode=mode)
        assert numbers(hits) == [0]
    with pytest.raises(InvalidInputError, match="mode"):
        await store.search(axis(0), mode="text")


async def test_equal_embeddings_all_come(store: ContextStore) -> None:
    """Duplicates are messages of their own, in a stable order."""
    id = await numbered(store, [axis(0)] * 30)
    first = numbers(await store.search(axis(0), context_id=id, limit=30))
    assert sorted(first) == list(range(30))
    assert numbers(await store.search(axis(0), context_id=id, limit=30)) == first
    assert len(await store.search(axis(0), limit=30)) == 30


async def test_diversity_thins_what_says_the_same(store: ContextStore) -> None:
    """At a high diversity near-duplicates of the best give way; 0 changes nothing."""
    near = [axis(0, towards=1, by=0.001 * number) for number in range(5)]
    other = [axis(0, towards=2, by=0.8), axis(0, towards=3, by=0.9)]
    id = await numbered(store, near + other)
    query = axis(0)
    plain = numbers(await store.search(query, context_id=id, limit=3))
    assert plain == [0, 1, 2]
    same = await store.search(query, context_id=id, limit=3, diversity=0)
    assert numbers(same) == plain
    thinned = numbers(await store.search(query, context_id=id, limit=3, diversity=0.95))
    assert thinned[0] == 0
    assert set(thinned) == {0, 5, 6}
    everything = await store.search(query, context_id=id, limit=20, diversity=1)
    assert sorted(numbers(everything)) == list(range(7))


async def test_the_one_best_is_found_where_signatures_tell_nothing(store: ContextStore) -> None:
    """The nearest of embeddings whose signs are all alike comes whatever `limit` is."""
    generator = np.random.default_rng(20_260_103)
    vectors = generator.uniform(0.01, 1, (1_000, DIMENSIONS)).astype(np.float32)
    await numbered(store, vectors)
    for query in generator.uniform(0.01, 1, (20, DIMENSIONS)).astype(np.float32):
        order = nearest(vectors, query)
        for limit in (1, 2, 12):
            assert numbers(await store.search(query, limit=limit)) == order[:limit]


async def test_deleted_contexts_are_no_burden_when_hash_memory_is_short(
    store: ContextStore, connection: asyncpg.Connection
) -> None:
    """A scan goes by a hash of the deleted contexts, not through all of them for each message."""
    vectors, query = draw(1_000), draw(1)[0]
    await numbered(store, vectors)
    await connection.execute(
        "INSERT INTO contexts (id, deleted_at)"
        " SELECT gen_random_uuid(), now() FROM generate_series(1, 40000)"
    )
    await connection.execute("ANALYZE contexts")
    await connection.execute("SET work_mem = '64kB'")  # holds some 3,000 of them
    await connection.execute("SET statement_timeout = '2s'")
    found = await connection.fetch(
        "SELECT m.content FROM pgcontext_nearest($1, $2::text::vector, 10, 10, 1, NULL, NULL, NULL,"
        " NULL, NULL, NULL) AS n JOIN messages AS m USING (id) ORDER BY n.distance",
        store.tenant_id,
        str(query.tolist()),
    )
    assert [int(row["content"]) for row in found] == nearest(vectors, query)[:10]


async def test_equal_signatures_hide_nothing_that_came_later(store: ContextStore) -> None:
    """Where all signs are alike, what was said first is no better than what was said last."""
    generator = np.random.default_rng(20_261_120)
    query = generator.uniform(0.2, 1, DIMENSIONS).astype(np.float32)
    spread = np.linspace(1, 2, 25, dtype=np.float32)[:, None]
    close = query + generator.uniform(0, 0.02, (25, DIMENSIONS)).astype(np.float32) * spread
    close = close[nearest(close, query)]
    far = generator.uniform(0.01, 1, (600, DIMENSIONS)).astype(np.float32) ** 4
    vectors = np.concatenate([close[10:], far, close[:10]])
    await numbered(store, vectors)
    assert numbers(await store.search(query, limit=10)) == nearest(vectors, query)[:10]
