"""The function in this process: the HTTP application behind it, its time, and its queue."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from pgcontext import ConfigError, ContextStore, Settings, limits
from pgcontext.aws import Function
from pgcontext.keys import Keys
from tests.support.lambda_events import event, record
from tests.support.modules import loaded_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMS: Final = ("v1", "v2", "alb")
ORDER: Final = {"role": "user", "content": "Where is my order?", "token_count": 5}


class Time:
    """What a function is told of its time."""

    def __init__(self, seconds: float) -> None:
        self._milliseconds = int(seconds * 1_000)

    def get_remaining_time_in_millis(self) -> int:
        """Return the same each time: it is asked once."""
        return self._milliseconds


@pytest.fixture
def make_function(database_url: str) -> Iterator[Callable[..., Function]]:
    """Make functions on the test's database; arguments are settings."""
    made: list[Function] = []

    def make(**settings: object) -> Function:
        made.append(Function(ContextStore.from_env(url=database_url, **settings)))
        return made[-1]

    yield make
    for function in made:
        function.close()


@pytest.fixture
def function(make_function: Callable[..., Function]) -> Function:
    """A function on the test's database."""
    return make_function()


@pytest.fixture
def bearer(database_url: str) -> tuple[str, str]:
    """The header of a caller who may write."""

    async def make() -> str:
        async with ContextStore(database_url) as store:
            return (await Keys.of(store).create("a test", scope="write")).text

    return "Authorization", f"Bearer {asyncio.run(make())}"


def ask(function: Function, made: dict[str, Any], seconds: float = 30) -> tuple[int, Any]:
    answer = function(json.loads(json.dumps(made)), Time(seconds))
    json.dumps(answer)
    assert answer["isBase64Encoded"] is False
    return answer["statusCode"], json.loads(answer["body"])


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_goes_over_http(
    function: Function, bearer: tuple[str, str], form: str
) -> None:
    """Over each kind of gateway a key opens the store, and what is written is read again."""
    kind = ("Content-Type", "application/json")
    status, context = ask(
        function,
        event(form, "POST", headers=[bearer, kind], body=b'{"name": "Gr\xc3\xb6\xc3\x9fe"}'),
    )
    assert (status, context["name"]) == (201, "Größe")
    path = f"/v1/contexts/{context['id']}/messages"
    body = json.dumps({"messages": [ORDER, {**ORDER, "role": "assistant"}, ORDER]}).encode()
    for _ in range(2):
        headers = [bearer, kind, ("Idempotency-Key", "once")]
        status, _written = ask(function, event(form, "POST", path, headers=headers, body=body))
        assert status in {200, 201}
    query = "roles=assistant&roles=tool&limit=5"
    status, history = ask(function, event(form, path=path, query=query, headers=[bearer]))
    assert status == 200
    assert "Where is my order?" in json.dumps(history)
    assert json.dumps(history).count('"assistant"') == 1


@pytest.mark.parametrize("form", FORMS)
def test_nobody_comes_in_without_a_key(function: Function, form: str) -> None:
    """Without a key, or with a wrong one, the answer is 401; health is for everybody."""
    assert ask(function, event(form))[0] == 401
    wrong = ("Authorization", "Bearer somebody")
    assert ask(function, event(form, headers=[wrong]))[0] == 401
    assert ask(function, event(form, path="/healthz"))[0] == 200


def test_the_claims_of_an_authorizer_come_in_the_event_alone(
    make_function: Callable[..., Function],
) -> None:
    """The gateway's claims name the tenant; a header that says the same says nothing."""
    tenant = str(uuid4())
    function = make_function(auth="authorizer", auth_tenant="/authorizer/jwt/claims/tenant_id")
    asked = event("v2")
    assert ask(function, asked)[0] == 401
    claims = {"jwt": {"claims": {"tenant_id": tenant}}}
    forged = [("X-Authorizer", json.dumps(claims)), ("tenant_id", tenant)]
    assert ask(function, event("v2", headers=forged))[0] == 401
    asked["requestContext"]["authorizer"] = claims
    assert ask(function, asked)[0] == 200


def test_a_stage_and_a_base_path_lead_to_the_application(
    make_function: Callable[..., Function],
) -> None:
    """Behind a stage or a base path the routes are the same; only there."""
    function = make_function(base_path="/chats")
    assert ask(function, event("v2", path="/healthz", stage="prod"))[0] == 200
    assert ask(function, event("alb", path="/chats/healthz"))[0] == 200
    assert ask(function, event("v1", path="/chats/healthz", stage="prod"))[0] == 200
    assert ask(function, event("v1", path="/chatshealthz"))[0] == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGCONTEXT_BASE_PATH", "chats"),
        ("PGCONTEXT_BASE_PATH", "/a b"),
        ("PGCONTEXT_PURGE_DAYS", "-1"),
        ("PGCONTEXT_PURGE_DAYS", "soon"),
        ("PGCONTEXT_PURGE_DAYS", "36501"),
    ],
)
def test_a_setting_of_a_function_that_is_wrong_is_refused(name: str, value: str) -> None:
    """A mistake is told when the settings are read, by the name of the variable."""
    with pytest.raises(ConfigError, match=name):
        Settings.from_env({name: value})


def test_a_request_that_takes_too_long_is_answered_in_time(
    function: Function, bearer: tuple[str, str], database_url: str
) -> None:
    """A request that waits for a lock gets 503 and Retry-After before the function's end."""
    headers = [bearer, ("Content-Type", "application/json")]
    _, context = ask(function, event("v2", "POST", headers=headers, body=b"{}"))
    path = f"/v1/contexts/{context['id']}/messages"
    body = json.dumps({"messages": [ORDER]}).encode()
    with held(database_url):
        asked = event("v2", "POST", path, headers=headers, body=body)
        answer = function(asked, Time(1.5))
    assert answer["statusCode"] == 503
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert int(answer["headers"]["retry-after"]) > 0
    status, _history = ask(function, event("v2", path=path, headers=[bearer]))
    assert status == 200


class held:  # noqa: N801 (used like a function)
    """Hold locks on all contexts, from a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._locked = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._hold()))

    def __enter__(self) -> None:
        self._thread.start()
        assert self._locked.wait(30)

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    async def _hold(self) -> None:
        connection = await asyncpg.connect(self._url)
        async with connection.transaction():
            await connection.execute("SELECT FROM contexts FOR UPDATE")
            self._locked.set()
            await asyncio.to_thread(self._done.wait, 30)
        await connection.close()


def test_an_answer_that_a_function_cannot_return_is_refused(
    function: Function, bearer: tuple[str, str]
) -> None:
    """Lambda drops an answer above 6 MB; instead, the caller is told to ask for fewer."""
    context = function({"operation": "create"})
    large = {**ORDER, "content": "x" * (limits.FUNCTION_ANSWER_BYTES_MAX // 2)}
    for _ in range(2):
        call = {"operation": "append", "context_id": context["id"], "messages": large}
        assert "error" not in function(call)
    call = {"operation": "history", "context_id": context["id"]}
    assert function(call)["error"]["type"] == "LimitExceededError"
    assert len(function({**call, "limit": 1})) == 1
    path = f"/v1/contexts/{context['id']}/messages"
    assert ask(function, event("v2", path=path, headers=[bearer]))[0] == 413


def test_a_body_that_is_not_base64_is_the_senders_fault(
    function: Function, bearer: tuple[str, str]
) -> None:
    """It is answered like any input that can't be used."""
    asked = event("v1", "POST", headers=[bearer]) | {"body": "###", "isBase64Encoded": True}
    assert ask(function, asked)[0] == 422


def test_a_direct_call_loads_no_web_framework(database_url: str) -> None:
    """A function that is called directly never loads Starlette; a request over HTTP does."""
    code = (
        "from pgcontext import ContextStore\nfrom pgcontext.aws import Function\n"
        "function = Function(ContextStore.from_env())\n"
        "assert function({'operation': 'list'})['items'] == []\n"
    )
    assert "starlette" not in loaded_by(code, DATABASE_URL=database_url)
    assert "starlette" in loaded_by(code + "function.prepare()\n", DATABASE_URL=database_url)


def test_a_closed_function_goes_on(function: Function) -> None:
    """After a snapshot, which it is closed for, the next invocation connects anew."""
    context = function({"operation": "create"})
    function.close()
    assert function({"operation": "get", "context_id": context["id"]}) == context


def append(context_id: str, content: str, **more: Any) -> str:
    message = {"role": "user", "content": content, "token_count": 1}
    call = {"operation": "append", "context_id": context_id, "messages": [message]}
    return json.dumps(call | more)


def failures(answer: dict[str, Any]) -> list[str]:
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def contents(function: Function, context_id: str) -> list[str]:
    history = function({"operation": "history", "context_id": context_id, "limit": 1000})
    return [message["content"] for message in history]


def test_records_that_fail_stay_in_the_queue(function: Function) -> None:
    """Each record that can't be appended is named; the others are written, and stay written."""
    context_id = function({"operation": "create"})["id"]
    bad = [
        record("not JSON"),
        record("[]"),
        record(json.dumps({"operation": "erase", "context_id": context_id})),
        record(append(str(UUID(int=9)), "nowhere")),
        record(append(context_id, "lost", idempotency_key="")),
        record(append(context_id, "late", expected_version=7)),
    ]
    good = [record(append(context_id, str(number))) for number in range(3)]
    batch = {"Records": [bad[0], good[0], *bad[1:4], good[1], *bad[4:], good[2]]}
    expected = sorted(each["messageId"] for each in bad)
    for _ in range(2):
        assert sorted(failures(function(batch))) == expected
        assert contents(function, context_id) == ["0", "1", "2"]


def test_a_key_of_the_sender_outranks_the_message_id(function: Function) -> None:
    """A sender who sends twice, as two messages, is safe with a key of its own."""
    context_id = function({"operation": "create"})["id"]
    twice = [record(append(context_id, "once", idempotency_key="k")) for _ in range(2)]
    assert failures(function({"Records": twice})) == []
    assert contents(function, context_id) == ["once"]


def test_a_failure_in_a_fifo_group_keeps_back_what_follows(function: Function) -> None:
    """Behind a record that fails nothing of its group is appended; other groups go on."""
    one, other = (function({"operation": "create"})["id"] for _ in range(2))

    def grouped(body: str, group: str) -> dict[str, Any]:
        return record(
            body,
            eventSourceARN="arn:aws:sqs:eu-central-1:123456789012:appends.fifo",
            attributes={"MessageGroupId": group},
        )

    records = [
        grouped(append(one, "first"), "a"),
        grouped("not JSON", "a"),
        grouped(append(one, "third"), "a"),
        grouped(append(other, "elsewhere"), "b"),
    ]
    failed = failures(function({"Records": records}))
    assert failed == [records[1]["messageId"], records[2]["messageId"]]
    assert contents(function, one) == ["first"]
    assert contents(function, other) == ["elsewhere"]


def test_a_group_on_a_standard_queue_promises_no_order(function: Function) -> None:
    """Fair queues name groups too; there a failure keeps nothing back."""
    context_id = function({"operation": "create"})["id"]
    attributes = {"MessageGroupId": "a"}
    records = [
        record("not JSON", attributes=attributes),
        record(append(context_id, "on"), attributes=attributes),
    ]
    assert failures(function({"Records": records})) == [records[0]["messageId"]]
    assert contents(function, context_id) == ["on"]


def test_what_a_batch_has_no_time_for_stays_in_the_queue(
    function: Function, database_url: str
) -> None:
    """When time runs out the rest of the batch is given back, and a second delivery does it."""
    context_id = function({"operation": "create"})["id"]
    batch = {"Records": [record(append(context_id, str(number))) for number in range(20)]}
    with held(database_url):
        assert len(failures(function(batch, Time(1.5)))) == 20
    assert failures(function(batch, Time(30))) == []
    assert contents(function, context_id) == [str(number) for number in range(20)]


def test_a_failure_is_logged_without_what_was_written(
    function: Function, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the record and the kind of error, and nothing of its content."""
    failed = record(append(str(UUID(int=9)), "s3cret words"))
    function({"Records": [failed]})
    assert failed["messageId"] in caplog.text
    assert "ContextNotFoundError" in caplog.text
    assert "s3cret" not in caplog.text
