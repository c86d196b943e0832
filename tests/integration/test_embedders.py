"""The built-in embedders in the store: what is stored, found, said and loaded."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pgcontext import (
    CallableEmbedder,
    ConfigError,
    ContextStore,
    EmbeddingError,
    HttpEmbedder,
    LocalEmbedder,
    embedded,
    limits,
)
from pgcontext.embedding import local
from pgcontext.http import create_app
from pgcontext.pool import within
from tests.support import DIMENSIONS
from tests.support.asgi import Client
from tests.support.chats import axis, contents, user
from tests.support.cli import Cli
from tests.support.embedders import Words
from tests.support.embedding_server import EmbeddingServer, Reply, vector_of
from tests.support.modules import HEAVY, loaded_by, without_packages

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    import asyncpg

    MakeStore = Callable[..., ContextStore]

KEY = "sk-hunter2-0123456789"


@pytest.fixture
def api() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as running:
        yield running


@pytest.fixture
def environment_of_server(api: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody sets who embeds with a server."""
    api.key = KEY
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_URL", api.url)
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_KEY", KEY)
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_MODEL", "small")


# A server


@pytest.mark.usefixtures("environment_of_server")
async def test_three_variables_are_enough(make_store: MakeStore, api: EmbeddingServer) -> None:
    """Address, key and model: what is appended is embedded, and words are searched by meaning."""
    store = make_store()
    context = await store.create()
    messages = await store.append(context.id, [user("apples"), user("pears")])
    assert [message.embedding_model for message in messages] == ["small"] * 2
    [hit] = await store.search("plums", mode="vector", max_distance=0.5)
    assert hit.message.content == "pears"
    assert [request.texts for request in api.requests] == [["apples", "pears"], ["plums"]]
    assert "dimensions" not in api.requests[0].body


@pytest.mark.usefixtures("environment_of_server")
async def test_dimensions_are_sent_where_the_setting_says_so(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """The length that the database has is asked for."""
    store = make_store(embedding_send_dimensions=True)
    context = await store.create()
    await store.append(context.id, user("apples"))
    assert api.requests[0].body["dimensions"] == DIMENSIONS


@pytest.mark.usefixtures("environment_of_server")
async def test_a_store_closes_what_it_made(make_store: MakeStore) -> None:
    """Its own embedder's connections go with it; tenants share both."""
    store = make_store()
    other = store.for_tenant("00000000-0000-0000-0000-000000000001")
    assert other.embedder is store.embedder
    assert isinstance(store.embedder, HttpEmbedder)
    context = await store.create()
    await store.append(context.id, user("apples"))
    assert len(store.embedder._lines) == 1
    await other.aclose()
    assert len(store.embedder._lines) == 0


async def test_a_store_leaves_open_what_it_was_given(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """Others may use that embedder; whoever made it closes it."""
    async with HttpEmbedder("small", url=api.url) as given:
        store = make_store(embedder=given)
        assert store.settings.embedder == "none"
        context = await store.create()
        await store.append(context.id, user("apples"))
        await store.aclose()
        assert len(given._lines) == 1


REFUSING = [Reply(500)] * 9, [Reply(401)], [Reply(body={"data": []})]


@pytest.mark.usefixtures("environment_of_server")
@pytest.mark.parametrize("replies", REFUSING, ids=["busy", "no access", "useless"])
async def test_a_server_that_fails_loses_no_message(
    make_store: MakeStore,
    api: EmbeddingServer,
    replies: list[Reply],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is stored and says that its embedding is owed; appended again, it is there once."""
    caplog.set_level(logging.DEBUG)
    store = make_store(embedding_seconds=2.0)
    context = await store.create()
    for replayed in (False, True):
        api.replies.clear()
        api.replies.extend(replies)
        [message] = await store.append(context.id, user("secret words"), idempotency_key="once")
        assert (message.embedding_pending, message.embedding_model) == (True, None)
        assert message.replayed is replayed
    assert contents(await store.history(context.id)) == ["secret words"]
    assert "messages for later: 1" in caplog.text
    assert "secret" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.usefixtures("environment_of_server")
async def test_an_embedding_that_came_too_late_does_not_double_a_message(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """Stored without an embedding, the retry of the caller with one gets what is there."""
    store = make_store()
    context = await store.create()
    api.replies.append(Reply(401))
    [first] = await store.append(context.id, user("apples"), idempotency_key="once")
    [second] = await store.append(context.id, user("apples"), idempotency_key="once")
    assert (first.id, first.embedding_pending) == (second.id, True)
    assert (await store.get(context.id)).message_count == 1


@pytest.mark.usefixtures("environment_of_server")
async def test_a_query_that_cannot_be_embedded_is_an_error(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """Search has nothing to fall back on that was asked for; the error says whether it passes."""
    store = make_store(embedding_seconds=2.0)
    api.replies.append(Reply(403))
    with pytest.raises(EmbeddingError, match="HTTP 403"):
        await store.search("plums", mode="vector")
    api.replies.extend([Reply(503, headers={"Retry-After": "60"})])
    with pytest.raises(EmbeddingError, match="HTTP 503") as caught:
        await store.search("plums", mode="vector")
    assert caught.value.retryable


@pytest.mark.usefixtures("environment_of_server")
async def test_a_model_of_another_length_is_said_in_a_sentence(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Appended messages are kept; the log and the error of a search name the setting."""
    store = make_store(embedder=CallableEmbedder("wide", lambda texts: [[1.0] * 9] * len(texts)))
    context = await store.create()
    [message] = await store.append(context.id, user("apples"))
    assert message.embedding_pending
    expected = "9 dimensions, the database has 8 (PGCONTEXT_DIMENSIONS)"
    assert expected in caplog.text
    with pytest.raises(EmbeddingError) as caught:
        await store.search("plums", mode="vector")
    assert expected in str(caught.value)


@pytest.mark.usefixtures("environment_of_server")
async def test_no_connection_to_the_database_is_held_while_a_server_embeds(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """With one in all, appends wait for the server together and none for another."""
    api.seconds = 0.5
    store = make_store(pool_size=1, acquire_seconds=1.0)
    contexts = [await store.create() for _ in range(4)]
    started = time.monotonic()
    work = [store.append(context.id, user("apples")) for context in contexts]
    quick = store.append(contexts[0].id, user("quick"), embed=False)
    results = await asyncio.gather(*work, quick)
    assert time.monotonic() - started < 1.5
    assert not any(message.embedding_pending for messages in results for message in messages)
    assert results[-1][0].version == 1


@pytest.mark.usefixtures("environment_of_server")
async def test_an_embedder_that_never_answers_leaves_time_for_the_statement(
    make_store: MakeStore, api: EmbeddingServer
) -> None:
    """In a function whose time is short, the message is stored all the same."""
    api.seconds = 60
    store = make_store()
    context = await store.create()
    with within(2.0):
        [message] = await store.append(context.id, user("apples"))
    assert message.embedding_pending
    with within(1.0), pytest.raises(EmbeddingError) as caught:
        await store.search("apples", mode="vector")
    assert caught.value.retryable


async def test_an_embedder_of_yours_is_bounded_too(make_store: MakeStore) -> None:
    """One that never answers costs PGCONTEXT_EMBEDDING_SECONDS, and no message."""
    store = make_store(embedder=Words(seconds=60), embedding_seconds=0.1)
    context = await store.create()
    async with asyncio.timeout(5):
        [message] = await store.append(context.id, user("apples"))
        assert message.embedding_pending
        with pytest.raises(EmbeddingError, match=r"did not answer within 0\.1 s") as caught:
            await store.search("apples", mode="vector")
    assert caught.value.retryable


async def test_a_long_wait_is_written_out(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds read as a number, not as a power of ten."""
    loop = asyncio.get_running_loop()
    now = loop.time

    class Waiting(Words):
        async def embed(self, texts: list[str]) -> list[list[float]]:
            monkeypatch.setattr(loop, "time", lambda: now() + 2_000)
            await asyncio.sleep(60)
            return await super().embed(texts)

    store = make_store(embedder=Waiting(), embedding_seconds=1_000.0)
    with pytest.raises(EmbeddingError, match=r"within 1,000\.0 s"):
        await store.search("apples", mode="vector")
    monkeypatch.undo()


async def test_a_job_may_take_as_long_as_its_claim(make_store: MakeStore) -> None:
    """Nobody waits for it, so a model that is slow for a message at once is used for many later."""
    store = make_store(embedder=Words(seconds=0.3), embedding_seconds=0.1)
    context = await store.create()
    [message] = await store.append(context.id, user("apples"))
    assert message.embedding_pending
    assert await store.embed_pending() == 1


async def test_a_job_whose_time_is_short_gives_its_claim_back(
    make_store: MakeStore, connection: asyncpg.Connection
) -> None:
    """It tries nothing more when half the time is over: the other half is for the database."""
    embedder = Words(seconds=60)
    store = make_store(embedder=embedder)
    context = await store.create()
    await store.append(context.id, [user("a"), user("b"), user("c")], embed="later")
    with within(1.0), pytest.raises(EmbeddingError, match="did not answer within 0"):
        await store.embed_pending()
    assert len(embedder.asked) == 1
    due_in = await connection.fetchval("SELECT max(embed_after) - now() FROM messages")
    assert due_in <= timedelta(seconds=limits.EMBED_RETRY_SECONDS)


async def test_blanks_have_no_meaning(make_store: MakeStore, api: EmbeddingServer) -> None:
    """A message of blanks is never sent, and owes no embedding."""
    async with HttpEmbedder("small", url=api.url) as embedder:
        store = make_store(embedder=embedder)
        context = await store.create()
        blank, later = user(" \n\t"), user(" ")
        [message, other] = await store.append(context.id, [blank, user("apples")])
        [third] = await store.append(context.id, later, embed="later")
    assert [request.texts for request in api.requests] == [["apples"]]
    assert (message.embedding_pending, other.embedding_model) == (False, "small")
    assert not third.embedding_pending


@pytest.mark.parametrize(("reply", "passes"), [(Reply(401), False), (Reply(503), True)])
async def test_over_http_a_failed_query_is_a_problem_of_its_own(
    make_store: MakeStore, api: EmbeddingServer, reply: Reply, *, passes: bool
) -> None:
    """Its type is stable, and nothing of the embedding server is told to callers."""
    api.replies.extend([reply] * 9)
    async with HttpEmbedder("small", url=api.url, seconds=2) as embedder:
        caller = Client(create_app(make_store(embedder=embedder, auth="none")))
        answer = await caller("POST", "/v1/search", {"query": "plums", "mode": "vector"})
    assert (answer.status, answer.type) == (503, "embedding-failed")
    assert answer.value["retryable"] is passes
    assert "127.0.0.1" not in answer.body.decode()


def test_a_command_says_what_a_server_refused(
    api: EmbeddingServer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence and the exit code for what is away; neither key nor query in it."""
    cli = Cli(monkeypatch, database_url)
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_URL", api.url)
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_KEY", KEY)
    monkeypatch.setenv("PGCONTEXT_EMBEDDING_MODEL", "small")
    api.key = "another"
    result = cli("search", "secret words", "--mode", "vector")
    assert result.code == 6
    assert "HTTP 401" in result.err
    assert KEY not in result.err
    assert "secret" not in result.err


# Functions


async def test_a_plain_function_runs_in_a_thread_one_call_at_a_time() -> None:
    """The loop goes on meanwhile, and a model that isn't safe for threads is safe."""
    inside: list[int] = []
    threads = set()

    def encode(texts: list[str]) -> list[list[float]]:
        inside.append(1)
        assert len(inside) == 1
        threads.add(threading.get_ident())
        time.sleep(0.05)
        inside.pop()
        return [vector_of(text) for text in texts]

    embedder = CallableEmbedder("mine", encode)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    results = await asyncio.gather(*(embedder.embed(["a", "b"]) for _ in range(4)))
    ticking.cancel()
    assert results == [[vector_of("a"), vector_of("b")]] * 4
    assert threading.get_ident() not in threads
    assert ticks >= 5


async def test_who_waits_for_a_function_keeps_no_thread() -> None:
    """The loop's few threads look up host names too; who is cancelled while waiting never calls."""
    asked: list[str] = []
    go_on = threading.Event()

    def encode(texts: list[str]) -> list[list[float]]:
        asked.extend(texts)
        go_on.wait(10)
        return [vector_of(text) for text in texts]

    embedder = CallableEmbedder("mine", encode)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    waiting = [asyncio.create_task(embedder.embed([text])) for text in "abc"]
    try:
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "free") == "free"
        waiting.pop().cancel()
    finally:
        go_on.set()
    assert await asyncio.gather(*waiting) == [[vector_of("a")], [vector_of("b")]]
    assert asked == ["a", "b"]


async def test_a_coroutine_that_is_made_too_late_is_closed() -> None:
    """Where the loop has no thread left, that is after somebody gave up; it is never run."""
    go_on = threading.Event()
    made: Queue[Coroutine[Any, Any, list[list[float]]]] = Queue()

    def encode(texts: list[str]) -> Coroutine[Any, Any, list[list[float]]]:
        made.put(coroutine := _encode("p", texts))
        return coroutine

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    busy = asyncio.create_task(asyncio.to_thread(go_on.wait, 10))
    await asyncio.sleep(0.05)
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(CallableEmbedder("mine", encode).embed(["a"]), 0.05)
    finally:
        go_on.set()
    await busy
    coroutine = await asyncio.to_thread(made.get, timeout=5)
    await asyncio.sleep(0.05)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_a_function_that_hangs_takes_one_thread(make_store: MakeStore) -> None:
    """It can't be stopped, so the calls after it wait for their turn, and give up in time."""
    go_on = threading.Event()

    def hangs(texts: list[str]) -> list[list[float]]:
        go_on.wait(10)
        if "poison" in texts:
            raise LookupError(texts)
        return [vector_of(text) for text in texts]

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    store = make_store(embedder=CallableEmbedder("mine", hangs), embedding_seconds=0.1)
    context = await store.create()
    try:
        async with asyncio.timeout(5):
            for text in ("poison", "b", "c"):
                [message] = await store.append(context.id, user(text))
                assert message.embedding_pending
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        go_on.set()
    await asyncio.sleep(0.05)
    [message] = await store.append(context.id, user("apples"))
    assert message.embedding_model == "mine"


def test_a_function_is_used_from_many_loops_one_call_at_a_time() -> None:
    """Also from loops that come and go, as in functions."""
    inside: list[int] = []

    def encode(texts: list[str]) -> list[list[float]]:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.01)
        inside.pop()
        return [vector_of(text) for text in texts]

    embedder = CallableEmbedder("mine", encode)

    async def several() -> None:
        await asyncio.gather(*(embedder.embed(["a"]) for _ in range(3)))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(asyncio.run, several()) for _ in range(8)]:
            done.result()


async def _encode(prefix: str, texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    return [vector_of(prefix + text) for text in texts]


class _Encoder:
    async def __call__(self, texts: list[str]) -> list[list[float]]:
        return await _encode("p", texts)


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(_encode, "p"),
        _Encoder(),
        lambda texts: _encode("p", texts),
        lambda texts: [vector_of("p")] * len(texts),
        lambda texts: np.array([vector_of("p")] * len(texts), dtype="float32"),
        lambda texts: tuple(np.array(vector_of("p")) for _ in texts),
    ],
    ids=["coroutine function", "callable object", "lambda", "lists", "array", "arrays"],
)
async def test_any_function_is_an_embedder(make_store: MakeStore, function: Any) -> None:
    """Plain or not, lists or arrays: with a name for its model it plugs into the store."""
    store = make_store(embedder=CallableEmbedder("mine", function))
    context = await store.create()
    [message] = await store.append(context.id, user("apples"))
    assert message.embedding_model == "mine"
    [hit] = await store.search("anything", mode="vector")
    assert hit.distance == pytest.approx(0)


@pytest.mark.parametrize("model", ["", "m" * 257, "a\0b", "\udc80", None, 5, b"m"], ids=repr)
def test_an_embedder_needs_a_name_for_its_model(make_store: MakeStore, model: Any) -> None:
    """Vectors of different models are told apart by it; one that can't be kept is said at once."""
    with pytest.raises(ConfigError, match="name"):
        CallableEmbedder(model, lambda _: [])
    with pytest.raises(ConfigError, match="name"):
        HttpEmbedder(model, url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="name"):
        make_store(embedder=Words(model))


@pytest.mark.parametrize("embedder", [object(), print, "local"], ids=repr)
def test_what_is_no_embedder_is_refused(database_url: str, embedder: Any) -> None:
    """At once, with how to make one."""
    with pytest.raises(ConfigError, match="CallableEmbedder"):
        ContextStore(database_url, embedder=embedder)


async def test_what_a_function_raises_is_told_by_its_kind(make_store: MakeStore) -> None:
    """Its words may quote the text, so they stay with the cause."""

    def fails(texts: list[str]) -> list[list[float]]:
        raise LookupError(texts[0])

    store = make_store(embedder=CallableEmbedder("mine", fails))
    with pytest.raises(EmbeddingError, match="LookupError") as caught:
        await store.search("secret", mode="vector")
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)
    assert not caught.value.retryable


# The local model


async def test_the_local_model_knows_words_that_are_alike() -> None:
    """256 numbers of length 1, the same alone and in company, in another loop and another time."""
    texts = ["Where is the ferry?", "The boat leaves at noon.", "I like pizza with cheese."]
    vectors = np.array(await LocalEmbedder().embed(texts))
    assert (vectors.shape, vectors.dtype) == ((3, 256), np.dtype("float32"))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    ferry, boat, pizza = vectors
    assert ferry @ boat > ferry @ pizza + 0.1
    [alone] = await LocalEmbedder().embed(texts[:1])
    assert np.array_equal(alone, ferry)


async def test_the_local_model_takes_any_text() -> None:
    """Also what no language has, and what is longer than anybody reads."""
    texts = [" ", "\n", "\U0001f600", "𓀀", "\ufffd", "\x00", "a" * 1_000_000, "的" * 50_000]
    vectors = np.array(await LocalEmbedder().embed(texts))
    assert np.isfinite(vectors).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


async def test_the_local_model_is_used_from_many_threads_at_once() -> None:
    """It is loaded once, and gives each its own."""
    local._model.cache_clear()
    batches = [[f"number {n} of {m}" for n in range(20)] for m in range(8)]
    results = await asyncio.gather(*(LocalEmbedder().embed(batch) for batch in batches))
    assert local._model.cache_info().misses == 1
    for batch, result in zip(batches, results, strict=True):
        assert np.array_equal(np.array(result), np.array(await LocalEmbedder().embed(batch)))


async def test_loading_the_local_model_sets_up_nothing_else() -> None:
    """No logging of the process, no HTTP client, no package that wordllama would load."""
    loaded = loaded_by(
        "import asyncio, logging\n"
        "from pgcontext import LocalEmbedder\n"
        "asyncio.run(LocalEmbedder().embed(['a']))\n"
        "assert not logging.root.handlers"
    )
    assert loaded & HEAVY == {"numpy", "safetensors", "tokenizers"}
    assert not loaded & {"requests", "pydantic", "httpx2", "huggingface_hub"}


async def test_damaged_files_of_the_local_model_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken installation is an error in a sentence, not a traceback."""
    monkeypatch.setattr(local, "WEIGHTS", tmp_path / "nothing")
    local._model.cache_clear()
    with pytest.raises(EmbeddingError, match="cannot be read"):
        await LocalEmbedder().embed(["a"])
    (tmp_path / "nothing").write_bytes(b"nothing" * 100)
    with pytest.raises(EmbeddingError, match="cannot be read"):
        await LocalEmbedder().embed(["a"])


@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [
        ("wordllama", LocalEmbedder, "local"),
        ("tokenizers", LocalEmbedder, "local"),
        ("httpx", lambda: HttpEmbedder("m"), "embeddings"),
    ],
)
def test_what_is_not_installed_is_said_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, package: str, make: Callable[[], object], extra: str
) -> None:
    """When the embedder is made, so that no first message finds it out."""
    without_packages(monkeypatch, package)
    with pytest.raises(ConfigError, match=rf"pip install 'pgcontext\[{extra}\]'"):
        make()


# What is loaded


@pytest.mark.parametrize(
    "settings",
    [
        {"PGCONTEXT_EMBEDDER": "local", "PGCONTEXT_DIMENSIONS": "256"},
        {"PGCONTEXT_EMBEDDING_URL": "http://127.0.0.1:1/v1", "PGCONTEXT_EMBEDDING_MODEL": "m"},
        {},
    ],
    ids=["local", "http", "default"],
)
def test_making_a_store_with_an_embedder_loads_nothing_heavy(settings: dict[str, str]) -> None:
    """It loads with the first text."""
    code = "from pgcontext import ContextStore; assert ContextStore().embedder is not None"
    environment = {"PGCONTEXT_DIMENSIONS": "", **settings}
    assert not loaded_by(code, **environment) & HEAVY


def test_embedding_by_http_loads_httpx_alone(api: EmbeddingServer) -> None:
    """Not numpy: the vectors stay lists."""
    code = (
        "import asyncio\nfrom pgcontext import HttpEmbedder\n"
        f"async def main():\n    async with HttpEmbedder('m', url='{api.url}') as embedder:\n"
        "        await embedder.embed(['a'])\n"
        "asyncio.run(main())"
    )
    # httpx has a command of its own, and loads what that draws with wherever it is installed.
    assert loaded_by(code) & HEAVY - {"rich"} == {"httpx"}


# The embedded PostgreSQL


@pytest.fixture
def embedded_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for an embedded PostgreSQL of this test's own, and no dimensions said."""
    monkeypatch.delenv("PGCONTEXT_DIMENSIONS")
    monkeypatch.setenv("PGCONTEXT_DATA_DIR", str(tmp_path))
    yield tmp_path
    embedded.stop(tmp_path)


def test_with_nothing_set_it_searches_by_meaning(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded PostgreSQL and the local model, offline; then other dimensions are refused."""

    async def use() -> list[str | None]:
        async with ContextStore() as store:
            context = await store.create()
            messages = await store.append(
                context.id,
                [user("The boat leaves at noon."), user("I like pizza with cheese.")],
            )
            assert {message.embedding_model for message in messages} == {local.MODEL}
            return contents(
                hit.message for hit in await store.search("Where is the ferry?", mode="vector")
            )

    assert asyncio.run(use()) == ["The boat leaves at noon.", "I like pizza with cheese."]
    assert (embedded_folder / "migrated").read_text().endswith(" 256")
    embedded.stop(embedded_folder)
    monkeypatch.setenv("PGCONTEXT_DIMENSIONS", "1536")
    with pytest.raises(ConfigError, match=r"256 dimensions, and PGCONTEXT_DIMENSIONS says 1536"):
        asyncio.run(use())
    result = Cli(monkeypatch, None)("list")
    assert result.code == 5
    assert "256 dimensions" in result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("embedded_folder")
def test_the_dimensions_that_the_code_says_are_those_of_the_embedded_database() -> None:
    """An embedder of one's own has no use for the length of the local model's vectors."""
    embedder = CallableEmbedder("mine", lambda texts: [[1.0, 2.0, 3.0]] * len(texts))

    async def use() -> int:
        async with ContextStore.from_env(embedder=embedder, dimensions=3) as store:
            context = await store.create()
            [message] = await store.append(context.id, user("apples"))
            assert message.embedding_model == "mine"
            return len(await store.search([1.0, 2.0, 3.0]))

    assert asyncio.run(use()) == 1


def test_an_embedder_that_is_given_leaves_the_dimensions_of_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The embedded one is shared with programs that have none; "none" is a name, too."""
    monkeypatch.delenv("PGCONTEXT_DIMENSIONS")
    embedder = CallableEmbedder("mine", lambda texts: [axis(0)] * len(texts))
    for store in (ContextStore(embedder=embedder), ContextStore.from_env(embedder=embedder)):
        assert (store.embedder, store.settings.dimensions) == (embedder, 256)
    bare = ContextStore.from_env(embedder="none")
    assert (bare.embedder, bare.settings.dimensions) == (None, 256)
    url = "postgresql://app@localhost/app"
    assert ContextStore(url, embedder=embedder).settings.dimensions == 1536
    named = ContextStore.from_env(embedder="local", tokenizer="cl100k_base")
    assert isinstance(named.embedder, LocalEmbedder)
    assert named.settings.tokenizer == "cl100k_base"
