import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pgcontext import ContextStore, InvalidInputError
from tests.support import DIMENSIONS
from tests.support.chats import axis, call, contents, user

MakeStore = Callable[..., ContextStore]


class Lengths:
    """An embedder whose vectors point along the axis of a text's length."""

    model = "lengths"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
        """Embed by length."""
        self.asked.append(texts)
        return [axis(len(text) % DIMENSIONS) for text in texts]


class Answers(Lengths):
    """An embedder that answers something else, or fails."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    async def embed(self, texts: list[str]) -> Any:
        """Give the prepared answer."""
        self.asked.append(texts)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_an_embedder_embeds_what_is_appended(make_store: MakeStore) -> None:
    """In one call for the batch, with its model's name, before the messages are written."""
    embedder = Lengths()
    store = make_store(embedder=embedder)
    context = await store.create()
    messages = await store.append(context.id, [user("a"), user("bb"), user("ccc")])
    assert embedder.asked == [["a", "bb", "ccc"]]
    assert [message.embedding_model for message in messages] == ["lengths"] * 3
    assert not any(message.embedding_pending for message in messages)
    assert await store.history(context.id) == messages
    (hit,) = await store.search(axis(2), context_id=context.id, max_distance=0.1)
    assert hit.message.content == "bb"


async def test_a_query_in_words_is_embedded_for_a_search_by_meaning(make_store: MakeStore) -> None:
    """mode="vector" asks the embedder, and compares with its model's vectors only."""
    store = make_store(embedder=Lengths())
    context = await store.create()
    await store.append(context.id, [user("a"), user("bb")])
    await store.append(context.id, user("other", embedding=axis(2), embedding_model="other"))
    for scope in (None, context.id):
        hits = await store.search("zz", context_id=scope, mode="vector")
        assert contents(hit.message for hit in hits)[0] == "bb"
        assert "other" not in contents(hit.message for hit in hits)
        assert hits[0].found_by == ("vector",)


async def test_what_has_an_embedding_or_no_text_is_not_embedded(make_store: MakeStore) -> None:
    """The caller's own embedding stays; a message without text owes none."""
    embedder = Lengths()
    store = make_store(embedder=embedder)
    context = await store.create()
    batch = [user("a", embedding=axis(5), embedding_model="mine"), call("c"), user(""), user("bb")]
    messages = await store.append(context.id, batch)
    assert embedder.asked == [["bb"]]
    assert [message.embedding_model for message in messages] == ["mine", None, None, "lengths"]
    assert not any(message.embedding_pending for message in messages)
    await store.append(context.id, call("d"))
    assert len(embedder.asked) == 1


async def test_embed_false_and_later_do_not_ask_the_embedder(make_store: MakeStore) -> None:
    """False owes nothing, "later" owes an embedding."""
    embedder = Lengths()
    store = make_store(embedder=embedder)
    context = await store.create()
    (never,) = await store.append(context.id, user("a"), embed=False)
    (later,) = await store.append(context.id, user("b"), embed="later")
    assert (never.embedding_pending, later.embedding_pending) == (False, True)
    assert embedder.asked == []
    read = await store.history(context.id)
    assert [message.embedding_pending for message in read] == [False, True]


async def test_embed_true_needs_an_embedder(store: ContextStore) -> None:
    """There is nobody to do it now."""
    context = await store.create()
    with pytest.raises(InvalidInputError, match="embedder"):
        await store.append(context.id, user(), embed=True)


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("secret words in the service's answer"),
        TimeoutError(),
        [],
        [axis(0)],
        [axis(0), axis(1), axis(2)],
        [axis(0), [0.5]],
        [axis(0), [float("nan")] * DIMENSIONS],
        [axis(0), [0.0] * DIMENSIONS],
        None,
    ],
    ids=repr,
)
async def test_an_embedder_that_fails_never_loses_a_message(
    make_store: MakeStore, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch is stored and marked for later, all of it, and the log says no content."""
    caplog.set_level(logging.DEBUG)
    store = make_store(embedder=Answers(answer))
    context = await store.create()
    messages = await store.append(context.id, [user("secret words"), user("b")])
    assert [message.embedding_pending for message in messages] == [True, True]
    assert [message.embedding_model for message in messages] == [None, None]
    assert await store.history(context.id) == messages
    assert await store.search(axis(0), context_id=context.id) == []
    assert "embedding" in caplog.text
    assert "secret" not in caplog.text


async def test_a_cancelled_append_is_cancelled(make_store: MakeStore) -> None:
    """A caller who gives up while the embedder works writes nothing."""

    class Slow(Lengths):
        async def embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
            await asyncio.sleep(60)
            return await super().embed(texts)

    store = make_store(embedder=Slow())
    context = await store.create()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(store.append(context.id, user()), 0.05)
    assert (await store.get(context.id)).latest_version == 0


async def test_no_connection_is_held_while_embedding(make_store: MakeStore) -> None:
    """With one connection in all, others work on while an embedder takes its time."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Waiting(Lengths):
        async def embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
            begun.set()
            await go_on.wait()
            return await super().embed(texts)

    store = make_store(embedder=Waiting(), pool_size=1, acquire_seconds=5.0)
    context = await store.create()
    appending = asyncio.create_task(store.append(context.id, user("slow")))
    await begun.wait()
    await store.append(context.id, user("quick"), embed=False)
    go_on.set()
    (slow,) = await appending
    assert slow.version == 2
