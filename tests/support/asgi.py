"""Calls an ASGI application as a server does, in the test's own event loop."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.applications import Starlette


class Answer(NamedTuple):
    """A response, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The JSON in it."""
        return json.loads(self.body)

    @property
    def type(self) -> str:
        """The type of the problem it tells, without what all of them begin with."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.value["status"] == self.status
        return str(self.value["type"]).removeprefix("urn:pgcontext:problem:")


class Client:
    """Sends requests to an application.

    Args:
        app: the application.
        key: shown with each request.
        scope: what the server says of the connection, instead of what a local one does.
    """

    def __init__(self, app: Starlette, key: str | None = None, **scope: Any) -> None:
        self.app = app
        self.key = key
        self.scope = scope

    def with_key(self, key: str | None) -> Client:
        """The same, with another key."""
        return Client(self.app, key, **self.scope)

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        chunks: Iterable[bytes] | None = None,
    ) -> Answer:
        """Send a request; a body is sent as JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else b"" if body is None else _json(body)
        sent = {"host": "localhost:8000", **(headers or {})}
        if body is not None and "content-type" not in sent:
            sent["content-type"] = "application/json"
        if chunks is None:
            sent.setdefault("content-length", str(len(content)))
        if self.key is not None:
            sent["authorization"] = f"Bearer {self.key}"
        parts = iter([content] if chunks is None else chunks)
        got: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            part = next(parts, None)
            if part is None:
                return {"type": "http.request", "body": b"", "more_body": False}
            return {"type": "http.request", "body": part, "more_body": True}

        async def send(message: Any) -> None:
            got.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "query_string": urlencode(query or {}, doseq=True).encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
            **self.scope,
        }
        await self.app(scope, receive, send)
        start = got[0]
        return Answer(
            start["status"],
            {name.decode().lower(): value.decode() for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in got[1:]),
        )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
