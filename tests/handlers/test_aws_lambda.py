"""The Lambda function under AWS's own runtime client, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from tests.support.crashing import CrashingServer
from tests.support.lambda_events import event, record
from tests.support.promises import query

if sys.platform != "linux":
    pytest.skip("AWS's runtime client runs on Linux only", allow_module_level=True)

from tests.support.lambda_service import FunctionFailedError, LambdaService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANDLER = "handlers.aws_lambda.handler"
ORDER = {"role": "user", "content": "Where is my order?", "token_count": 5}


@pytest.fixture
def make_function() -> Iterator[Callable[..., LambdaService]]:
    """Start environments of the function: `make_function(url, NAME=value)`."""
    started: list[LambdaService] = []

    def make(url: str, **variables: str) -> LambdaService:
        # The tests' server is no pooler, and says so.
        service = LambdaService(
            HANDLER, {"DATABASE_URL": url, "PGCONTEXT_POOLER": "direct", **variables}
        )
        started.append(service)
        return service.__enter__()

    yield make
    for service in started:
        service.stop()


@pytest.fixture
def function(make_function: Callable[..., LambdaService], database_url: str) -> LambdaService:
    """An environment of the function on the test's database."""
    return make_function(database_url)


def call(function: LambdaService, operation: str, **arguments: Any) -> Any:
    return function.invoke({"operation": operation, **arguments})


def test_direct_calls_are_answered_cold_and_warm(
    function: LambdaService, database_url: str
) -> None:
    """The first invocation connects, the next ones go on the same connection."""
    context = call(function, "create", name="orders")
    for _ in range(3):
        call(function, "append", context_id=context["id"], messages=[ORDER])
    history = call(function, "history", context_id=context["id"])
    assert [(each["version"], each["content"]) for each in history] == [
        (version, "Where is my order?") for version in (1, 2, 3)
    ]
    assert len(asyncio.run(sessions(database_url))) == 1


async def sessions(url: str, state: str = "idle") -> list[Any]:
    return await query(
        url,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state = $1",
        state,
    )


@pytest.mark.parametrize(
    ("call_", "kind"),
    [
        ({"operation": "get", "context_id": str(uuid4())}, "ContextNotFoundError"),
        ({"operation": "get", "context_id": "7"}, "InvalidInputError"),
        ({"operation": "drop"}, "InvalidInputError"),
        ({"Records": [{"eventSource": "aws:s3"}]}, "InvalidInputError"),
        ({"requestContext": {"eventType": "CONNECT"}}, "InvalidInputError"),
        ("append", "InvalidInputError"),
        (None, "InvalidInputError"),
    ],
)
def test_a_call_that_cannot_be_done_gets_an_error_as_answer(
    function: LambdaService, call_: Any, kind: str
) -> None:
    """The function doesn't fail: it answers with the error's type and a sentence."""
    answer = function.invoke(call_)
    assert answer["error"]["type"] == kind
    assert answer["error"]["detail"].endswith(".")


def test_a_thawed_function_connects_anew(function: LambdaService, database_url: str) -> None:
    """A function that was frozen while the server closed its connections goes on unharmed."""
    context = call(function, "create")
    function.freeze()
    try:
        closed = asyncio.run(
            query(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        )
        assert len(closed) == 1
    finally:
        function.thaw()
    [message] = call(function, "append", context_id=context["id"], messages=[ORDER])
    assert message["version"] == 1


def test_a_database_that_was_killed_between_invocations_is_found_again(
    make_function: Callable[..., LambdaService],
) -> None:
    """The server dies and recovers; what was acknowledged is there, and calls go on."""
    with CrashingServer() as server:
        function = make_function(server.url)
        context = call(function, "create")
        call(function, "append", context_id=context["id"], messages=[ORDER])
        asyncio.run(server.crash())
        [message] = call(function, "history", context_id=context["id"])
        assert message["content"] == "Where is my order?"
        [second] = call(function, "append", context_id=context["id"], messages=[ORDER])
        assert second["version"] == 2


async def test_a_call_that_would_take_too_long_is_given_up_in_time(
    function: LambdaService, database_url: str
) -> None:
    """Before its time is up the function answers, and nothing of the call goes on at the server."""
    context = await asyncio.to_thread(call, function, "create")
    holder = await asyncpg.connect(database_url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM contexts FOR UPDATE")
            append = {"operation": "append", "context_id": context["id"], "messages": [ORDER]}
            started = time.monotonic()
            answer = await asyncio.to_thread(function.invoke, append, seconds=2.0)
            assert 1.0 < time.monotonic() - started < 2.0
            assert answer["error"]["type"] == "UnavailableError"
            function.freeze()
            assert await sessions(database_url, "active") == []
    finally:
        function.thaw()
        await holder.close()
    history = await asyncio.to_thread(call, function, "history", context_id=context["id"])
    assert history == []


def test_a_setting_that_cannot_be_used_stops_the_start(
    make_function: Callable[..., LambdaService], database_url: str
) -> None:
    """A direct URL isn't used in a function by accident: the start fails with the sentence."""
    url = "postgresql://app:s3cret@ep-a.eu-central-1.aws.neon.tech/app"
    function = make_function(url, PGCONTEXT_POOLER="")
    with pytest.raises(FunctionFailedError, match="-pooler") as failed:
        function.invoke({"operation": "list"})
    assert "s3cret" not in str(failed.value)


def test_a_function_works_after_its_snapshot(
    make_function: Callable[..., LambdaService], database_url: str
) -> None:
    """With SnapStart the hook runs, the snapshot is taken, and what is restored takes calls."""
    function = make_function(database_url, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start")
    context = call(function, "create")
    assert function.snapshot_taken
    assert call(function, "get", context_id=context["id"]) == context
    assert function.invoke(event("v2", path="/healthz"))["statusCode"] == 200


def test_a_batch_of_the_queue_is_appended_once(function: LambdaService, database_url: str) -> None:
    """A second delivery of the same records changes nothing; order within a context is kept."""
    contexts = [call(function, "create")["id"] for _ in range(2)]
    records = [
        record(
            json.dumps(
                {
                    "operation": "append",
                    "context_id": contexts[number % 2],
                    "messages": [{"role": "user", "content": str(number), "token_count": 1}],
                }
            )
        )
        for number in range(10)
    ]
    for _ in range(2):
        assert function.invoke({"Records": records}) == {"batchItemFailures": []}
    for place, context_id in enumerate(contexts):
        history = call(function, "history", context_id=context_id)
        assert [each["content"] for each in history] == [str(n) for n in range(place, 10, 2)]
