"""The TLS context of a connection: verified unless the user says otherwise in so many words."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from pgcontext.errors import ConfigError

if TYPE_CHECKING:
    from pgcontext.url import DatabaseUrl


def tls_context(url: DatabaseUrl) -> ssl.SSLContext | bool:
    """Make what asyncpg takes as `ssl`: a context, or False for a plaintext connection.

    Reads certificate files, so it is called when connecting, not when the URL is judged.

    Raises:
        ConfigError: a certificate file cannot be read.
    """
    if url.tls == "disable":
        return False
    try:
        context = ssl.create_default_context(cafile=url.sslrootcert)
        if url.sslcert:
            context.load_cert_chain(url.sslcert, url.sslkey)
    except (OSError, ssl.SSLError) as error:
        msg = (
            "A certificate file that the database URL names (sslrootcert, sslcert or sslkey) "
            "cannot be read or is not a PEM file."
        )
        raise ConfigError(msg) from error
    if url.tls != "verify-full":
        context.check_hostname = False
    if url.tls == "require":
        context.verify_mode = ssl.CERT_NONE
    if url.tls_direct:
        context.set_alpn_protocols(["postgresql"])
    return context
