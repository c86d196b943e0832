"""The command `serve`: the HTTP application on a server of its own."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgcontext.cli.output import Output, embedded_started
from pgcontext.errors import ConfigError

if TYPE_CHECKING:
    from pgcontext.settings import Settings

PORT_MAX: Final = 65_535
GRACEFUL_SECONDS: Final = 10


def serve(
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", metavar="PORT", min=0, max=PORT_MAX, help="0 takes a free one."),
    ] = 8000,
) -> None:
    """Serve the HTTP application until it is stopped; one process, one event loop.

    It speaks plain HTTP: off this machine, put TLS in front of it.
    """
    out = Output()
    with out.reported():
        settings = _settings(host)
        if settings.url is None:
            asyncio.run(embedded_started(settings))
        if settings.auth == "keys":
            out.note("Callers need a key: pgcontext keys create NAME --scope write")
        _run(settings, host, port)


def _settings(host: str) -> Settings:
    """Return the settings, if they can be served at this address.

    Raises:
        ConfigError: nobody would be asked who they are, and everybody could ask.
    """
    from pgcontext.settings import Settings

    settings = Settings.from_env()
    if not all(find_spec(name) for name in ("starlette", "uvicorn")):
        msg = "pgcontext serve needs Starlette and uvicorn; run: pip install 'pgcontext[serve]'"
        raise ConfigError(msg)
    from pgcontext.http.access import is_local

    if settings.auth == "none" and not is_local(host):
        msg = (
            f"PGCONTEXT_AUTH=none is for this machine alone, and {host} is reached from others: "
            "listen on 127.0.0.1, or set PGCONTEXT_AUTH=keys."
        )
        raise ConfigError(msg)
    return settings


def _run(settings: Settings, host: str, port: int) -> None:
    import uvicorn

    from pgcontext.http import create_app

    uvicorn.run(
        create_app(settings=settings),
        host=host,
        port=port,
        access_log=False,  # it would write queries, and so what is searched for
        server_header=False,
        proxy_headers=False,  # who a caller is doesn't depend on an address that a caller can claim
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
