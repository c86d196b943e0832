import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from pgcontext import (
    ContextStore,
    EmbeddingError,
    InvalidInputError,
    LimitExceededError,
    limits,
)
from pgcontext.embedding import answers
from tests.support import DIMENSIONS
from tests.support.chats import axis, contents, user, users
from tests.support.embedders import Waiting, Words

MakeStore = Callable[..., ContextStore]
OWED = "SELECT content FROM messages WHERE embed_after IS NOT NULL ORDER BY version"


async def owe(store: ContextStore, messages: list[Any] | dict[str, Any]) -> UUID:
    """Make a context with messages whose embeddings are owed."""
    context = await store.create()
    await store.append(context.id, messages, embed="later")
    return context.id


async def owed(connection: asyncpg.Connection) -> list[str]:
    """The contents of what is owed still."""
    return [row["content"] for row in await connection.fetch(OWED)]


async def ripen(connection: asyncpg.Connection) -> None:
    """Let the time pass after which what is owed may be claimed."""
    await connection.execute("UPDATE messages SET embed_after = now() WHERE embed_after > now()")


async def seconds_until_due(connection: asyncpg.Connection) -> float:
    """How long it takes until the first of what is owed may be claimed."""
    seconds: float = await connection.fetchval(
        "SELECT extract(epoch FROM min(embed_after) - now())::float8 FROM messages"
    )
    return seconds


async def test_what_was_left_for_later_is_embedded(make_store: MakeStore) -> None:
    """It is found by vector then, carries the model's name, and is owed no more."""
    embedder = Words()
    store = make_store(embedder=embedder)
    context_id = await owe(store, [user("a"), user("b"), user("c", embedding=axis(0))])
    (given,) = await store.search(embedder.vector("b"), context_id=context_id)
    assert given.message.content == "c"
    assert await store.embed_pending() == 2
    assert await store.embed_pending() == 0
    assert sorted(chain(*embedder.asked)) == ["a", "b"]
    hits = await store.search(embedder.vector("b"), context_id=context_id)
    assert hits[0].message.content == "b"
    assert hits[0].distance == pytest.approx(0, abs=1e-6)
    messages = await store.history(context_id)
    assert {message.embedding_model for message in messages} == {"words"}
    assert not any(message.embedding_pending for message in messages)


async def test_a_limit_bounds_what_one_call_takes(make_store: MakeStore) -> None:
    """No more than asked for; the longest owed first; batches of what may be claimed at once."""
    embedder = Words()
    store = make_store(embedder=embedder)
    await owe(store, users(3))
    await owe(store, users(limits.EMBED_BATCH_MESSAGES_MAX + 1, start=10))
    assert await store.embed_pending(limit=3) == 3
    assert sorted(embedder.asked[0]) == ["message 1", "message 2", "message 3"]
    assert await store.embed_pending(limit=limits.EMBED_MESSAGES_MAX) == 201
    assert [len(texts) for texts in embedder.asked] == [3, limits.EMBED_BATCH_MESSAGES_MAX, 1]


async def test_a_claim_is_bounded_in_bytes(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts are claimed a few at a time, and one that is above the bound alone."""
    embedder = Words()
    store = make_store(embedder=embedder)
    monkeypatch.setattr(limits, "EMBED_BATCH_BYTES_MAX", 10)
    await owe(store, [user("aaaa"), user("bbbb"), user("cccc"), user("d" * 100), user("e")])
    assert await store.embed_pending() == 5
    assert sorted(chain(*embedder.asked)) == ["aaaa", "bbbb", "cccc", "d" * 100, "e"]
    assert len(embedder.asked) >= 2
    assert all(len("".join(texts[:-1])) < 10 for texts in embedder.asked)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True, None])
async def test_a_limit_is_a_number_of_messages(make_store: MakeStore, limit: Any) -> None:
    """Anything else is refused before any SQL."""
    with pytest.raises(InvalidInputError, match="limit"):
        await make_store(embedder=Words()).embed_pending(limit=limit)


async def test_a_limit_has_a_bound(make_store: MakeStore) -> None:
    """It is refused, not clamped."""
    with pytest.raises(LimitExceededError):
        await make_store(embedder=Words()).embed_pending(limit=limits.EMBED_MESSAGES_MAX + 1)


async def test_without_an_embedder_there_is_nobody_to_do_it(store: ContextStore) -> None:
    """The sentence says what to set."""
    with pytest.raises(InvalidInputError, match="PGCONTEXT_EMBEDDER"):
        await store.embed_pending()


async def test_many_at_once_embed_each_message_once(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Eight workers over two stores share the work, and none does another's."""
    embedder = Words(seconds=0.01)
    stores = [make_store(embedder=embedder) for _ in range(2)]
    await owe(stores[0], users(200))

    async def work(store: ContextStore) -> int:
        done = 0
        while filled := await store.embed_pending(limit=7):
            done += filled
        return done

    done = await asyncio.gather(*(work(stores[number % 2]) for number in range(8)))
    assert sum(done) == 200
    assert sum(count > 0 for count in done) > 1
    texts = list(chain(*embedder.asked))
    assert len(texts) == len(set(texts)) == 200
    assert await owed(connection) == []


async def test_no_connection_is_held_while_embedding(make_store: MakeStore) -> None:
    """With a single connection, others read and write while an embedder takes its time."""
    embedder = Waiting()
    store = make_store(embedder=embedder, pool_size=1, acquire_seconds=5.0)
    context_id = await owe(store, user("a"))
    embedding = asyncio.create_task(store.embed_pending())
    await embedder.begun.wait()
    await store.append(context_id, user("b"), embed=False)
    assert contents(await store.history(context_id)) == ["a", "b"]
    embedder.go_on.set()
    assert await embedding == 1


async def test_a_claim_that_ran_out_is_another_workers(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Who is held up beyond its claim loses nothing: the first vector that comes is written."""
    embedder = Waiting("slow")
    slow = make_store(embedder=embedder)
    quick = make_store(embedder=Words("quick"))
    context_id = await owe(slow, users(3))
    working = asyncio.create_task(slow.embed_pending())
    await embedder.begun.wait()
    assert await quick.embed_pending() == 0
    await ripen(connection)
    assert await quick.embed_pending(limit=2) == 2
    embedder.go_on.set()
    assert await working == 1
    models = [message.embedding_model for message in await quick.history(context_id)]
    assert sorted(filter(None, models)) == ["quick", "quick", "slow"]


async def test_a_worker_stops_before_its_claim_ends(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Also where it waits long for a single message: it gives back what is still its own."""
    embedder = Words(seconds=60)
    store = make_store(embedder=embedder, claim_seconds=5.0, embedding_seconds=30.0)
    await owe(store, users(3))
    loop = asyncio.get_running_loop()
    async with connection.transaction():  # holds up the claim itself
        await connection.execute("LOCK TABLE messages IN EXCLUSIVE MODE")
        begun = loop.time()
        working = asyncio.create_task(store.embed_pending())
        await asyncio.sleep(0.5)
    with pytest.raises(EmbeddingError, match=r"did not answer within [1-4]\.\d s"):
        await working
    assert loop.time() - begun < 5.0
    assert len(embedder.asked) == 1
    assert 50 < await seconds_until_due(connection) <= 60


async def test_who_lost_its_claim_gives_nothing_back(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """The messages are another worker's then: a third would embed and pay for them again."""

    def fail() -> None:
        raise ConnectionError

    first, second = Waiting(), Waiting()
    first.before = fail
    slow, quick = make_store(embedder=first), make_store(embedder=second)
    await owe(slow, users(3))
    failing = asyncio.create_task(slow.embed_pending())
    await first.begun.wait()
    await ripen(connection)
    working = asyncio.create_task(quick.embed_pending())
    await second.begun.wait()
    first.go_on.set()
    with pytest.raises(EmbeddingError):
        await failing
    assert await seconds_until_due(connection) > 250
    second.go_on.set()
    assert await working == 3


async def test_what_is_erased_while_it_is_embedded_stays_erased(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """No vector comes back to a message that was forgotten meanwhile."""
    embedder = Waiting()
    store = make_store(embedder=embedder)
    context_id = await owe(store, [user("forget"), user("keep")])
    embedding = asyncio.create_task(store.embed_pending())
    await embedder.begun.wait()
    await store.erase(context_id, 1)
    embedder.go_on.set()
    assert await embedding == 1
    rows = await connection.fetch("SELECT embedding IS NULL AS bare FROM messages ORDER BY version")
    assert [row["bare"] for row in rows] == [True, False]


@pytest.mark.parametrize("place", [0, 1, 6, 18, 19])
async def test_a_text_that_is_always_refused_holds_up_no_other(
    make_store: MakeStore,
    connection: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    place: int,
) -> None:
    """It is found by halving the batch, is put off, and the log doesn't say what it is."""
    batch = users(20)
    batch[place] = user("poison")
    embedder = Words(refuses={"poison"})
    store = make_store(embedder=embedder)
    await owe(store, batch)
    assert await store.embed_pending() == 19
    assert await owed(connection) == ["poison"]
    assert len(embedder.asked) <= 2 * 5 + 1
    assert await store.embed_pending() == 0
    assert await seconds_until_due(connection) > 250
    assert "refused messages: 1" in caplog.text
    assert "poison" not in caplog.text


class Choking(Words):
    """A server that fails, as if it passed, wherever there is a certain text."""

    async def embed(self, texts: list[str]) -> list[list[float]]:
        if "poison" in texts:
            self.asked.append(texts)
            raise EmbeddingError("The server answered 500.", retryable=True, status=500)
        return await super().embed(texts)


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_a_text_that_a_server_chokes_on_holds_up_no_other(
    make_store: MakeStore, connection: asyncpg.Connection, place: int
) -> None:
    """Its failure looks like one that passes, but others are embedded: so it is put off alone."""
    batch = users(20)
    batch[place] = user("poison")
    embedder = Choking()
    store = make_store(embedder=embedder)
    await owe(store, batch)
    assert await store.embed_pending() == 19
    assert await owed(connection) == ["poison"]
    assert len(embedder.asked) <= 1 + 5 * 4


async def test_texts_that_a_server_chokes_on_do_not_hold_up_those_between_them(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """It may take them for a server that is away, but not each time."""
    store = make_store(embedder=Choking())
    await owe(store, [user("poison"), *users(3), user("poison")])
    for _ in range(20):  # it is taken so in one of ten
        await ripen(connection)
        with suppress(EmbeddingError):
            await store.embed_pending()
    assert await owed(connection) == ["poison", "poison"]


async def test_a_text_that_a_server_chokes_on_alone_is_tried_ever_more_seldom(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """It may be the server's fault, so it is an error; but no schedule asks each minute."""
    store = make_store(embedder=Choking())
    await owe(store, user("poison"))
    for age, expected in (("1 minute", 300), ("1 hour", 3_600), ("30 days", 86_400)):
        await connection.execute(
            "UPDATE messages SET embed_after = now(), created_at = now() - $1::text::interval", age
        )
        with pytest.raises(EmbeddingError, match="500"):
            await store.embed_pending()
        assert await seconds_until_due(connection) == pytest.approx(expected, abs=5)


async def test_texts_that_a_server_chokes_on_get_out_of_the_way(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """However many there are, each run asks for fewer of them, and comes to those behind."""
    embedder = Choking()
    store = make_store(embedder=embedder)
    await owe(store, [user("poison")] * 23)
    await owe(store, user("apples"))
    runs = 0
    while "apples" in await owed(connection):
        runs += 1
        with suppress(EmbeddingError):
            await store.embed_pending()
        await connection.execute(  # what is due in a minute is due now, what is later isn't
            "UPDATE messages SET embed_after = now() WHERE embed_after < now() + interval '2 min'"
        )
    assert runs <= 23 / limits.EMBED_REFUSED_MESSAGES_MAX + 1
    assert await owed(connection) == ["poison"] * 23
    assert len(embedder.asked) <= runs * (1 + limits.EMBED_REFUSED_MESSAGES_MAX) + 10


async def test_any_number_of_refused_texts_hold_up_no_other(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """However many there are in a row, a text that nobody refuses shows that it's about them."""
    store = make_store(embedder=Words(refuses={"poison"}))
    await owe(store, [user("poison")] * 250)
    await owe(store, users(30))
    assert await store.embed_pending(limit=100) == 30
    assert await owed(connection) == ["poison"] * 250
    assert await seconds_until_due(connection) > 250


async def test_a_greeting_is_sent_once_for_a_batch(make_store: MakeStore) -> None:
    """A larger part that fails right after it says nothing new, and each costs."""
    embedder = Words(refuses={"poison"})
    store = make_store(embedder=embedder)
    await owe(store, [user("poison")] * limits.EMBED_REFUSED_MESSAGES_MAX * 2)
    assert await store.embed_pending() == 0
    assert embedder.asked.count(["Hello"]) == 1


async def test_texts_are_not_to_blame_where_a_greeting_is_refused_too(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Whatever their age, they are due again in a minute, like all that was not tried."""
    store = make_store(embedder=Words(refuses={"poison", "Hello"}))
    await owe(store, [user("poison")] * limits.EMBED_REFUSED_MESSAGES_MAX * 2)
    await connection.execute("UPDATE messages SET created_at = now() - interval '30 days'")
    with pytest.raises(EmbeddingError):
        await store.embed_pending()
    latest = await connection.fetchval("SELECT max(embed_after) - now() FROM messages")
    assert latest <= timedelta(seconds=limits.EMBED_RETRY_SECONDS)


async def test_a_server_that_is_away_is_no_texts_fault(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Old messages too are due again in a minute, since nothing says that they are to blame."""
    embedder = Words()
    embedder.before = fail_to_connect
    store = make_store(embedder=embedder)
    await owe(store, users(3))
    await connection.execute("UPDATE messages SET created_at = now() - interval '30 days'")
    with pytest.raises(EmbeddingError):
        await store.embed_pending()
    latest = await connection.fetchval("SELECT max(embed_after) - now() FROM messages")
    assert latest <= timedelta(seconds=limits.EMBED_RETRY_SECONDS)


@pytest.mark.parametrize("blank", [" ", "\n\t \r", "\u00a0\u3000", ""], ids=repr)
async def test_a_blank_owes_no_embedding_any_more(
    make_store: MakeStore, connection: asyncpg.Connection, blank: str
) -> None:
    """Marked by whatever past, it is neither sent nor kept for ever, and counts for nothing."""
    embedder = Words()
    store = make_store(embedder=embedder)
    await owe(store, users(2))
    await connection.execute("UPDATE messages SET content = $1 WHERE version = 1", blank)
    assert await store.embed_pending(limit=1) + await store.embed_pending() == 1
    assert await owed(connection) == []
    assert embedder.asked == [["message 2"]]
    row = await connection.fetchrow(
        "SELECT embedding, embedding_model FROM messages ORDER BY version"
    )
    assert row is not None
    assert tuple(row) == (None, None)


async def test_a_text_that_a_server_makes_no_numbers_of_holds_up_no_other(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Servers write null where the model's arithmetic broke down: that is about one text."""
    batch = users(20)
    batch[7] = user("poison")

    class Broken(Words):
        async def embed(self, texts: list[str]) -> list[list[float]]:
            rows = [
                {
                    "index": place,
                    "embedding": [None] * DIMENSIONS if text == "poison" else self.vector(text),
                }
                for place, text in enumerate(texts)
            ]
            content = json.dumps({"data": rows}).encode()
            return answers.vectors("The server", content, len(texts), None)

    store = make_store(embedder=Broken())
    await owe(store, batch)
    assert await store.embed_pending() == 19
    assert await owed(connection) == ["poison"]


async def test_a_server_that_goes_away_in_the_middle_is_seen(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """What it embedded before is kept, and the rest is due again in a minute."""
    embedder = Words(refuses={"poison"})
    store = make_store(embedder=embedder)
    await owe(store, [user("poison"), *users(39)])

    def go_away() -> None:
        if len(embedder.asked) > 7:
            fail_to_connect()

    embedder.before = go_away
    filled = await store.embed_pending()
    assert 0 < filled < 39
    assert len(embedder.asked) <= 7 + 3 + limits.EMBED_FAILURES_COUNT_MAX
    assert 50 < await seconds_until_due(connection) <= 60
    embedder.before = lambda: None
    await ripen(connection)
    assert await store.embed_pending() == 39 - filled


async def test_what_is_refused_is_tried_ever_more_seldom(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Again after as long as it has existed, and once a day at least."""
    store = make_store(embedder=Words(refuses={"poison"}))
    await owe(store, user("poison"))
    for age, expected in (("1 hour", 3_600), ("10 hours", 36_000), ("30 days", 86_400)):
        await connection.execute(
            "UPDATE messages SET embed_after = now(), created_at = now() - $1::text::interval", age
        )
        assert await store.embed_pending() == 0
        assert await seconds_until_due(connection) == pytest.approx(expected, abs=5)


def refuse_everything() -> None:
    raise RuntimeError("secret words in the service's answer")


def fail_to_connect() -> None:
    raise ConnectionError("secret words of the network")


@pytest.mark.parametrize(("failure", "calls_max"), [(refuse_everything, 16), (fail_to_connect, 3)])
async def test_an_embedder_that_fails_altogether_is_not_asked_for_each_text(
    make_store: MakeStore,
    connection: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    failure: Callable[[], None],
    calls_max: int,
) -> None:
    """A few tries show it; its error is raised, and the messages wait a minute, not for ever."""
    embedder = Words()
    embedder.before = failure
    store = make_store(embedder=embedder)
    await owe(store, users(100))
    with pytest.raises(EmbeddingError):
        await store.embed_pending()
    assert len(embedder.asked) <= calls_max
    assert 50 < await seconds_until_due(connection) <= 60
    assert await store.embed_pending() == 0
    embedder.before = lambda: None
    await ripen(connection)
    assert await store.embed_pending() == 100
    assert "secret" not in caplog.text


async def test_what_was_done_before_a_failure_counts(make_store: MakeStore) -> None:
    """The call says how many it filled; the next one meets the failure."""
    embedder = Words()
    store = make_store(embedder=embedder)
    await owe(store, users(limits.EMBED_BATCH_MESSAGES_MAX * 2 + 5))

    def fail_from_the_second_on() -> None:
        if len(embedder.asked) > 1:
            fail_to_connect()

    embedder.before = fail_from_the_second_on
    assert await store.embed_pending(limit=1_000) == limits.EMBED_BATCH_MESSAGES_MAX
    with pytest.raises(EmbeddingError):
        await store.embed_pending(limit=1_000)


async def test_vectors_of_another_length_are_refused(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """One call shows it, and the sentence says both lengths; nothing is written or lost."""
    embedder = Words(dimensions=DIMENSIONS + 1)
    store = make_store(embedder=embedder)
    await owe(store, users(50))
    with pytest.raises(EmbeddingError, match=str(DIMENSIONS + 1)):
        await store.embed_pending()
    assert len(embedder.asked) == 1
    assert len(await owed(connection)) == 50


async def test_who_is_interrupted_gives_the_claim_back(make_store: MakeStore) -> None:
    """A worker that is cancelled while it embeds leaves its messages to the next one at once."""
    slow = make_store(embedder=Words(seconds=60))
    await owe(slow, users(3))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow.embed_pending(), 0.2)
    assert await make_store(embedder=Words()).embed_pending() == 3


async def test_what_is_hidden_is_embedded_too(make_store: MakeStore) -> None:
    """Restored later, deleted messages and contexts are found like any other."""
    embedder = Words()
    store = make_store(embedder=embedder)
    context_id = await owe(store, [user("a"), user("b")])
    await store.delete_messages(context_id, 1)
    await store.delete(context_id)
    assert await store.embed_pending() == 2
    await store.restore(context_id)
    await store.restore_messages(context_id, 1)
    for scope in (context_id, None):
        hits = await store.search(embedder.vector("a"), context_id=scope)
        assert hits[0].message.content == "a"


async def test_copies_made_by_a_merge_are_owed_as_well(make_store: MakeStore) -> None:
    """A merged message whose embedding was owed gets one, as its original does."""
    embedder = Words()
    store = make_store(embedder=embedder)
    parent_id = await owe(store, user("a"))
    fork = await store.fork(parent_id)
    await store.append(fork.id, user("b"), embed="later")
    await store.merge(fork.id, into=parent_id)
    assert await store.embed_pending() == 3
    hits = await store.search(embedder.vector("b"), context_id=parent_id)
    assert hits[0].message.content == "b"


async def test_each_tenant_pays_for_itself(make_store: MakeStore) -> None:
    """What another tenant owes is not embedded."""
    store = make_store(embedder=Words())
    other = store.for_tenant(UUID(int=7))
    await owe(other, user("theirs"))
    assert await store.embed_pending() == 0
    assert await other.embed_pending() == 1


async def test_what_failed_at_the_append_is_embedded_later(make_store: MakeStore) -> None:
    """The embedder was away for a moment; nothing has to be marked by hand."""
    embedder = Words()
    store = make_store(embedder=embedder)
    embedder.before = fail_to_connect
    context = await store.create()
    (message,) = await store.append(context.id, user("a"))
    assert message.embedding_pending
    embedder.before = lambda: None
    assert await store.embed_pending() == 1


async def test_the_log_says_when_embedding_fails(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With how many messages, but nothing of what the failure said."""
    caplog.set_level(logging.WARNING)
    embedder = Words()
    embedder.before = fail_to_connect
    store = make_store(embedder=embedder)
    await owe(store, users(4))
    with pytest.raises(EmbeddingError):
        await store.embed_pending()
    assert "embedding failed; messages for later: 4" in caplog.text
