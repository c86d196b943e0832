"""Database URLs: parsed, judged and masked by us, without I/O.

asyncpg sends every parameter it does not know to the server as a setting, which servers and
poolers refuse, and it cannot tell a pooler from a server. So the URL is taken apart here: what is
known is used, known noise of providers is dropped, the rest is refused by name.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from pgcontext.errors import ConfigError

Pooling: TypeAlias = Literal["transaction", "session", "direct", "unknown"]
"""What stands between us and the server: a transaction pooler, a session pooler, nothing."""

TlsMode: TypeAlias = Literal["disable", "require", "verify-ca", "verify-full"]

DEFAULT_PORT: Final = 5432
PORTS: Final = 65_536

# Parameters that providers and other clients put into URLs and that mean nothing to us.
NOISE_PARAMETERS: Final = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "connection_limit",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "max_idle_connection_lifetime",
        "pgbouncer",
        "pool_max_conns",
        "pool_timeout",
        "prepareThreshold",
        "prepared_statement_cache_size",
        "prepared_statements",
        "schema",
        "single_use_connections",
        "socket_timeout",
        "sslaccept",
        "statement_cache_size",
        "supa",
        "uselibpqcompat",
        "workaround",
    }
)
KNOWN_PARAMETERS: Final = frozenset(
    {
        "application_name",
        "connect_timeout",
        "dbname",
        "host",
        "options",
        "password",
        "port",
        "ssl",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
        "user",
    }
)
SCHEME: Final = re.compile(r"^postgres(ql)?(\+(asyncpg|psycopg|psycopg2|psycopg_async))?://")
SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class Verdict(NamedTuple):
    """What a provider's address says about the connection.

    Attributes:
        provider: its name, for sentences.
        pooling: what stands between.
        tracks_statements: the pooler keeps named statements apart, so caching them is safe.
        pooled_form: how the pooled URL of that provider looks; None when this one is pooled.
    """

    provider: str
    pooling: Pooling
    tracks_statements: bool = False
    pooled_form: str | None = None


class DatabaseUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A PostgreSQL URL taken apart. Its repr and str never show the password."""

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    database: str | None
    tls: TlsMode
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    tls_direct: bool = False
    application_name: str | None = None
    target_session_attrs: str | None = None
    connect_seconds: float | None = None

    def __repr__(self) -> str:
        """Show the URL without its secret."""
        return f"DatabaseUrl({self.masked()!r})"

    __str__ = __repr__

    def masked(self) -> str:
        """Return the URL with the password replaced by ***, as it may stand in a log."""
        return self._written(password="***", parameters={})  # noqa: S106 (no secret)

    def text(self) -> str:
        """Return the whole URL, password included, for another process's environment."""
        seconds = self.connect_seconds
        parameters = {
            "sslmode": None if self.is_local and self.tls == "disable" else self.tls,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "sslnegotiation": "direct" if self.tls_direct else None,
            "target_session_attrs": self.target_session_attrs,
            "application_name": self.application_name,
            "connect_timeout": None if seconds is None else f"{seconds:.0f}",
        }
        return self._written(password=quote(self.password or "", safe=""), parameters=parameters)

    def _written(self, *, password: str, parameters: dict[str, str | None]) -> str:
        user = quote(self.user or "", safe="")
        secret = f":{password}" if self.password else ""
        at = "@" if user or secret else ""
        # A socket's directory can't stand where a host does together with a port.
        sockets = any(host.startswith(("/", "@")) for host, _ in self.hosts)
        if sockets:
            parameters = {
                "host": ",".join(host for host, _ in self.hosts),
                "port": ",".join(str(port) for _, port in self.hosts),
                **parameters,
            }
        hosts = "" if sockets else ",".join(_host_text(host, port) for host, port in self.hosts)
        query = "&".join(
            f"{key}={quote(value, safe='/,')}" for key, value in parameters.items() if value
        )
        path = f"/{quote(self.database or '', safe='')}"
        return f"postgresql://{user}{secret}{at}{hosts}{path}" + (f"?{query}" if query else "")

    @property
    def is_local(self) -> bool:
        """Whether every host is this machine: loopback or a Unix socket."""
        return all(_is_local(host) for host, _ in self.hosts)

    @property
    def verdict(self) -> Verdict:
        """What the address says about poolers; of several hosts the first decides."""
        host, port = self.hosts[0]
        return classify(host, port, self.database or "")

    def connect_kwargs(self) -> dict[str, Any]:
        """Return the arguments for `asyncpg.connect`, all but `ssl`."""
        kwargs: dict[str, Any] = {
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.password,
            "database": self.database,
        }
        if self.tls_direct:
            kwargs["direct_tls"] = True
        if self.target_session_attrs:
            kwargs["target_session_attrs"] = self.target_session_attrs
        return kwargs


def parse(text: str, *, tls: TlsMode | None = None) -> DatabaseUrl:
    """Take a URL apart.

    Args:
        text: `postgresql://user:password@host:port/database?parameters`; several hosts separated
            by commas, IPv6 in brackets, a Unix socket directory as `?host=/path`.
        tls: the caller's explicit wish, which outranks the URL's `sslmode`.

    Raises:
        ConfigError: the URL is not one, or has a parameter that is neither used nor known noise.
    """
    if not isinstance(cast("object", text), str):
        msg = "The database URL must be text."
        raise ConfigError(msg)
    text = text.strip()
    scheme = SCHEME.match(text)
    if not scheme:
        msg = "The database URL must start with postgresql:// (or postgres://)."
        raise ConfigError(msg)
    address, _, query = text[scheme.end() :].partition("?")
    userinfo, _, location = address.rpartition("@")
    if "@" in query and not userinfo:
        msg = "The user name or password of the database URL has a '?': write it as %3F."
        raise ConfigError(msg)
    host_list, _, path = location.partition("/")
    parameters = _parameters(query)
    user, _, password = userinfo.partition(":")
    # As in libpq, a `host` parameter has bare hosts; their ports stand in `port`.
    addresses: list[tuple[str, str | None]] = (
        [(host, None) for host in parameters["host"].split(",")]
        if parameters.get("host")
        else [_split_port(item) for item in unquote(host_list).split(",")]
    )
    hosts = _hosts(addresses, parameters.get("port"))
    local = all(_is_local(host) for host, _ in hosts)
    return DatabaseUrl(
        hosts=hosts,
        user=unquote(user) or parameters.get("user"),
        password=unquote(password) or parameters.get("password"),
        database=unquote(path) or parameters.get("dbname"),
        tls=tls or _tls(parameters.get("sslmode"), parameters.get("ssl"), local=local),
        sslrootcert=_unless_system(parameters.get("sslrootcert")),
        sslcert=parameters.get("sslcert"),
        sslkey=parameters.get("sslkey"),
        tls_direct=parameters.get("sslnegotiation") == "direct",
        application_name=parameters.get("application_name"),
        target_session_attrs=parameters.get("target_session_attrs"),
        connect_seconds=_seconds(parameters.get("connect_timeout")),
    )


def _parameters(query: str) -> dict[str, str]:
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(parameters.keys() - KNOWN_PARAMETERS - NOISE_PARAMETERS)
    if unknown:
        msg = (
            f"The database URL has parameters that pgcontext does not know: {', '.join(unknown)}. "
            "Remove them; settings of the server belong to the role (ALTER ROLE … SET …)."
        )
        raise ConfigError(msg)
    options = parameters.get("options", "")
    # `endpoint=` and `project=` tell old clients' servers where to go; TLS does that for us.
    if options and not re.fullmatch(r"(endpoint|project|reference)=[\w.-]+", options):
        msg = (
            "The database URL has 'options': poolers refuse settings at connect. Remove it; "
            "give the role the settings instead (ALTER ROLE … SET …)."
        )
        raise ConfigError(msg)
    return parameters


def _hosts(
    addresses: list[tuple[str, str | None]], ports: str | None
) -> tuple[tuple[str, int], ...]:
    port_list = ports.split(",") if ports else []
    result: list[tuple[str, int]] = []
    for index, (host, own_port) in enumerate(addresses):
        port = own_port
        if port is None and port_list:
            port = port_list[index if len(port_list) > 1 and index < len(port_list) else 0]
        if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < PORTS):
            msg = "The port in the database URL must be a number from 1 to 65535."
            raise ConfigError(msg)
        result.append((host or "localhost", int(port) if port else DEFAULT_PORT))
    return tuple(result)


def _split_port(item: str) -> tuple[str, str | None]:
    if item.startswith("/"):
        return item, None
    if item.startswith("["):
        host, bracket, rest = item[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            msg = "The IPv6 address in the database URL must stand in brackets: [::1]:5432."
            raise ConfigError(msg)
        return host, rest[1:] or None
    host, _, port = item.partition(":")
    return host, port or None


def _tls(sslmode: str | None, ssl: str | None, *, local: bool) -> TlsMode:
    if sslmode is None and ssl is not None:
        sslmode = {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(
            ssl.lower(), ssl
        )
    if sslmode is not None and sslmode not in SSLMODES:
        msg = f"sslmode in the database URL must be one of: {', '.join(SSLMODES)}."
        raise ConfigError(msg)
    if local:
        if sslmode in {None, "disable", "allow", "prefer"}:
            return "disable"
        return sslmode  # type: ignore[return-value]  # one of the three TlsModes left
    if sslmode == "disable":
        msg = (
            "The database URL says sslmode=disable for another machine: passwords and "
            "conversations would cross the network readable. Remove it, or set "
            "PGCONTEXT_TLS=disable if that network is trusted."
        )
        raise ConfigError(msg)
    return "verify-ca" if sslmode == "verify-ca" else "verify-full"


def _unless_system(path: str | None) -> str | None:
    return None if path in {None, "", "system"} else path


def _seconds(text: str | None) -> float | None:
    if text is None or text == "":
        return None
    if not re.fullmatch("[0-9]{1,6}", text):
        msg = "connect_timeout in the database URL must be a number of seconds."
        raise ConfigError(msg)
    return float(text) or None


def _host_text(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}"


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Provider(NamedTuple):
    """How a provider's pooled address differs from its direct one.

    Attributes:
        name: for sentences.
        hosts: a pattern of its host names, direct and pooled.
        pooled: a pattern of the pooled ones, read as `host:port/database`.
        pooled_form: how to write the pooled address; `{host}` is the one at hand.
        tracks_statements: its pooler keeps named statements apart.
        session: a pattern of those in session mode.
    """

    name: str
    hosts: str
    pooled: str
    pooled_form: str
    tracks_statements: bool = False
    session: str | None = None


# The host alone does not tell a pooler: at most providers the port or the database name does.
# The first row that matches counts.
# Source: the providers' documentation, 2026; each form is a case in tests/unit/test_url.py.
_PROVIDERS: Final = (
    _Provider(
        "Neon",
        r"\.neon\.(tech|build)$",
        r"^[^.]*-pooler\.",
        "{label}-pooler.{domain}",
        tracks_statements=True,
    ),
    _Provider(
        "Supabase",
        r"\.pooler\.supabase\.com$",
        r":6543/",
        "{host}:6543",
        session=r":5432/",
    ),
    _Provider("Supabase", r"\.supabase\.com?$", r":6543/", "{host}:6543"),
    _Provider("Amazon RDS Proxy", r"\.proxy-[a-z0-9]+\.[^.]+\.rds\.amazonaws\.", r"", "{host}"),
    _Provider(
        "Amazon RDS",
        r"\.rds\.amazonaws\.com(\.cn)?$",
        r"^$",  # none: its pooler is the row above
        "<proxy>.proxy-<id>.<region>.rds.amazonaws.com (an RDS Proxy)",
    ),
    _Provider("Azure", r"\.postgres\.database\.azure\.com$", r":6432/", "{host}:6432"),
    _Provider("DigitalOcean", r"\.ondigitalocean\.com$", r":25061/", "{host}:25061"),
    _Provider("Crunchy Bridge", r"\.postgresbridge\.com$", r":5431/", "{host}:5431"),
    _Provider("Prisma Postgres", r"(^|\.)db\.prisma\.io$", r"^pooled\.", "pooled.db.prisma.io"),
    _Provider("PlanetScale", r"\.(pg|horizon)\.psdb\.cloud$", r":6432/", "{host}:6432"),
    _Provider(
        "Tiger",
        r"\.(tsdb\.cloud\.timescale\.com|tiger\.cloud)$",
        r"/tsdb_transaction$",
        "the pooler's port, database tsdb_transaction",
        session=r"/tsdb_session$",
    ),
    # Whoever runs a pooler of their own: PgBouncer, PgCat and Odyssey listen there by habit.
    _Provider("PgBouncer", r"", r":6432/", "{host}:6432 (PgBouncer)"),
)


def classify(host: str, port: int, database: str) -> Verdict:
    """Tell the provider and the kind of pooler from an address."""
    host = host.lower().rstrip(".")
    address = f"{host}:{port}/{database}"
    provider = next(row for row in _PROVIDERS if re.search(row.hosts, host))
    if re.search(provider.pooled, address):
        return Verdict(provider.name, "transaction", tracks_statements=provider.tracks_statements)
    if provider.session and re.search(provider.session, address):
        return Verdict(provider.name, "session")
    label, _, domain = host.partition(".")
    pooled_form = provider.pooled_form.format(host=host, label=label, domain=domain)
    if provider.hosts:
        return Verdict(provider.name, "direct", pooled_form=pooled_form)
    if _is_local(host) and port == DEFAULT_PORT:
        return Verdict("local PostgreSQL", "direct", pooled_form=pooled_form)
    return Verdict("unknown", "unknown", pooled_form=pooled_form)
