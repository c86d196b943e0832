"""A server on loopback that speaks the OpenAI embeddings API, and fails as it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support import DIMENSIONS

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Reply(NamedTuple):
    """What one request gets instead of embeddings.

    Attributes:
        status: of HTTP.
        body: bytes as they are, anything else as JSON; None for what would have come anyway.
        headers: besides the length and the type.
        seconds: to wait before the first byte.
        cut: how many bytes of the body come before the connection is reset.
        shuffled: the vectors come in another order, told by their index.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)
    seconds: float = 0
    cut: int | None = None
    shuffled: bool = False


class Request(NamedTuple):
    """A request as it came."""

    target: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """What was to be embedded."""
        return list(self.body["input"])


def vector_of(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Make the vector of a text: by its first letter, so that like begins with like."""
    vector = [0.0] * dimensions
    vector[ord(text[0]) % dimensions] = 1.0
    return vector


class EmbeddingServer:
    """Runs in a thread of its own, so that any loop and any process may ask it.

    Attributes:
        requests: all that came.
        replies: what the next requests get, one each; then embeddings again.
        seconds: how long every answer takes.
        key: what has to be shown as bearer token, if anything.
        batch_texts_max: more are answered with 413.
        text_chars_max: longer texts are answered with `too_long_status`.
        takes_dimensions: else a request with that parameter is answered with 400.
        most_under_way: how many requests there were at once.
        connections: how many were opened.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: deque[Reply] = deque()
        self.seconds = 0.0
        self.key: str | None = None
        self.batch_texts_max: int | None = None
        self.text_chars_max: int | None = None
        self.too_long_status = 400
        self.takes_dimensions = True
        self.most_under_way = 0
        self.connections = 0
        self._under_way = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """What comes before /embeddings."""
        return f"http://127.0.0.1:{self.port}/v1"

    def drop_connections(self) -> None:
        """Reset every connection that is open, as a server does that restarts."""
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._answered(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # whoever asked is gone
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tell whether another may follow on this connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (h.partition(":") for h in lines)
        }
        content = await reader.readexactly(int(headers["content-length"]))
        request = Request(line.split()[1], headers, json.loads(content))
        self.requests.append(request)
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            reply = self.replies.popleft() if self.replies else Reply()
            await asyncio.sleep(reply.seconds or self.seconds)
        finally:
            self._under_way -= 1
        status, body = self._judged(request, reply)
        told = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        first = "".join(f"{k}: {v}\r\n" for k, v in (told | reply.headers).items())
        writer.write(f"HTTP/1.1 {status} Said\r\n{first}\r\n".encode() + body[: reply.cut])
        await writer.drain()
        return reply.cut is None

    def _judged(self, request: Request, reply: Reply) -> tuple[int, bytes]:
        status, told = reply.status, reply.body
        if told is None:
            status, told = self._embeddings(request) if status == 200 else (status, {})
        if reply.shuffled:
            told["data"].reverse()
        return status, told if isinstance(told, bytes) else json.dumps(told).encode()

    def _embeddings(self, request: Request) -> tuple[int, Any]:
        texts, dimensions = request.texts, request.body.get("dimensions")
        if refused := self._refused(request):
            status, code = refused
            # Servers quote what they refuse, keys and texts included.
            message = f"{code}: {texts} {request.headers.get('authorization')}"
            return status, {"error": {"type": code, "message": message, "code": None}}
        rows = [
            {
                "object": "embedding",
                "index": index,
                "embedding": vector_of(text, dimensions or DIMENSIONS),
            }
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return 200, {"object": "list", "data": rows, "model": request.body["model"], "usage": usage}

    def _refused(self, request: Request) -> tuple[int, str] | None:
        """Say with which status and code a request is refused, if it is."""
        texts = request.texts
        shown = request.headers.get("authorization")
        refusals = {
            (404, "not_found"): not request.target.partition("?")[0].endswith("/embeddings"),
            (401, "invalid_api_key"): self.key is not None and shown != f"Bearer {self.key}",
            (413, "Validation"): len(texts) > (self.batch_texts_max or len(texts)),
            (self.too_long_status, "BadRequestError"): self.text_chars_max is not None
            and max(map(len, texts)) > self.text_chars_max,
            (422, "no_matryoshka"): "dimensions" in request.body and not self.takes_dimensions,
            (400, "invalid_request_error"): not all(texts),
        }
        return next((reason for reason, applies in refusals.items() if applies), None)
