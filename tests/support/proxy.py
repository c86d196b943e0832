"""A proxy in front of PostgreSQL that counts what passes, and breaks what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import quote

from pgcontext.url import parse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

Way = Literal["request", "reply"]
Kind = Literal["cut", "half-close", "silence", "delay"]

PARSE: Final = b"P"
TERMINATE: Final = b"X"


@dataclass
class Traffic:
    """What has passed.

    Attributes:
        turns: times that a client spoke after it had waited for an answer.
        sent: bytes from the clients, statement texts included.
        received: bytes to the clients.
        texts: the statements that were prepared, also those without a name.
        connections: how many were made.
    """

    turns: int = 0
    sent: int = 0
    received: int = 0
    texts: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def text_bytes(self) -> int:
        """How many of the bytes sent were statement text."""
        return sum(len(text.encode()) for text in self.texts)


class Fault(NamedTuple):
    """What breaks, and where: before the message number `at`, or after `at` bytes.

    Both count what goes one way, over all connections, from when the fault's turn came.
    """

    kind: Kind
    way: Way
    at: int
    unit: Literal["message", "byte"] = "message"
    seconds: float = 0.0  # of a delay


class Proxy:
    """Passes everything on between clients and a server, message by message.

    Attributes:
        url: where it listens, a Unix socket.
        traffic: what has passed since it was last replaced.
        one_way_seconds: how long everything takes in each direction.
        struck: the faults that have happened.
    """

    def __init__(self, database_url: str, *, application_name: str | None = None) -> None:
        target = parse(database_url)
        (host, port), *_ = target.hosts
        self._target = f"{host}/.s.PGSQL.{port}"
        self._directory = Path(tempfile.mkdtemp(prefix="proxy-"))
        self._socket = self._directory / ".s.PGSQL.5432"
        self.url = (
            f"postgresql://{quote(target.user or '', safe='')}@/{target.database}"
            f"?host={quote(str(self._directory), safe='')}"
        )
        if application_name is not None:
            self.url += f"&application_name={application_name}"
        self.traffic = Traffic()
        self.one_way_seconds = 0.0
        self.struck: list[Fault] = []
        self._faults: deque[Fault] = deque()
        self._passed = 0  # what the first fault counts
        self._lines: set[asyncio.Task[None]] = set()

    def arm(self, *faults: Fault) -> None:
        """Let these happen, one after the other."""
        self._faults.extend(faults)

    def disarm(self) -> None:
        """Forget the faults that have not happened yet."""
        self._faults.clear()
        self._passed = 0

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await asyncio.start_unix_server(self._accept, self._socket)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and cut off whoever is still connected."""
        self._server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
        shutil.rmtree(self._directory)

    async def _accept(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._serve(client, reply)
        self._lines.discard(line)

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        try:
            server, request = await asyncio.open_unix_connection(self._target)
        except OSError:
            reply.transport.abort()
            raise
        self.traffic.connections += 1
        line = _Line(client, reply, server, request)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(line))
                both.create_task(self._replies(line))
        finally:
            line.abort()

    async def _requests(self, line: _Line) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                message = await line.next_request()
                kind = message[:1]
                if line.heard and kind != TERMINATE:
                    self.traffic.turns += 1
                    line.heard = False
                    await self._travel()
                self.traffic.sent += len(message)
                if line.started and kind == PARSE:
                    self.traffic.texts.append(message[5:].split(b"\0")[1].decode())
                line.started = True
                await self._pass(line, message, "request", line.request)
        _end(line.request)  # once what was held up has been passed on

    async def _replies(self, line: _Line) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                message = await _message(line.server)
                if not line.heard:
                    line.heard = True
                    await self._travel()
                self.traffic.received += len(message)
                await self._pass(line, message, "reply", line.reply)
        if not line.silent:
            line.reply.close()

    async def _travel(self) -> None:
        if self.one_way_seconds:
            await asyncio.sleep(self.one_way_seconds)

    async def _pass(
        self, line: _Line, message: bytes, way: Way, onward: asyncio.StreamWriter
    ) -> None:
        fault = self._faults[0] if self._faults and self._faults[0].way == way else None
        if fault is not None and not line.silent:
            size = len(message) if fault.unit == "byte" else 1
            if self._passed + size > fault.at:
                spared = message[: fault.at - self._passed] if fault.unit == "byte" else b""
                self._write(line, spared, onward)
                self._faults.popleft()
                self._passed = 0
                self.struck.append(fault)
                await self._strike(line, fault, onward)
                message = message[len(spared) :]
            else:
                self._passed += size
        self._write(line, message, onward)
        if not line.silent:
            with contextlib.suppress(ConnectionError):
                await onward.drain()

    def _write(self, line: _Line, message: bytes, onward: asyncio.StreamWriter) -> None:
        if not line.silent and onward not in line.ended and not onward.is_closing():
            onward.write(message)

    async def _strike(self, line: _Line, fault: Fault, onward: asyncio.StreamWriter) -> None:
        if fault.kind == "cut":
            line.abort()
        elif fault.kind == "half-close":
            line.ended.add(onward)
            _end(onward)
        elif fault.kind == "silence":
            line.silent = True
        else:
            await asyncio.sleep(fault.seconds)


class _Line:
    """One connection of a client, and its continuation to the server."""

    def __init__(
        self,
        client: asyncio.StreamReader,
        reply: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        request: asyncio.StreamWriter,
    ) -> None:
        self._client = client
        self.reply = reply
        self.server = server
        self.request = request
        self.started = False  # the first message of a client has no letter
        self.heard = True  # the server spoke last
        self.silent = False
        self.ended: set[asyncio.StreamWriter] = set()

    async def next_request(self) -> bytes:
        if self.started:
            return await _message(self._client)
        head = await self._client.readexactly(4)
        return head + await self._client.readexactly(int.from_bytes(head, "big") - 4)

    def abort(self) -> None:
        self.reply.transport.abort()
        self.request.transport.abort()


async def _message(source: asyncio.StreamReader) -> bytes:
    head = await source.readexactly(5)
    return head + await source.readexactly(int.from_bytes(head[1:], "big") - 4)


def _end(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.write_eof()
