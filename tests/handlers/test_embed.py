from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from handlers.embed import embed, handler
from pgcontext import ContextStore, EmbeddingError, InvalidInputError, limits
from tests.support import DIMENSIONS
from tests.support.chats import users
from tests.support.embedders import Words
from tests.support.embedding_server import EmbeddingServer
from tests.support.migrations import execute, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = Path(__file__).parents[2] / "handlers" / "embed.py"


async def owe(store: ContextStore, count: int) -> None:
    """Append messages whose embeddings are left for later."""
    context = await store.create()
    await store.append(context.id, users(count), embed="later")


async def owed_by_one(url: str, count: int) -> None:
    """The same for a store that is gone afterwards."""
    async with ContextStore.from_env(url=url, embedder="none") as store:
        await owe(store, count)


@pytest.fixture
def job(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's environment: the test's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)


async def test_the_job_goes_on_until_nothing_is_due(
    make_store: Callable[..., ContextStore],
) -> None:
    """Over as many batches as it takes; the second time there is nothing."""
    store = make_store(embedder=Words())
    await owe(store, 450)
    assert await embed(store) == {"messages": 450}
    assert await embed(store) == {"messages": 0}


async def test_only_the_named_tenants_are_served_in_turns(
    make_store: Callable[..., ContextStore],
) -> None:
    """The job keeps to the tenants of its event, and none waits for all of another's."""
    embedder = Words()
    store = make_store(embedder=embedder)
    one, other = uuid4(), uuid4()
    for tenant, count in ((one, 401), (other, 3), (store.tenant_id, 2)):
        await owe(store.for_tenant(tenant), count)
    assert await embed(store, [str(one), str(other)]) == {"messages": 404}
    assert [len(texts) for texts in embedder.asked] == [200, 3, 200, 1]
    assert await embed(store) == {"messages": 2}


async def test_no_batch_is_begun_when_the_time_is_over(
    make_store: Callable[..., ContextStore],
) -> None:
    """What is left, the next run finds."""
    embedder = Words(seconds=0.6)
    store = make_store(embedder=embedder)
    await owe(store, 1_000)
    assert await embed(store, seconds=0) == {"messages": 0}
    done = (await embed(store, seconds=3.0))["messages"]
    assert 200 <= done <= 600
    embedder.seconds = 0
    assert await embed(store) == {"messages": 1_000 - done}


async def test_a_failing_embedder_fails_the_job(make_store: Callable[..., ContextStore]) -> None:
    """So that whoever watches the schedule sees it."""

    def fail() -> None:
        raise ConnectionError

    embedder = Words()
    embedder.before = fail
    store = make_store(embedder=embedder)
    await owe(store, 1)
    with pytest.raises(EmbeddingError):
        await embed(store)


async def test_a_tenant_that_fails_holds_up_no_other(
    make_store: Callable[..., ContextStore],
) -> None:
    """One whose only text is always choked on fails at each run; the others are served first."""

    class Choking(Words):
        async def embed(self, texts: list[str]) -> list[list[float]]:
            if len(texts) == 1:
                raise EmbeddingError("The server answered 500.", retryable=True, status=500)
            return await super().embed(texts)

    store = make_store(embedder=Choking())
    one, other = store.for_tenant(uuid4()), store.for_tenant(uuid4())
    await owe(one, 1)
    await owe(other, 3)
    with pytest.raises(EmbeddingError, match="500"):
        await embed(store, [str(one.tenant_id), str(other.tenant_id)])
    assert await other.embed_pending() == 0
    assert len(await other.search([1.0] * DIMENSIONS)) == 3


class Invocation:
    """What Lambda says about the time."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


@pytest.mark.usefixtures("job")
def test_the_function_ends_in_time_whatever_the_server_does(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It isn't stopped in the middle: it fails by itself, and what it claimed is due again soon."""
    with EmbeddingServer() as server:
        monkeypatch.setenv("PGCONTEXT_EMBEDDING_URL", server.url)
        monkeypatch.setenv("PGCONTEXT_EMBEDDING_MODEL", "small")
        due_in = f"SELECT max(embed_after) <= now() + '{limits.EMBED_RETRY_SECONDS} s' AS soon"
        asyncio.run(owed_by_one(database_url, 50))
        server.seconds = 60
        started = time.monotonic()
        with pytest.raises(EmbeddingError, match="did not answer"):
            handler({}, Invocation(3_000))
        assert time.monotonic() - started < 3
        [(soon,)] = fetch(database_url, f"{due_in} FROM messages")
        assert soon
        execute(database_url, "UPDATE messages SET embed_after = now()")
        server.seconds = 0.2
        assert handler({}, Invocation(10_000)) == {"messages": 50}


def test_the_function_needs_an_embedder_and_some_time(job: None) -> None:
    """Without the first it says so; without the second it doesn't begin."""
    event = {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": {}}
    for context in (None, Invocation(900_000)):
        with pytest.raises(InvalidInputError, match="embedder"):
            handler(event, context)
    assert handler(event, Invocation(300)) == {"messages": 0}
    with pytest.raises(InvalidInputError, match="tenant_id must be"):
        handler({"tenant_ids": ["somebody"]}, None)


def test_the_job_runs_from_a_shell(job: None) -> None:
    """What stands in its way is one sentence."""
    done = subprocess.run([sys.executable, JOB], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("There is no embedder")
    assert done.stderr.count("\n") == 1
