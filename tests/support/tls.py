"""TLS in front of a server that speaks none, with whatever certificate a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pgcontext.url import parse

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
ALPN: Final = "postgresql"


class TlsFront:
    """Ends TLS on loopback, and passes what was inside on to the server's Unix socket.

    Args:
        database_url: of the server.
        certificate: and key of the front; None says that it has none, as a server may.
        direct: TLS begins at once, without asking for it in PostgreSQL's own words.

    Attributes:
        secured: how many connections have come through.
        refused: how many asked and went away.
    """

    def __init__(
        self, database_url: str, certificate: ssl.SSLContext | None, *, direct: bool = False
    ) -> None:
        self._target = parse(database_url)
        self._certificate = certificate
        self._direct = direct
        self.secured = 0
        self.refused = 0
        if certificate is not None and direct:
            certificate.set_alpn_protocols([ALPN])

    def url(self, host: str = "localhost", **parameters: str) -> str:
        """The address of the front, with parameters of libpq."""
        port = self._server.sockets[0].getsockname()[1]
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        target = self._target
        return f"postgresql://{target.user}:hunter2@{host}:{port}/{target.database}?{query}"

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._certificate if self._direct else None
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self._server.close()

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        try:
            if await self._secure(client, reply):
                self.secured += 1
                await self._pass_on(client, reply)
        except (OSError, asyncio.IncompleteReadError):
            self.refused += 1
        finally:
            reply.close()

    async def _secure(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> bool:
        if self._direct:
            secured: ssl.SSLObject = reply.get_extra_info("ssl_object")
            return secured.selected_alpn_protocol() == ALPN
        if await client.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
            return False
        reply.write(b"N" if self._certificate is None else b"S")
        if self._certificate is None:
            await client.read()
            return False
        await reply.start_tls(self._certificate)
        return True

    async def _pass_on(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        (host, port), *_ = self._target.hosts
        server, request = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(client, request))
                both.create_task(_pump(server, reply))
        finally:
            request.close()


async def _pump(source: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            onward.write(data)
            await onward.drain()
    onward.close()
