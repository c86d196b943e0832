"""Schemathesis sends what the description allows, and what it doesn't, to a running server."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pgcontext import ContextStore, Settings
from pgcontext.http import create_app
from pgcontext.http.app import DOCUMENT
from pgcontext.keys import Keys
from tests.support import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.postgres import Server

EXAMPLES: Final = int(os.environ.get("PGCONTEXT_HTTP_EXAMPLES", "25"))
SCHEMA: Final = schemathesis.openapi.from_path(DOCUMENT)
# What is above a bound is refused by 413, too.
SCHEMA.config.checks.negative_data_rejection.expected_statuses = [
    *("401", "403", "404", "413", "415", "422"),
]
MESSAGES: Final = [
    {"role": role, "content": f"message {role}", "token_count": 2}
    for role in ("system", "user", "assistant")
]


class Service:
    """The application on a server of its own, in a thread, and one who may do everything.

    Args:
        url: of the database.
    """

    def __init__(self, url: str) -> None:
        store = ContextStore(settings=Settings.from_env({}, url=url, dimensions=DIMENSIONS))
        self._key = asyncio.run(self._make_key(store))
        config = uvicorn.Config(create_app(store), port=0, log_level="error", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, args=(store,))
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.headers = {"Authorization": f"Bearer {self._key}"}

    @staticmethod
    async def _make_key(store: ContextStore) -> str:
        async with store:
            return (await Keys.of(store).create("conformance", scope="admin")).text

    def _serve(self, store: ContextStore) -> None:
        async def serve() -> None:
            async with store:
                await self._server.serve()

        asyncio.run(serve())

    def stop(self) -> None:
        """End the server and wait for it."""
        self.session.close()
        self._server.should_exit = True
        self._thread.join(30)

    def post(self, path: str, body: Any) -> Any:
        """Send one request that goes well."""
        answer = self.session.post(self.url + path, json=body, headers=self.headers)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def context(self) -> str:
        """Make a context with three messages."""
        made: str = self.post("/v1/contexts", {})["id"]
        self.post(f"/v1/contexts/{made}/messages", {"messages": MESSAGES})
        return made


@pytest.fixture(scope="module")
def service(server: Callable[[], Server]) -> Iterator[Service]:
    """One for all operations, on a database of its own."""
    running = server()
    url = running.create_database()
    serving = Service(url)
    yield serving
    serving.stop()
    running.drop_database(url)


def is_id(value: object) -> bool:
    try:
        UUID(str(value))
    except ValueError:
        return False
    return True


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case: schemathesis.Case[Any], service: Service) -> None:
    """No answer is a 5xx, each has a status, a type and a form that the description has for it.

    What the description does not allow is refused, so are unknown methods and callers without a
    key. An id that is one leads to a context that is there. Left out is that all which is allowed
    be accepted: no schema can say that a query finds words, or that a version exists.
    """
    if is_id(case.path_parameters.get("context_id")):
        case.path_parameters["context_id"] = service.context()
    case.call_and_validate(
        base_url=service.url,
        session=service.session,
        headers=service.headers,
        excluded_checks=[positive_data_acceptance],
    )
