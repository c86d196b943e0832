"""The Vercel function, under the runtime that Vercel runs it with, and under a plain uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from pgcontext import ContextStore
from pgcontext.keys import Keys
from tests.support.promises import query

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
START_SECONDS_MAX: Final = 60
SECRET: Final = "a secret of the project"  # noqa: S105 (of this test)
UNDER_VERCEL: Final = pytest.param(
    "vercel",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("vercel_runtime") is None,
        reason="vercel-runtime needs Python 3.12",
    ),
)
# What Vercel's builder writes into a function.
TRAMPOLINE: Final = """
import os, sys
sys.path.insert(0, os.getcwd())
os.environ.update({
    "__VC_HANDLER_MODULE_NAME": "handlers.vercel",
    "__VC_HANDLER_ENTRYPOINT": "handlers/vercel.py",
    "__VC_HANDLER_ENTRYPOINT_ABS": os.path.abspath("handlers/vercel.py"),
    "__VC_HANDLER_VENDOR_DIR": "_vendor",
    "__VC_HANDLER_VARIABLE_NAME": "app",
})
import vercel_runtime.vc_init
"""


class Running(NamedTuple):
    """A function that serves."""

    port: int
    process: subprocess.Popen[bytes]
    url: str

    def ask(
        self, method: str, path: str, *, body: Any = None, bearer: str | None = None
    ) -> tuple[int, Any]:
        """Send a request; return the status and the JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json"}
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        with contextlib.closing(connection):
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())


@pytest.fixture(params=["uvicorn", UNDER_VERCEL])
def function(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[Running]:
    """The function on the test's database, in an environment like Vercel's."""
    environment = os.environ | {
        "VERCEL": "1",
        "DATABASE_URL": database_url,
        "PGCONTEXT_POOLER": "direct",  # the tests' server is no pooler, and says so
        "CRON_SECRET": SECRET,
    }
    with contextlib.ExitStack() as stack:
        if request.param == "vercel":
            process, port = _under_vercel(environment, tmp_path / "ipc.sock", stack)
        else:
            process, port = _under_uvicorn(environment)
        yield Running(port, process, database_url)
        process.kill()
        process.wait()


def _under_uvicorn(environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "handlers.vercel:app", "--port", str(port)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        assert process.poll() is None
        assert time.monotonic() < until
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process, port
        time.sleep(0.05)


def _under_vercel(
    environment: dict[str, str], address: Path, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], int]:
    """Start it as the platform does, which learns over a socket where the function listens."""
    with socket.socket(socket.AF_UNIX) as platform:
        platform.bind(str(address))
        platform.listen()
        platform.settimeout(START_SECONDS_MAX)
        process = subprocess.Popen(
            [sys.executable, "-c", TRAMPOLINE],
            cwd=ROOT,
            env=environment | {"VERCEL_IPC_PATH": str(address)},
        )
        said, _ = platform.accept()
    stack.enter_context(said)
    said.settimeout(START_SECONDS_MAX)
    text = b""
    while True:
        part = said.recv(65_536)
        assert part, "the function ended before it served"
        text += part
        for message in map(json.loads, filter(None, text.split(b"\0")[:-1])):
            assert message["type"] != "unrecoverable-error", message
            if message["type"] == "server-started":
                return process, int(message["payload"]["httpPort"])


def key(database_url: str, scope: Any) -> str:
    async def make() -> str:
        async with ContextStore(database_url) as store:
            return (await Keys.of(store).create("a test", scope=scope)).text

    return asyncio.run(make())


def test_a_conversation_goes_over_http(function: Running) -> None:
    """A key opens the store; what is written is read again; nobody else comes in."""
    bearer = key(function.url, "write")
    status, context = function.ask("POST", "/v1/contexts", body={"name": "a"}, bearer=bearer)
    assert status == 201
    path = f"/v1/contexts/{context['id']}/messages"
    message = {"role": "user", "content": "Where is my order?", "token_count": 5}
    assert function.ask("POST", path, body={"messages": [message]}, bearer=bearer)[0] < 300
    status, history = function.ask("GET", path, bearer=bearer)
    assert status == 200
    assert "Where is my order?" in json.dumps(history)
    assert function.ask("GET", path)[0] == 401
    assert function.ask("GET", "/healthz")[0] == 200


def test_many_requests_share_a_few_connections(function: Running) -> None:
    """Requests that come at once are all answered, over three connections at most."""
    bearer = key(function.url, "write")
    with ThreadPoolExecutor(20) as threads:
        answers = list(
            threads.map(
                lambda _: function.ask("POST", "/v1/contexts", body={}, bearer=bearer), range(60)
            )
        )
    assert {status for status, _ in answers} == {201}
    connected = asyncio.run(
        query(
            function.url,
            "SELECT FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    )
    assert 1 <= len(connected) <= 3


def test_a_function_that_slept_goes_on(function: Running) -> None:
    """Stopped and started again, while the server closed its connections, it answers."""
    bearer = key(function.url, "read")
    assert function.ask("GET", "/v1/contexts", bearer=bearer)[0] == 200
    os.kill(function.process.pid, signal.SIGSTOP)
    try:
        asyncio.run(
            query(
                function.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        )
    finally:
        os.kill(function.process.pid, signal.SIGCONT)
    assert function.ask("GET", "/v1/contexts", bearer=bearer)[0] == 200


def test_only_the_schedule_runs_the_jobs(function: Running) -> None:
    """Each runs for whoever has the project's secret, and for nobody else."""
    for bearer in (None, "", "wrong", f"{SECRET}!", key(function.url, "admin")):
        assert function.ask("GET", "/jobs/purge", bearer=bearer)[0] == 401
        assert function.ask("GET", "/jobs/embed", bearer=bearer)[0] == 401
    assert function.ask("GET", "/jobs/purge", bearer=SECRET) == (
        200,
        {"contexts": 0, "messages": 0},
    )
    status, refused = function.ask("GET", "/jobs/embed", bearer=SECRET)
    assert (status, "no embedder" in refused["detail"]) == (422, True)
