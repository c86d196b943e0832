"""A proxy in front of PostgreSQL that loses what a test tells it to lose."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from pgcontext.url import parse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

COMMAND_COMPLETE = b"C"
READY_FOR_QUERY = b"Z"
IDLE = b"I"  # no transaction is open: what was asked for is committed


class LossyProxy:
    """Passes everything on, but of the next `losses` statements the request or the reply.

    A lost reply is one to a statement that has been committed; a lost request never arrives.
    Either way the connection is closed, as a network would.

    Attributes:
        url: where it listens, a Unix socket.
        losses: how many are still to be lost.
    """

    def __init__(self, database_url: str) -> None:
        target = parse(database_url)
        (host, port), *_ = target.hosts
        self._target = f"{host}/.s.PGSQL.{port}"
        self._directory = Path(tempfile.mkdtemp(prefix="lossy-"))
        self._socket = self._directory / ".s.PGSQL.5432"
        self.url = (
            f"postgresql://{quote(target.user or '', safe='')}@/{target.database}"
            f"?host={quote(str(self._directory), safe='')}"
        )
        self.losses = 0
        self.what: Literal["request", "reply"] = "reply"

    def lose(self, what: Literal["request", "reply"], times: int = 1) -> None:
        """Lose the next requests or replies."""
        self.what, self.losses = what, times

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; connections that are still open end with their clients."""
        self._server.close()
        shutil.rmtree(self._directory)

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        server, request = await asyncio.open_unix_connection(self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(client, request))
                both.create_task(self._replies(server, reply))
        except* (ConnectionError, EOFError):
            pass
        finally:
            for writer in (request, reply):
                writer.close()

    async def _requests(self, client: asyncio.StreamReader, request: asyncio.StreamWriter) -> None:
        while data := await client.read(65_536):
            if self.losses and self.what == "request" and data[:1] in {b"P", b"Q", b"B"}:
                self.losses -= 1
                break
            request.write(data)
            await request.drain()
        raise EOFError

    async def _replies(self, server: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        held = b""  # from a statement's completion until it is known to be committed
        while True:
            head = await server.readexactly(5)
            message = head + await server.readexactly(int.from_bytes(head[1:], "big") - 4)
            losing = self.losses > 0 and self.what == "reply"
            if losing and (held or message[:1] == COMMAND_COMPLETE):
                held += message
                if message[:1] != READY_FOR_QUERY:
                    continue
                if message[-1:] == IDLE:
                    self.losses -= 1
                    raise EOFError
                message, held = held, b""
            reply.write(message)
            await reply.drain()
