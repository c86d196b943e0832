import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from pgcontext import ContextStore, EmbeddingError, InvalidInputError, limits
from pgcontext.moving import Moved, Moving, Owed
from pgcontext.statements.embedding import MEANING
from tests.support.chats import axis, call, user, users
from tests.support.embedders import Words

MakeStore = Callable[..., ContextStore]
MODELS = "SELECT embedding_model, count(*) FROM messages WHERE embedding IS NOT NULL GROUP BY 1"


async def embedded(store: ContextStore, count: int) -> UUID:
    """Make a context with messages that the store's embedder has embedded."""
    context = await store.create()
    for start in range(1, count + 1, 1_000):
        await store.append(context.id, users(min(1_000, count + 1 - start), start))
    return context.id


async def models(connection: asyncpg.Connection) -> dict[str | None, int]:
    """How many embeddings there are of each model."""
    return {row[0]: row[1] for row in await connection.fetch(MODELS)}


async def found(store: ContextStore, text: str, **filters: Any) -> list[str | None]:
    """What a search by meaning finds at no distance."""
    hits = await store.search(text, mode="vector", max_distance=0.001, **filters)
    return [hit.message.content for hit in hits]


async def test_what_another_model_embedded_is_embedded_anew(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """All of it, also what is hidden; by the new model it is found, by the old no more."""
    old, new = make_store(embedder=Words("old")), make_store(embedder=Words("new"))
    context_id = await embedded(old, 5)
    await old.delete_messages(context_id, [2])
    assert await found(new, "message 1", context_id=context_id) == []
    assert await Moving.of(new).count() == 5
    assert await Moving.of(new).run() == Moved(5, 0)
    assert await models(connection) == {"new": 5}
    assert await found(new, "message 1", context_id=context_id) == ["message 1"]
    assert await found(old, "message 1", context_id=context_id) == []
    await old.restore_messages(context_id, [2])
    assert await found(new, "message 2") == ["message 2"]


async def test_a_second_run_has_nothing_to_do(make_store: MakeStore) -> None:
    """What is moved is not embedded again."""
    embedder = Words("new")
    await embedded(make_store(embedder=Words("old")), 3)
    moving = Moving.of(make_store(embedder=embedder))
    assert await moving.run() == Moved(3, 0)
    asked = len(embedder.asked)
    assert (await moving.count(), await moving.run()) == (0, Moved(0, 0))
    assert len(embedder.asked) == asked


async def test_embeddings_without_a_model_are_moved_only_when_asked_for(
    make_store: MakeStore, store: ContextStore, connection: asyncpg.Connection
) -> None:
    """The caller gave them; nobody but the caller knows what made them."""
    context = await store.create()
    await store.append(context.id, user("mine", embedding=axis(0)))
    moving = Moving.of(make_store(embedder=Words("new")))
    assert (await moving.count(), await moving.run()) == (0, Moved(0, 0))
    assert await models(connection) == {None: 1}
    assert await moving.count(unnamed=True) == 1
    assert await moving.run(unnamed=True) == Moved(1, 0)
    assert await models(connection) == {"new": 1}


async def test_what_has_no_embedding_or_no_text_stays_as_it_is(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """What is owed waits for `embed_pending`; a vector that can't be made anew is kept."""
    old = make_store(embedder=Words("old"))
    context = await old.create()
    await old.append(context.id, user("never"), embed=False)
    await old.append(context.id, user("later"), embed="later")
    given = call("c", embedding=axis(1), embedding_model="old")
    blanks = [
        user(blank, embedding=axis(2), embedding_model="old")
        for blank in ("", " ", "\n\n", "\u00a0", "\u2003\t", " " * 1_000)
    ]
    await old.append(context.id, [given, *blanks])
    moving = Moving.of(make_store(embedder=Words("new")))
    assert (await moving.count(unnamed=True), await moving.run(unnamed=True)) == (0, Moved(0, 0))
    assert await models(connection) == {"old": 7}
    assert (await moving.owed()).due == 1


async def test_a_text_that_begins_with_blanks_is_moved(make_store: MakeStore) -> None:
    """Only what is nothing but blanks stays."""
    old = make_store(embedder=Words("old"))
    context = await old.create()
    await old.append(context.id, [user("\n\u00a0 a"), user(" " * 5_000 + "b")])
    moving = Moving.of(make_store(embedder=Words("new")))
    assert (await moving.count(), await moving.run()) == (2, Moved(2, 0))


async def test_the_database_knows_the_same_blanks(connection: asyncpg.Connection) -> None:
    """Each character is one for SQL if it is one for Python."""
    rows = await connection.fetch(
        "SELECT i, chr(i) !~ $1 AS is_blank FROM generate_series(1, 65535) AS i "
        "WHERE i NOT BETWEEN 55296 AND 57343",
        MEANING,
    )
    blanks = [row["i"] for row in rows if row["is_blank"]]
    assert blanks == [row["i"] for row in rows if chr(row["i"]).isspace()]


async def test_search_works_at_every_step_of_a_move(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By vector each message is found by one of the two models; by words by both, at any moment."""
    monkeypatch.setattr(limits, "EMBED_BATCH_MESSAGES_MAX", 2)
    old, new = make_store(embedder=Words("old")), make_store(embedder=Words("new"))
    context_id = await embedded(old, 5)
    texts = [f"message {number}" for number in range(1, 6)]
    seen: list[tuple[int, int]] = []

    class Looking(Words):
        async def embed(self, texts_now: list[str]) -> list[list[float]]:
            await look()
            return await super().embed(texts_now)

    async def look() -> None:
        for scope in (context_id, None):
            by_old = [text for text in texts if await found(old, text, context_id=scope)]
            by_new = [text for text in texts if await found(new, text, context_id=scope)]
            assert sorted(by_old + by_new) == texts
            for store in (old, new):
                hits = await store.search("message", context_id=scope, mode="text")
                assert len(hits) == 5
            seen.append((len(by_old), len(by_new)))

    moving = Moving.of(make_store(embedder=Looking("new")))
    reported: list[int] = []
    assert await moving.run(report=lambda moved: reported.append(moved.messages)) == Moved(5, 0)
    await look()
    assert sorted(set(seen)) == [(0, 5), (1, 4), (3, 2), (5, 0)]
    assert reported == [2, 4, 5]


async def test_a_move_looks_at_a_bounded_number_of_messages_at_once(
    make_store: MakeStore, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few of many are to be moved, it goes on by key; long texts come a few at a time."""
    monkeypatch.setattr(limits, "EMBED_LOOKED_AT_MESSAGES_MAX", 7)
    monkeypatch.setattr(limits, "EMBED_BATCH_BYTES_MAX", 15)
    old, embedder = make_store(embedder=Words("old")), Words("new")
    new = make_store(embedder=embedder)
    for _ in range(3):
        await new.append((await new.create()).id, users(20))
        await embedded(old, 4)
    embedder.asked.clear()
    assert await Moving.of(new).run() == Moved(12, 0)
    assert await models(connection) == {"new": 72}
    assert len(list(chain(*embedder.asked))) == 12
    assert max(map(len, embedder.asked)) == 2


async def test_what_the_new_model_refuses_keeps_the_old_vector(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """It is counted, the others are moved, and nothing is ever without a vector."""
    await embedded(make_store(embedder=Words("old")), 9)
    new = make_store(embedder=Words("new", refuses={"message 4"}))
    assert await Moving.of(new).run() == Moved(8, 1)
    assert await models(connection) == {"new": 8, "old": 1}


async def test_any_number_of_refused_texts_hold_up_no_move(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """They keep the old vector and are counted, also when nothing else is left to move."""
    old = make_store(embedder=Words("old"))
    context = await old.create()
    await old.append(context.id, [user("poison")] * 210)
    await old.append(context.id, users(20))
    moving = Moving.of(make_store(embedder=Words("new", refuses={"poison"})))
    assert await moving.run() == Moved(20, 210)
    assert await moving.run() == Moved(0, 210)
    assert await models(connection) == {"old": 210, "new": 20}


async def test_a_failing_embedder_stops_the_move_and_the_next_goes_on(
    make_store: MakeStore, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was moved stays moved, and is reported; the error is the embedder's."""
    monkeypatch.setattr(limits, "EMBED_BATCH_MESSAGES_MAX", 3)
    await embedded(make_store(embedder=Words("old")), 10)
    embedder = Words("new")

    def fail_from_the_third_on() -> None:
        if len(embedder.asked) >= 3:
            raise ConnectionError

    embedder.before = fail_from_the_third_on
    moving = Moving.of(make_store(embedder=embedder))
    reported: list[int] = []
    with pytest.raises(EmbeddingError):
        await moving.run(report=lambda moved: reported.append(moved.messages))
    assert reported[-1] == 6
    assert await models(connection) == {"new": 6, "old": 4}
    embedder.before = lambda: None
    assert await moving.run() == Moved(4, 0)


async def test_two_at_once_write_each_message_once(
    make_store: MakeStore, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one has moved, the other leaves alone."""
    monkeypatch.setattr(limits, "EMBED_BATCH_MESSAGES_MAX", 5)
    await embedded(make_store(embedder=Words("old")), 50)
    stores = [make_store(embedder=Words("new", seconds=0.001 * pace)) for pace in (1, 3)]
    moved = await asyncio.gather(*(Moving.of(store).run() for store in stores))
    assert sum(each.messages for each in moved) == 50
    assert await models(connection) == {"new": 50}


async def test_what_is_erased_meanwhile_stays_erased(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """No vector comes back to a message that was forgotten while it was embedded."""
    old = make_store(embedder=Words("old"))
    context_id = await embedded(old, 3)

    class Erasing(Words):
        async def embed(self, texts: list[str]) -> list[list[float]]:
            await old.erase(context_id, 2)
            return await super().embed(texts)

    assert await Moving.of(make_store(embedder=Erasing("new"))).run() == Moved(2, 0)
    assert await models(connection) == {"new": 2}


async def test_a_move_stays_with_its_tenant(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """Another tenant's embeddings stay what they are."""
    await embedded(make_store(embedder=Words("old"), tenant_id=UUID(int=7)), 2)
    moving = Moving.of(make_store(embedder=Words("new")))
    assert (await moving.count(), await moving.run()) == (0, Moved(0, 0))
    assert await models(connection) == {"old": 2}


async def test_a_move_needs_an_embedder(store: ContextStore) -> None:
    """It is the one to move to."""
    with pytest.raises(InvalidInputError, match="no embedder"):
        await Moving.of(store).run()


WORKER = Path(__file__).parents[1] / "support" / "embedding_worker.py"


async def start(url: str, *arguments: str) -> asyncio.subprocess.Process:
    """Start a process that embeds, and wait until it does."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        WORKER,
        *arguments,
        env=os.environ | {"DATABASE_URL": url, "PYTHONPATH": str(WORKER.parents[2])},
        stdout=asyncio.subprocess.PIPE,
    )


async def lines(process: asyncio.subprocess.Process, count: int) -> list[list[str]]:
    """The texts of the next calls of a process's embedder."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return [json.loads(await process.stdout.readline()) for _ in range(count)]


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process at once, as the kernel would."""
    process.send_signal(signal.SIGKILL)
    await process.communicate()


async def test_a_move_that_is_killed_goes_on_where_it_stopped(
    make_store: MakeStore, connection: asyncpg.Connection, database_url: str
) -> None:
    """Killed in the middle: each message has one of the two vectors; the next run does the rest."""
    old, embedder = make_store(embedder=Words("old")), Words("new")
    new = make_store(embedder=embedder)
    await embedded(old, 50)
    process = await start(database_url, "move", "new", "0.05")
    await lines(process, 3)
    await kill(process)
    left = await models(connection)
    assert left["old"] + left["new"] == 50
    assert 10 <= left["new"] <= 20
    for text in ("message 1", "message 50"):
        assert len(await found(old, text) + await found(new, text)) == 1
    asked = sum(map(len, embedder.asked))
    assert await Moving.of(new).run() == Moved(left["old"], 0)
    assert sum(map(len, embedder.asked)) - asked == left["old"]
    assert await models(connection) == {"new": 50}


async def test_a_worker_that_is_killed_loses_its_claim(
    make_store: MakeStore, connection: asyncpg.Connection, database_url: str
) -> None:
    """Another finishes what it had claimed, as soon as the claim has run out, and not before."""
    embedder = Words("new")
    store = make_store(embedder=embedder)
    context = await store.create()
    await store.append(context.id, users(20), embed="later")
    process = await start(database_url, "embed", "new", "60", "4")
    [claimed] = await lines(process, 1)
    await kill(process)
    assert len(claimed) == 5
    assert await store.embed_pending() == 15
    assert await store.embed_pending() == 0
    assert await Moving.of(store).owed() == Owed(0, 5)
    await asyncio.sleep(4)
    assert await store.embed_pending() == 5
    assert await models(connection) == {"new": 20}
    texts = list(chain(*embedder.asked))
    assert len(texts) == len(set(texts)) == 20


async def test_processes_share_what_is_owed(
    make_store: MakeStore, connection: asyncpg.Connection, database_url: str
) -> None:
    """Three processes at once embed each message once."""
    store = make_store(embedder=Words())
    context = await store.create()
    await store.append(context.id, users(90), embed="later")
    processes = [await start(database_url, "embed", "new", "0.01") for _ in range(3)]
    outputs = [await process.communicate() for process in processes]
    asked = [json.loads(line) for out, _ in outputs for line in out.splitlines()]
    assert sorted(chain(*asked)) == sorted(f"message {number}" for number in range(1, 91))
    assert await models(connection) == {"new": 90}
