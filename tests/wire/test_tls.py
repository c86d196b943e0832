"""TLS as it meets real certificates: good, a stranger's, another name's, expired, self-signed."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme

from pgcontext import ConfigError, ContextStore
from tests.support.tls import TlsFront

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

REMOTE: Final = "db.example.test"
NAMES: Final = ("localhost", REMOTE)
PASSWORD: Final = "hunter2"  # noqa: S105  (a made-up one)


class Authority:
    """A certificate authority, its file, and the certificates that a server may show."""

    def __init__(self, folder: Path) -> None:
        own, stranger = trustme.CA(), trustme.CA()
        self.file = str(folder / "authority.pem")
        self.self_signed_file = str(folder / "self.pem")
        own.cert_pem.write_to_path(self.file)
        stranger.cert_pem.write_to_path(self.self_signed_file)
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.good = context(own.issue_cert(*NAMES))
        self.stranger = context(stranger.issue_cert(*NAMES))
        self.wrong_name = context(own.issue_cert("other.example.test"))
        self.expired = context(own.issue_cert(*NAMES, not_after=yesterday))
        self.self_signed = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pem = folder / "self-and-key.pem"
        pem.write_bytes(stranger.private_key_pem.bytes() + stranger.cert_pem.bytes())
        self.self_signed.load_cert_chain(pem)


def context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(made)
    return made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates for this module's tests."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def front(database_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Put TLS with a certificate in front of the test's database."""
    fronts: list[TlsFront] = []

    async def make(certificate: ssl.SSLContext | None, *, direct: bool = False) -> TlsFront:
        fronts.append(TlsFront(database_url, certificate, direct=direct))
        return await fronts[-1].__aenter__()

    yield make
    for made in fronts:
        await made.__aexit__(None, None, None)
    await asyncio.sleep(0)


@pytest.fixture
def remote_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the name of a machine elsewhere lead to loopback."""
    real = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == REMOTE else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


async def works(url: str, **settings: Any) -> None:
    async with ContextStore.from_env(url=url, **settings) as store:
        context = await store.create(name="amber")
        assert await store.get(context.id) == context


async def refusal(url: str, **settings: Any) -> str:
    """Return the sentence with which a store refuses a server; it shows no secret."""
    async with ContextStore.from_env(url=url, **settings) as store:
        with pytest.raises(ConfigError) as caught:
            await store.create()
    assert not caught.value.retryable
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("remote_is_here")
@pytest.mark.parametrize("host", NAMES)
@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
async def test_a_good_certificate_is_accepted(
    front: Callable[..., Any], authority: Authority, host: str, mode: str
) -> None:
    """Of an authority that the URL names, for the name that was asked: the store works."""
    server = await front(authority.good)
    await works(server.url(host, sslmode=mode, sslrootcert=authority.file))
    assert server.secured == 1


@pytest.mark.parametrize("kind", ["stranger", "wrong_name", "expired", "self_signed"])
async def test_a_bad_certificate_is_refused_with_both_ways_out(
    front: Callable[..., Any], authority: Authority, kind: str
) -> None:
    """ConfigError after one try, which names sslrootcert and PGCONTEXT_TLS=require."""
    server = await front(getattr(authority, kind))
    said = await refusal(server.url(sslmode="verify-full", sslrootcert=authority.file))
    assert "sslrootcert" in said
    assert "PGCONTEXT_TLS=require" in said
    assert server.secured + server.refused <= 1


@pytest.mark.usefixtures("remote_is_here")
@pytest.mark.parametrize("parameters", [{}, {"sslmode": "require"}, {"sslmode": "prefer"}])
async def test_off_loopback_nothing_in_the_url_gives_up_the_check(
    front: Callable[..., Any], authority: Authority, parameters: dict[str, str]
) -> None:
    """Whatever the URL asks for, a machine elsewhere shows a certificate that the system trusts."""
    server = await front(authority.good)
    assert "certificate" in await refusal(server.url(REMOTE, **parameters))
    await works(server.url(REMOTE, **parameters, sslrootcert=authority.file))


async def test_verify_ca_gives_up_the_name_and_nothing_else(
    front: Callable[..., Any], authority: Authority
) -> None:
    """The certificate of another name is accepted, one that expired or of a stranger is not."""
    parameters = {"sslmode": "verify-ca", "sslrootcert": authority.file}
    await works((await front(authority.wrong_name)).url(**parameters))
    for kind in (authority.stranger, authority.expired, authority.self_signed):
        assert "certificate" in await refusal((await front(kind)).url(**parameters))


async def test_a_self_signed_certificate_is_its_own_authority(
    front: Callable[..., Any], authority: Authority
) -> None:
    """Named with sslrootcert it is trusted; the first way out."""
    server = await front(authority.self_signed)
    await works(server.url(sslmode="verify-ca", sslrootcert=authority.self_signed_file))


@pytest.mark.usefixtures("remote_is_here")
@pytest.mark.parametrize("kind", ["stranger", "wrong_name", "expired", "self_signed"])
@pytest.mark.parametrize("host", NAMES)
async def test_the_explicit_setting_accepts_any_certificate(
    front: Callable[..., Any], authority: Authority, kind: str, host: str
) -> None:
    """PGCONTEXT_TLS=require encrypts without checking; the second way out."""
    server = await front(getattr(authority, kind))
    await works(server.url(host, sslmode="verify-full"), tls="require")
    assert server.secured == 1


@pytest.mark.usefixtures("remote_is_here")
async def test_a_server_without_tls_is_refused(front: Callable[..., Any]) -> None:
    """Off loopback nothing is said in the clear: the sentence names the setting that would."""
    server = await front(None)
    assert "PGCONTEXT_TLS=disable" in await refusal(server.url(REMOTE))
    assert server.secured == 0


async def test_tls_from_the_first_byte(front: Callable[..., Any], authority: Authority) -> None:
    """sslnegotiation=direct says which protocol follows, and is checked like any other."""
    parameters = {"sslnegotiation": "direct", "sslmode": "verify-full"}
    server = await front(authority.good, direct=True)
    await works(server.url(**parameters, sslrootcert=authority.file))
    assert server.secured == 1
    expired = await front(authority.expired, direct=True)
    assert "certificate" in await refusal(expired.url(**parameters, sslrootcert=authority.file))


async def test_what_a_closed_loop_left_is_closed_through_tls_too(
    front: Callable[..., Any], authority: Authority
) -> None:
    """A loop for each request, over TLS: no socket is left to the garbage collector to warn of."""
    server = await front(authority.good)
    store = ContextStore(server.url(sslmode="verify-full", sslrootcert=authority.file))

    def requests() -> None:
        for _ in range(3):
            asyncio.run(store.create())
        asyncio.run(store.aclose())
        gc.collect()

    await asyncio.to_thread(requests)
    assert server.secured == 3
