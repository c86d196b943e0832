import ssl
from pathlib import Path

import pytest

from pgcontext.errors import ConfigError
from pgcontext.tls import tls_context
from pgcontext.url import TlsMode, parse

REMOTE = "postgresql://u:p@db.example.org/app"


def context(url: str, tls: TlsMode | None = None) -> ssl.SSLContext:
    """Make the context of a URL that uses TLS."""
    made = tls_context(parse(url, tls=tls))
    assert isinstance(made, ssl.SSLContext)
    return made


def test_another_machine_is_verified_with_its_name() -> None:
    """The default checks the chain and the name."""
    made = context(REMOTE)
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.check_hostname


def test_verify_ca_checks_the_chain_alone() -> None:
    """A URL may give up the name, not the chain."""
    made = context(REMOTE + "?sslmode=verify-ca")
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert not made.check_hostname


def test_only_the_explicit_setting_gives_up_authentication() -> None:
    """`require` encrypts without checking, and only by the setting."""
    assert context(REMOTE + "?sslmode=require").verify_mode is ssl.CERT_REQUIRED
    assert context(REMOTE, "require").verify_mode is ssl.CERT_NONE


def test_loopback_needs_no_tls() -> None:
    """On this machine the connection is plain unless the URL asks for more."""
    assert tls_context(parse("postgresql://localhost/app")) is False
    assert isinstance(
        tls_context(parse("postgresql://localhost/app?sslmode=require")), ssl.SSLContext
    )


@pytest.mark.parametrize("parameter", ["sslrootcert", "sslcert"])
@pytest.mark.parametrize("kind", ["missing", "no PEM"])
def test_a_certificate_file_that_is_unusable_gets_a_sentence(
    parameter: str, kind: str, tmp_path: Path
) -> None:
    """A missing or broken file is a ConfigError, not a traceback of ssl."""
    file = tmp_path / "certificate.pem"
    if kind == "no PEM":
        file.write_text("hello")
    with pytest.raises(ConfigError, match=parameter):
        tls_context(parse(f"{REMOTE}?{parameter}={file}"))


def test_direct_tls_announces_the_protocol() -> None:
    """`sslnegotiation=direct` is handed to the driver."""
    url = parse(REMOTE + "?sslnegotiation=direct")
    assert url.connect_kwargs()["direct_tls"] is True
    assert isinstance(tls_context(url), ssl.SSLContext)
