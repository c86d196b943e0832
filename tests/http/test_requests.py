"""What is wrong with a request is one clear problem, and nothing of it ends up in a log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgcontext import (
    ConfigError,
    ContextStore,
    ContextStoreError,
    PoolTimeoutError,
    SchemaMismatchError,
    Settings,
    UnavailableError,
    errors,
    limits,
)
from pgcontext.http import create_app
from pgcontext.http.problems import KINDS, kind_of, problem_of
from tests.support.asgi import Client
from tests.support.modules import HEAVY, loaded_by

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET: Final = "the duck flies at midnight"  # noqa: S105 (what a message says)


@pytest.fixture
async def context(admin: Client) -> str:
    """The path of an empty context."""
    return f"/v1/contexts/{(await admin('POST', '/v1/contexts', {})).value['id']}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": []}',
        b'{"messages": [], "more": 1}',
        b'{"messages": "text"}',
        b'{"messages": {}}',
        b'{"messages": {"role": "king"}}',
        b'{"messages": {"role": "user", "content": "a\\u0000b"}}',
        b'{"messages": {"role": "user", "content": "\\ud800"}}',
        b'{"messages": {"role": "user", "content": 1e999}}',
        b'{"messages": {"role": "user"}, "expected_version": -1}',
        b'{"messages": {"role": "user"}, "expected_version": "1"}',
        b'{"messages": {"role": "user"}, "embed": "now"}',
        b'{"messages": {"role": "user"}, "embed": true}',
        b'{"messages": {"role": "user", "embedding": [0, 0]}}',
        b'{"messages": ' + b"[" * 100_000,
    ],
)
async def test_a_bad_body_is_422(admin: Client, context: str, body: bytes) -> None:
    """Malformed, of another form, or with what can't be stored: nothing is written."""
    refused = await admin("POST", f"{context}/messages", body)
    assert refused.status == 422
    assert refused.type in {"invalid-input", "dimension-mismatch"}
    assert refused.value["retryable"] is False
    assert (await admin("GET", f"{context}/messages")).value == {"items": []}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/contexts", {"limit": "0"}),
        ("/v1/contexts", {"limit": "ten"}),
        ("/v1/contexts", {"limit": "1.5"}),
        ("/v1/contexts", {"limit": ["1", "2"]}),
        ("/v1/contexts", {"limits": "1"}),
        ("/v1/contexts", {"cursor": "zzz"}),
        ("/v1/contexts", {"cursor": ""}),
        ("/v1/contexts", {"metadata": "{"}),
        ("/v1/contexts", {"metadata": "[]"}),
        ("/v1/contexts", {"metadata": "null"}),
        ("{}/messages", {"before": "null"}),
        ("/v1/contexts", {"include_deleted": "perhaps"}),
        ("{}/messages", {"roles": ["user", "king"]}),
        ("{}/messages", {"before": "-1"}),
        ("{}/window", {}),
        ("{}/diff", {"other": "me"}),
        ("/v1/contexts/not-an-id", {}),
    ],
)
async def test_a_bad_query_is_422(
    admin: Client, context: str, path: str, query: dict[str, Any]
) -> None:
    """A parameter that is unknown, doubled, missing or of another form."""
    assert (await admin("GET", path.format(context), query=query)).type == "invalid-input"


async def test_what_is_too_large_is_413(admin: Client, context: str) -> None:
    """A value above a bound of the store, and a query or a body above the application's."""
    many = [{"role": "user", "token_count": 0}] * (limits.MESSAGES_PER_APPEND_MAX + 1)
    answers = [
        await admin("GET", "/v1/contexts", query={"limit": limits.LIST_CONTEXTS_MAX + 1}),
        await admin("POST", f"{context}/messages", {"messages": many}),
        await admin("POST", "/v1/contexts", {"name": "x" * (limits.NAME_CHARS_MAX + 1)}),
        await admin("GET", "/v1/contexts", query={"cursor": "x" * limits.REQUEST_QUERY_BYTES_MAX}),
        await admin("POST", "/v1/contexts", b" " * (limits.REQUEST_BODY_BYTES_MAX + 1)),
    ]
    assert {(answer.status, answer.type) for answer in answers} == {(413, "limit-exceeded")}


async def test_a_body_is_refused_by_its_length_before_it_is_read(admin: Client) -> None:
    """What is announced as too large is never asked for."""

    def never() -> Iterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    length = {"content-length": str(limits.REQUEST_BODY_BYTES_MAX + 1)}
    answer = await admin("POST", "/v1/contexts", headers=length, chunks=never())
    assert answer.status == 413


async def test_a_body_without_a_length_is_read_up_to_the_bound(admin: Client) -> None:
    """One that comes in chunks ends where the bound does, however much would follow."""
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(65_536)
            yield b" " * 65_536

    for headers in ({}, {"content-length": "10"}, {"content-length": "many"}):
        taken.clear()
        answer = await admin("POST", "/v1/contexts", headers=headers, chunks=endless())
        assert answer.status == 413
        assert sum(taken) <= limits.REQUEST_BODY_BYTES_MAX + 2 * 65_536


async def test_a_body_may_come_in_chunks(admin: Client) -> None:
    """However it is cut, also inside a character."""
    whole = '{"name": "Grüße"}'.encode()
    chunks = [whole[place : place + 1] for place in range(len(whole))]
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = await admin("POST", "/v1/contexts", chunks=chunks, headers=headers)
    assert answer.value["name"] == "Grüße"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_what_is_not_json_is_415(admin: Client, headers: dict[str, str]) -> None:
    """Nothing is guessed; a form from a web page that needs no preflight is not taken."""
    answer = await admin("POST", "/v1/contexts", b"{}x", headers=headers)
    assert (answer.status, answer.type) == (415, "unsupported-media-type")


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD", "TRACE", "QUERY", "get"])
async def test_other_methods_are_405(admin: Client, method: str) -> None:
    """With the ones that the path takes."""
    answer = await admin(method, "/v1/contexts")
    assert (answer.status, answer.type) == (405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/contexts/", "/v2/contexts", "/v1/contexts/a/b"])
async def test_other_paths_are_404(anybody: Client, path: str) -> None:
    """As a problem too; a slash at the end is another path, not a redirection."""
    assert (await anybody("GET", path)).type == "route-not-found"


async def test_the_description_takes_get_only(anybody: Client) -> None:
    """What the router itself refuses is told in the same way."""
    assert (await anybody("GET", "/openapi.json")).value["openapi"] == "3.1.0"
    refused = await anybody("POST", "/openapi.json")
    assert (refused.status, refused.type) == (405, "method-not-allowed")


class FailingStore(ContextStore):
    """A store on a server that does what is needed here."""

    failure: Exception

    async def list(self, **_: Any) -> Any:
        raise self.failure


def failing(failure: Exception) -> Client:
    store = FailingStore(settings=Settings.from_env({}, url="postgresql://u:p@localhost/d"))
    store.failure = failure
    return Client(create_app(store, Settings.from_env({}, auth="none")))


@pytest.mark.parametrize(
    ("failure", "status", "name", "retryable"),
    [
        (UnavailableError(SECRET), 503, "unavailable", True),
        (PoolTimeoutError(SECRET), 503, "busy", True),
        (SchemaMismatchError(SECRET), 503, "not-ready", False),
        (ConfigError(SECRET), 500, "internal", False),
        (ContextStoreError(SECRET, sqlstate="XX000"), 500, "internal", False),
        (RuntimeError(SECRET), 500, "internal", False),
        (KeyError(SECRET), 500, "internal", False),
    ],
)
async def test_a_failure_of_the_server_says_nothing_about_it(
    failure: Exception, status: int, name: str, retryable: bool
) -> None:
    """The caller learns whether to come back; what is wrong stands in the log."""
    answer = await failing(failure)("GET", "/v1/contexts")
    assert (answer.status, answer.type) == (status, name)
    assert answer.value["retryable"] is retryable
    assert ("retry-after" in answer.headers) is (status == 503)
    assert SECRET.encode() not in answer.body


async def test_an_unexpected_failure_is_logged_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its class and its place: the words may quote what was stored."""
    await failing(RuntimeError(SECRET))("GET", "/v1/contexts")
    assert "RuntimeError" in caplog.text
    assert "test_requests.py" in caplog.text
    assert SECRET not in caplog.text


async def test_no_content_and_no_key_is_logged(
    admin: Client, context: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the lowest level: a route, a status and a time, and no more of any request."""
    caplog.set_level(logging.DEBUG)
    message = {"role": "user", "content": SECRET, "token_count": 1}
    await admin("POST", f"{context}/messages", {"messages": message})
    await admin("POST", f"{context}/messages", {"messages": {**message, "role": SECRET}})
    await admin("POST", "/v1/search", {"query": SECRET})
    await admin("GET", "/v1/contexts", query={"metadata": f'{{"a": "{SECRET}"}}'})
    await admin.with_key(SECRET)("GET", "/v1/contexts")
    assert "POST /v1/contexts/{context_id}/messages 201 in" in caplog.text
    assert SECRET not in caplog.text
    assert "duck" not in caplog.text
    assert str(admin.key).rpartition("_")[2] not in caplog.text


async def test_a_client_that_goes_away_is_not_answered(admin: Client) -> None:
    """Nothing is sent, and nothing is written of half a request."""
    got: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        got.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/contexts",
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {admin.key}".encode()),
            (b"content-length", b"100"),
        ],
    }
    await admin.app(scope, receive, send)
    assert got == []
    assert (await admin("GET", "/v1/contexts")).value["items"] == []


async def test_a_body_that_does_not_arrive_is_408(
    admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that sends slowly, or nothing, holds a request for a bounded time only."""
    monkeypatch.setattr(limits, "REQUEST_BODY_SECONDS_MAX", 0.05)
    got: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        got.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/contexts",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {admin.key}".encode())],
    }
    await admin.app(scope, receive, send)
    assert got[0]["status"] == 408
    assert b"request-timeout" in got[1]["body"]


async def test_many_requests_share_three_connections(admin: Client, context: str) -> None:
    """They wait for each other, and none is lost."""
    message = {"role": "user", "content": "x", "token_count": 1}
    answers = await asyncio.gather(
        *(admin("POST", f"{context}/messages", {"messages": message}) for _ in range(200))
    )
    assert {answer.status for answer in answers} == {201}
    versions = sorted(answer.value["items"][0]["version"] for answer in answers)
    assert versions == list(range(1, 201))


def test_every_error_has_a_type_of_its_own() -> None:
    """Each class of the store's errors is told apart by its type, and no type means two things."""
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ContextStoreError)
    ]
    assert len(classes) > 10
    ours = {kind_of(error).name for error in classes}
    assert len(ours) == len(classes) - 1  # ConfigError and the base class: both are "internal"
    titles: dict[str, set[str]] = {}
    for _, kind in KINDS:
        titles.setdefault(kind.name, set()).add(f"{kind.status} {kind.title}")
    assert {name for name, said in titles.items() if len(said) > 1} == set()


def test_a_problem_says_what_a_client_needs() -> None:
    """Type, title, status, detail, and the versions of a conflict."""
    problem = problem_of(errors.VersionConflictError(3, 7))
    assert (problem.type, problem.status) == ("urn:pgcontext:problem:version-conflict", 409)
    assert (problem.expected, problem.actual) == (3, 7)
    assert problem.title != problem.detail


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", "https://app.example", None),
        ("https://app.example", "https://app.example", "https://app.example"),
        ("https://a.example, https://app.example", "https://app.example", "https://app.example"),
        ("https://app.example", "https://evil.example", None),
        ("https://app.example", "https://app.example.evil.example", None),
        ("*", "https://anybody.example", "*"),
    ],
)
async def test_web_pages_call_from_the_origins_that_are_set(
    store: ContextStore, origins: str, origin: str, allowed: str | None
) -> None:
    """And from no other; by default from none. Refusals can be read there too."""
    settings = Settings.from_env({"PGCONTEXT_CORS_ORIGINS": origins})
    client = Client(create_app(store, settings))
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,idempotency-key",
    }
    preflight = await client("OPTIONS", "/v1/contexts", headers=asked)
    assert (preflight.status == 200) is (allowed is not None)
    for answer in (preflight, await client("GET", "/v1/contexts", headers={"origin": origin})):
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in answer.headers


WEB: Final = frozenset({"starlette", "uvicorn", "anyio", "httpx", "jinja2", "schemathesis"})


def test_the_store_loads_no_web_framework() -> None:
    """`import pgcontext` is for programs, which have none."""
    assert not loaded_by("import pgcontext") & WEB


def test_the_application_loads_what_it_answers_with_alone() -> None:
    """Starlette and what that needs; no server, no templates, nothing of the side branch."""
    loaded = loaded_by(
        "from pgcontext.http import create_app\n"
        "create_app()\n"
        "import sys\n"
        "assert 'pgcontext.http.openapi' not in sys.modules\n"
        "assert 'starlette.middleware.cors' not in sys.modules"
    )
    assert "starlette" in loaded
    assert not loaded & (HEAVY | WEB - {"starlette", "anyio"})


def test_the_extra_is_named_where_it_is_missing() -> None:
    """`pgcontext serve` without its extra says what to install, in one line."""
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'uvicorn' "
        "else real(name, *more)\n"
        "sys.argv = ['pgcontext', 'serve']\n"
        "from pgcontext.cli import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "pip install 'pgcontext[serve]'" in done.stderr
    assert "Traceback" not in done.stderr
