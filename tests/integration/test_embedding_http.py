"""`HttpEmbedder` against a server that speaks the API, on a socket of this machine."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from pgcontext import (
    ConfigError,
    EmbeddingError,
    HttpEmbedder,
    InvalidInputError,
    limits,
)
from tests.support import DIMENSIONS
from tests.support.embedding_server import EmbeddingServer, Reply, vector_of

KEY = "sk-hunter2-0123456789"
SECRET_TEXT = "a secret text"  # noqa: S105 (it stands for content)

MakeEmbedder = Callable[..., HttpEmbedder]


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as running:
        yield running


@pytest.fixture
async def make(server: EmbeddingServer) -> AsyncIterator[MakeEmbedder]:
    made: list[HttpEmbedder] = []

    def embedder(**arguments: Any) -> HttpEmbedder:
        made.append(HttpEmbedder("small", **{"url": server.url, "seconds": 10, **arguments}))
        return made[-1]

    yield embedder
    for each in made:
        await each.aclose()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses between tries be short, so that the tests are."""
    monkeypatch.setattr(limits, "EMBEDDING_BACKOFF_SECONDS_BASE", 0.005)


def vectors_of(texts: list[str]) -> list[list[float]]:
    return [vector_of(text) for text in texts]


# Requests


async def test_texts_become_vectors_in_their_order(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """One request says the model and the texts, and no parameter that a server may refuse."""
    texts = ["alpha", "beta", "gamma"]
    assert await make().embed(texts) == vectors_of(texts)
    [request] = server.requests
    assert request.target == "/v1/embeddings"
    assert request.body == {"model": "small", "input": texts}
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers


async def test_no_texts_are_no_request(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """There is nothing to ask."""
    assert await make().embed([]) == []
    assert server.requests == []


async def test_an_empty_text_is_never_sent(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """A server would refuse the batch that it is in."""
    with pytest.raises(InvalidInputError, match="empty"):
        await make().embed(["a", ""])
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("/v1", "/v1/embeddings"),
        ("/v1/", "/v1/embeddings"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("", "/embeddings"),
        (
            "/openai/deployments/mine?api-version=2024-10-21",
            "/openai/deployments/mine/embeddings?api-version=2024-10-21",
        ),
    ],
)
async def test_the_address_is_taken_as_people_write_it(
    server: EmbeddingServer, make: MakeEmbedder, url: str, target: str
) -> None:
    """With or without a slash, the last part or a query; the key goes along."""
    await make(url=f"http://127.0.0.1:{server.port}{url}", key=KEY).embed(["a"])
    [request] = server.requests
    assert request.target == target
    assert request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mine.openai.azure.com", "api-key"),
        ("mine.cognitiveservices.azure.com", "api-key"),
        ("mine.services.ai.azure.com", "api-key"),
        ("api.openai.com", "Authorization"),
        ("openai.azure.com.example.org", "Authorization"),
    ],
)
async def test_azure_takes_the_key_in_a_header_of_its_own(host: str, name: str) -> None:
    """The same key, told by the host."""
    embedder = HttpEmbedder("m", url=f"https://{host}/openai/v1", key=KEY)
    client = embedder._line().client
    assert KEY in client.headers[name]
    assert [n for n, value in client.headers.items() if KEY in value] == [name.lower()]
    await embedder.aclose()


async def test_headers_are_sent_along(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """For gateways that want one more."""
    await make(headers={"X-Team": "search"}).embed(["a"])
    assert server.requests[0].headers["x-team"] == "search"


async def test_dimensions_are_asked_for_only_when_told_to(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """A model of one length refuses the parameter, even with its own length."""
    server.takes_dimensions = False
    assert await make().embed(["a"]) == vectors_of(["a"])
    with pytest.raises(EmbeddingError, match=r"HTTP 422 \(no_matryoshka"):
        await make(dimensions=DIMENSIONS).embed(["a"])
    server.takes_dimensions = True
    assert await make(dimensions=3).embed(["a"]) == [vector_of("a", 3)]
    assert server.requests[-1].body["dimensions"] == 3


# Batches


async def test_batches_are_bounded_by_count(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """A hundred texts are four requests, of which the last is smaller; the order stays."""
    texts = [f"{chr(97 + n % 26)}{n}" for n in range(100)]
    assert await make().embed(texts) == vectors_of(texts)
    assert sorted(len(request.texts) for request in server.requests) == [4, 32, 32, 32]
    server.requests.clear()
    assert await make(batch_texts=50).embed(texts) == vectors_of(texts)
    assert [len(request.texts) for request in server.requests] == [50, 50]


async def test_batches_are_bounded_by_characters(
    server: EmbeddingServer, make: MakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts go in smaller company; one that is longer than the bound goes alone."""
    monkeypatch.setattr(limits, "EMBEDDING_BATCH_CHARS_MAX", 10)
    texts = ["aaaa", "bbbb", "cccc", "d" * 15, "ee"]
    assert await make(requests=1).embed(texts) == vectors_of(texts)
    sent = [request.texts for request in server.requests]
    assert sent == [["aaaa", "bbbb"], ["cccc"], ["d" * 15], ["ee"]]


@pytest.mark.parametrize("requests", [1, 3])
async def test_so_many_requests_are_under_way_and_no_more(
    server: EmbeddingServer, make: MakeEmbedder, requests: int
) -> None:
    """The bound is that of the embedder, over all calls at once; connections are used again."""
    server.seconds = 0.02
    embedder = make(requests=requests, batch_texts=2)
    texts = [f"a{n}" for n in range(8)]
    await asyncio.gather(*(embedder.embed(texts) for _ in range(3)))
    assert len(server.requests) == 12
    assert server.most_under_way == requests
    assert server.connections == requests


# Texts that are too long


async def test_a_long_text_is_embedded_by_its_beginning(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """Of a megabyte so much is sent as models take."""
    [vector] = await make().embed(["z" * 1_000_000])
    assert vector == vector_of("z")
    assert [len(text) for text in server.requests[0].texts] == [24_000]


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_a_text_that_the_server_calls_too_long_is_cut_in_half_until_it_fits(
    server: EmbeddingServer, make: MakeEmbedder, status: int
) -> None:
    """A model with a short context takes the beginning; the other texts of the batch come whole."""
    server.text_chars_max, server.too_long_status = 2_000, status
    texts = ["a", "b" * 7_000, "c", "d"]
    assert await make().embed(texts) == vectors_of(texts)
    embedded = [text for request in server.requests for text in request.texts]
    assert {"a", "b" * 1_750, "c", "d"} <= set(embedded)


async def test_a_batch_of_more_texts_than_the_server_takes_goes_in_halves(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """A server may be set to fewer than usual."""
    server.batch_texts_max = 10
    texts = [f"{chr(97 + n)}" for n in range(20)]
    assert await make().embed(texts) == vectors_of(texts)
    assert [len(request.texts) for request in server.requests] == [20, 10, 10]


async def test_a_refusal_of_everything_ends_soon(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """When a short text alone is refused it isn't about size: no hundred requests find that out."""
    server.text_chars_max = 0
    with pytest.raises(EmbeddingError) as caught:
        await make(requests=1).embed(["a"] * 32)
    assert (caught.value.status, caught.value.retryable) == (400, False)
    assert [len(request.texts) for request in server.requests] == [32, 16, 8, 4, 2, 1]


# Faults that pass

PASSING = [Reply(status) for status in (408, 424, 429, 500, 502, 503, 529)]
BROKEN = [Reply(cut=0), Reply(cut=20), Reply(cut=20, seconds=0.01)]


@pytest.mark.parametrize("reply", PASSING + BROKEN, ids=str)
async def test_a_failure_that_passes_is_tried_again(
    server: EmbeddingServer, make: MakeEmbedder, reply: Reply
) -> None:
    """Busy servers and connections that are reset in the middle of an answer."""
    server.replies.extend([reply, reply])
    assert await make().embed(["a", "b"]) == vectors_of(["a", "b"])
    assert len(server.requests) == 3


async def test_connections_that_were_closed_meanwhile_are_made_anew(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """Between two calls a function may be frozen for long, or the server restarted."""
    embedder = make(batch_texts=1)
    await embedder.embed(["a", "b", "c"])
    server.drop_connections()
    assert await embedder.embed(["d", "e", "f"]) == vectors_of(["d", "e", "f"])


@pytest.mark.parametrize("reply", [Reply(503), Reply(cut=5)], ids=str)
async def test_it_is_not_tried_for_ever(
    server: EmbeddingServer, make: MakeEmbedder, reply: Reply
) -> None:
    """A bounded number of times, and then the error says that it may pass."""
    server.replies.extend([reply] * 100)
    with pytest.raises(EmbeddingError, match=r"127\.0\.0\.1") as caught:
        await make().embed(["a"])
    assert caught.value.retryable
    assert len(server.requests) == limits.EMBEDDING_ATTEMPTS_MAX


async def test_a_server_that_is_not_there_is_an_error_that_passes(make: MakeEmbedder) -> None:
    """Nobody listens on that port."""
    with pytest.raises(EmbeddingError, match="could not be reached") as caught:
        await make(url="http://127.0.0.1:1/v1").embed(["a"])
    assert (caught.value.retryable, caught.value.status) == (True, None)


async def test_an_account_without_money_is_not_asked_again(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """It comes as 429, but no waiting mends it."""
    server.replies.append(Reply(429, {"error": {"code": "insufficient_quota", "message": "x"}}))
    with pytest.raises(EmbeddingError, match="insufficient_quota") as caught:
        await make().embed(["a"])
    assert not caught.value.retryable
    assert len(server.requests) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_for(
    server: EmbeddingServer, make: MakeEmbedder, form: str
) -> None:
    """As a number of seconds, and as a date."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    value = "1" if form == "seconds" else moment
    server.replies.append(Reply(429, headers={"Retry-After": value}))
    started = time.monotonic()
    await make().embed(["a"])
    # A date has whole seconds: of two, at least one is still to come.
    assert 0.9 < time.monotonic() - started < 5


@pytest.mark.parametrize("value", ["3600", "99999999999999999999", "1e400"])
async def test_a_wait_beyond_the_deadline_is_not_begun(
    server: EmbeddingServer, make: MakeEmbedder, value: str
) -> None:
    """Who asks for an hour gets no second request, and the caller an answer at once."""
    server.replies.extend([Reply(503, headers={"Retry-After": value})] * 9)
    started = time.monotonic()
    with pytest.raises(EmbeddingError, match="HTTP 503") as caught:
        await make().embed(["a"])
    assert caught.value.retryable
    assert time.monotonic() - started < 2
    assert len(server.requests) == (limits.EMBEDDING_ATTEMPTS_MAX if value == "1e400" else 1)


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "", "²"])
async def test_a_retry_after_that_says_nothing_is_passed_over(
    server: EmbeddingServer, make: MakeEmbedder, value: str
) -> None:
    """No time, or one that is over: the usual pause."""
    server.replies.append(Reply(429, headers={"Retry-After": value.replace("²", "2nd")}))
    assert await make().embed(["a"]) == vectors_of(["a"])


async def test_the_deadline_bounds_everything(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """A server that takes its time, and one that drips, end with the embedder's seconds."""
    server.seconds = 5
    started = time.monotonic()
    with pytest.raises(EmbeddingError, match=r"within 0\.3 s") as caught:
        await make(seconds=0.3).embed(["a"] * 100)
    assert caught.value.retryable
    assert time.monotonic() - started < 2


async def test_a_cancelled_call_is_cancelled(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """All its requests end with it, and the embedder goes on working."""
    server.seconds = 5
    embedder = make()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(embedder.embed(["a"] * 100), 0.2)
    assert len(asyncio.all_tasks()) == 1
    server.seconds = 0
    assert await embedder.embed(["a"]) == vectors_of(["a"])


async def test_when_one_batch_fails_the_others_end(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """Nothing goes on behind the back of who got the error."""
    server.replies.append(Reply(401))
    server.seconds = 3
    started = time.monotonic()
    with pytest.raises(EmbeddingError):
        await make(batch_texts=1).embed(["a", "b", "c"])
    assert len(asyncio.all_tasks()) == 1
    assert time.monotonic() - started < 6


# Faults that stay

ROW = {"index": 0, "embedding": [1.0] * DIMENSIONS}
OTHER = {"index": 1, "embedding": [1.0] * DIMENSIONS}
USELESS = {
    "no JSON": b"<html>Hello</html>",
    "cut JSON": b'{"data": [',
    "no UTF-8": b'{"data": "\xff"}',
    "deep": b"[" * 100_000,
    "a list": [],
    "nothing": {},
    "data is null": {"data": None},
    "none": {"data": []},
    "one too few": {"data": [ROW]},
    "one too many": {"data": [ROW, OTHER, {**ROW, "index": 2}]},
    "the same twice": {"data": [ROW, ROW]},
    "from one": {"data": [OTHER, {**ROW, "index": 2}]},
    "another length": {"data": [ROW, {**OTHER, "embedding": [1.0]}]},
    "NaN": b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}',
    "infinity": b'{"data": [{"index": 0, "embedding": [1e999]}, {"index": 1, "embedding": [1]}]}',
    "null in it": {"data": [ROW, {**OTHER, "embedding": [None] * DIMENSIONS}]},
    "text in it": {"data": [ROW, {**OTHER, "embedding": ["1"] * DIMENSIONS}]},
    "base64": {"data": [ROW, {**OTHER, "embedding": "AACAPw=="}]},
}


@pytest.mark.parametrize("body", USELESS.values(), ids=USELESS.keys())
async def test_an_answer_that_is_no_embeddings_is_an_error(
    server: EmbeddingServer, make: MakeEmbedder, body: Any
) -> None:
    """It is said in a sentence, not tried again, and nothing of it gets through."""
    server.replies.append(Reply(body=body))
    with pytest.raises(EmbeddingError, match=r"127\.0\.0\.1 answered") as caught:
        await make().embed(["a", "b"])
    assert not caught.value.retryable
    assert len(server.requests) == 1


async def test_dimensions_that_were_asked_for_are_checked(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """A server that passes over the parameter answers with another length."""
    server.replies.append(Reply(body={"data": [ROW]}))
    with pytest.raises(EmbeddingError, match="8 dimensions"):
        await make(dimensions=5).embed(["a"])


async def test_the_order_is_that_of_the_index(server: EmbeddingServer, make: MakeEmbedder) -> None:
    """A server may answer in any order."""
    server.replies.append(Reply(shuffled=True))
    assert await make().embed(["a", "b", "c"]) == vectors_of(["a", "b", "c"])


async def test_an_index_that_is_left_out_is_zero(
    server: EmbeddingServer, make: MakeEmbedder
) -> None:
    """Gateways that leave out zeros do so here too."""
    server.replies.append(Reply(body={"data": [OTHER, {"embedding": [2.0] * DIMENSIONS}]}))
    assert await make().embed(["a", "b"]) == [[2.0] * DIMENSIONS, [1.0] * DIMENSIONS]


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_a_huge_answer_is_not_read_to_its_end(
    server: EmbeddingServer, make: MakeEmbedder, status: int
) -> None:
    """Nobody's memory is filled by a server that goes mad."""
    server.replies.append(Reply(status, body=b" " * 50_000_000))
    with pytest.raises(EmbeddingError, match="more than"):
        await make().embed(["a"])


@pytest.mark.parametrize("status", [301, 308, 401, 403, 404, 405, 409])
async def test_a_refusal_is_final(server: EmbeddingServer, make: MakeEmbedder, status: int) -> None:
    """What no other try mends is not tried again, and a redirect not followed with the key."""
    where = {"Location": f"http://127.0.0.1:{server.port}/elsewhere"}
    server.replies.append(Reply(status, headers=where))
    with pytest.raises(EmbeddingError, match=f"HTTP {status}") as caught:
        await make(key=KEY).embed(["a"])
    assert (caught.value.status, caught.value.retryable) == (status, False)
    assert len(server.requests) == 1


# Secrets


@pytest.mark.parametrize("shown", [KEY, "another key"])
async def test_neither_key_nor_text_is_ever_shown(
    server: EmbeddingServer,
    make: MakeEmbedder,
    shown: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not by repr, an error, its pickle or a log at any level, also when the server quotes them."""
    caplog.set_level(logging.DEBUG)
    server.key = KEY
    embedder = make(key=shown)
    server.replies.append(Reply(503, {"error": {"message": SECRET_TEXT, "code": SECRET_TEXT}}))
    if shown == KEY:
        await embedder.embed([SECRET_TEXT])
        server.text_chars_max = 1
    with pytest.raises(EmbeddingError) as caught:
        await embedder.embed([SECRET_TEXT])
    told = [repr(embedder), str(caught.value), repr(caught.value), caplog.text]
    told.append(repr(pickle.dumps(caught.value)))
    for secret in (shown, SECRET_TEXT):
        assert not [text for text in told if secret in text]
    assert "embedding failed (503)" in caplog.text


async def test_the_query_of_the_address_is_in_no_error(make: MakeEmbedder) -> None:
    """Some put their key there."""
    with pytest.raises(EmbeddingError) as caught:
        await make(url=f"http://127.0.0.1:1/v1?key={KEY}").embed(["a"])
    assert KEY not in str(caught.value)
    assert KEY not in repr(make(url=f"http://127.0.0.1:1/v1?key={KEY}"))


async def test_the_query_of_the_address_is_sent_and_in_no_log(
    server: EmbeddingServer, make: MakeEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    """The HTTP client's own log names the address of each request."""
    caplog.set_level(logging.DEBUG)
    await make(url=f"{server.url}?key={KEY}").embed(["a"])
    assert server.requests[0].target.endswith(f"?key={KEY}")
    assert "POST http://127.0.0.1" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com/v1",
        "ftp://127.0.0.1/v1",
        "http://",
        "http://127.0.0.1:port/v1",
        "http://[::1/v1",
        f"https://user:{KEY}@example.org/v1",
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    """When the embedder is made, by the variable's name, and never with what it holds."""
    with pytest.raises(ConfigError, match="PGCONTEXT_EMBEDDING_URL") as caught:
        HttpEmbedder("m", url=url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", "schlüssel", "a\rb"])
def test_a_key_that_cannot_be_is_refused(key: str) -> None:
    """A line break at its end is what files bring along."""
    with pytest.raises(ConfigError, match="PGCONTEXT_EMBEDDING_KEY") as caught:
        HttpEmbedder("m", key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"model": ""}, {"model": "m" * 257}, {"seconds": 0}, {"batch_texts": 0}, {"requests": -1}],
)
def test_an_argument_that_cannot_be_is_refused(arguments: dict[str, Any]) -> None:
    """Each has a bound below."""
    with pytest.raises(ConfigError):
        HttpEmbedder(**{"model": "m", **arguments})


# Loops and processes


def test_every_event_loop_has_its_own_connections(server: EmbeddingServer) -> None:
    """A function may run one loop per call; nothing of an earlier one is touched."""
    embedder = HttpEmbedder("small", url=server.url)

    async def call() -> None:
        async with embedder:
            assert await embedder.embed(["a"]) == vectors_of(["a"])

    for _ in range(3):
        asyncio.run(call())
    assert server.connections == 3
    assert len(embedder._lines) == 0


def test_connections_of_a_loop_that_is_closed_are_let_go(server: EmbeddingServer) -> None:
    """Who never closes the embedder keeps at most the last loop's."""
    embedder = HttpEmbedder("small", url=server.url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # as Python does by default
        for _ in range(3):
            assert asyncio.run(embedder.embed(["a"])) == vectors_of(["a"])
            assert len(embedder._lines) == 1
        del embedder
        gc.collect()


def test_a_child_process_makes_connections_of_its_own(server: EmbeddingServer) -> None:
    """After os.fork the parent's sockets are never touched."""
    embedder = HttpEmbedder("small", url=server.url)

    async def call() -> int:
        async with embedder:
            await embedder.embed(["a"])
            child = os.fork()
            if child == 0:
                os._exit(0 if _in_child(embedder) else 1)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            await embedder.embed(["b"])
            return os.waitstatus_to_exitcode(status)

    assert asyncio.run(call()) == 0
    assert server.connections == 2


def _in_child(embedder: HttpEmbedder) -> bool:
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    return loop.run_until_complete(embedder.embed(["c"])) == vectors_of(["c"])
