import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcontext.errors import ConfigError
from pgcontext.url import DatabaseUrl, Pooling, TlsMode, classify, parse

SECRET = "s3cr3t-horse"  # noqa: S105 (the password that must never show)

# One row a form of address that a provider hands out: URL, provider, what stands between, and
# whether its pooler keeps named statements apart.
PROVIDERS: list[tuple[str, str, Pooling, bool]] = [
    (
        "postgresql://u:p@ep-cool-rain-1-pooler.eu-central-1.aws.neon.tech/db?sslmode=require",
        "Neon",
        "transaction",
        True,
    ),
    ("postgresql://u:p@ep-cool-rain-1.eu-central-1.aws.neon.tech/db", "Neon", "direct", False),
    (
        "postgres://postgres.abc:p@aws-0-eu-west-1.pooler.supabase.com:6543/postgres",
        "Supabase",
        "transaction",
        False,
    ),
    (
        "postgres://postgres.abc:p@aws-0-eu-west-1.pooler.supabase.com:5432/postgres",
        "Supabase",
        "session",
        False,
    ),
    ("postgresql://postgres:p@db.abc.supabase.co:6543/postgres", "Supabase", "transaction", False),
    ("postgresql://postgres:p@db.abc.supabase.co:5432/postgres", "Supabase", "direct", False),
    (
        "postgresql://u:p@shop.proxy-c0ffee.eu-west-1.rds.amazonaws.com/db",
        "Amazon RDS Proxy",
        "transaction",
        False,
    ),
    (
        "postgresql://u:p@shop.c0ffee.eu-west-1.rds.amazonaws.com:5432/db",
        "Amazon RDS",
        "direct",
        False,
    ),
    (
        "postgresql://u:p@shop.cluster-c0ffee.eu-west-1.rds.amazonaws.com:5432/db",
        "Amazon RDS",
        "direct",
        False,
    ),
    ("postgresql://u:p@shop.postgres.database.azure.com:6432/db", "Azure", "transaction", False),
    ("postgresql://u:p@shop.postgres.database.azure.com:5432/db", "Azure", "direct", False),
    (
        "postgresql://u:p@shop-do-user-1-0.g.db.ondigitalocean.com:25061/pool",
        "DigitalOcean",
        "transaction",
        False,
    ),
    (
        "postgresql://u:p@shop-do-user-1-0.g.db.ondigitalocean.com:25060/defaultdb",
        "DigitalOcean",
        "direct",
        False,
    ),
    (
        "postgres://u:p@p.abc.db.postgresbridge.com:5431/postgres",
        "Crunchy Bridge",
        "transaction",
        False,
    ),
    ("postgres://u:p@p.abc.db.postgresbridge.com:5432/postgres", "Crunchy Bridge", "direct", False),
    ("postgres://u:p@pooled.db.prisma.io:5432/postgres", "Prisma Postgres", "transaction", False),
    ("postgres://u:p@db.prisma.io:5432/postgres", "Prisma Postgres", "direct", False),
    ("postgresql://u:p@aws.connect.pg.psdb.cloud:6432/db", "PlanetScale", "transaction", False),
    ("postgresql://u:p@aws.connect.pg.psdb.cloud:5432/db", "PlanetScale", "direct", False),
    ("postgresql://u:p@abc.horizon.psdb.cloud:6432/db", "PlanetScale", "transaction", False),
    ("postgresql://u:p@abc.horizon.psdb.cloud:5432/db", "PlanetScale", "direct", False),
    (
        "postgres://tsdbadmin:p@a.b.tsdb.cloud.timescale.com:31234/tsdb_transaction",
        "Tiger",
        "transaction",
        False,
    ),
    ("postgres://tsdbadmin:p@a.b.tsdb.cloud.timescale.com:31234/tsdb", "Tiger", "direct", False),
    ("postgresql://u:p@10.0.0.7:6432/db", "PgBouncer", "transaction", False),
    ("postgresql://u:p@localhost:6432/db", "PgBouncer", "transaction", False),
    ("postgresql://u:p@localhost:5432/db", "local PostgreSQL", "direct", False),
    ("postgresql://u:p@db.example.org:5432/db", "unknown", "unknown", False),
]


@pytest.mark.parametrize(("url", "provider", "pooling", "tracks"), PROVIDERS)
def test_every_provider_is_told_by_its_address(
    url: str, provider: str, pooling: Pooling, tracks: bool
) -> None:
    """The provider and its kind of pooler follow from host, port and database name."""
    verdict = parse(url).verdict
    assert (verdict.provider, verdict.pooling) == (provider, pooling)
    assert verdict.tracks_statements is tracks


@pytest.mark.parametrize("url", [row[0] for row in PROVIDERS if row[2] in {"direct", "unknown"}])
def test_a_direct_address_comes_with_its_pooled_form(url: str) -> None:
    """Whoever has the direct address is told what the pooled one looks like."""
    assert parse(url).verdict.pooled_form


def test_the_pooled_form_of_neon_is_the_host_to_use() -> None:
    """Where the pooled host follows from the direct one, it is spelled out."""
    verdict = classify("ep-cool-rain-1.eu-central-1.aws.neon.tech", 5432, "db")
    assert verdict.pooled_form == "ep-cool-rain-1-pooler.eu-central-1.aws.neon.tech"


def test_case_and_the_final_dot_of_a_host_do_not_matter() -> None:
    """Host names are compared as the DNS compares them."""
    assert classify("EP-X-pooler.Aws.NEON.tech.", 5432, "db").pooling == "transaction"


def test_a_look_alike_host_is_not_taken_for_a_provider() -> None:
    """Only the end of a host name says whose it is."""
    assert classify("neon.tech.example.org", 5432, "db").provider == "unknown"
    assert classify("notneon.tech", 5432, "db").provider == "unknown"


@pytest.mark.parametrize(
    "noise",
    [
        "channel_binding=require",
        "pgbouncer=true",
        "connection_limit=1",
        "pool_timeout=0",
        "schema=public",
        "supa=base-pooler.x",
        "options=endpoint%3Dep-cool-rain-1",
        "sslnegotiation=direct",
        "uselibpqcompat=true",
    ],
)
def test_noise_of_providers_is_dropped(noise: str) -> None:
    """What providers put into their URLs never reaches the server as a setting."""
    kwargs = parse(f"postgresql://u:p@db.example.org/app?{noise}").connect_kwargs()
    assert kwargs.keys() <= {"host", "port", "user", "password", "database", "direct_tls"}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("statement_timeout=5", "statement_timeout"),
        ("search_path=app", "search_path"),
        ("jit=off&sslmode=require", "jit"),
        ("hnsw.ef_search=200", "hnsw.ef_search"),
        ("SSLMODE=require", "SSLMODE"),
    ],
)
def test_unknown_parameters_are_refused_by_name(query: str, name: str) -> None:
    """A parameter that would silently do nothing, or break at connect, is named."""
    with pytest.raises(ConfigError, match=name):
        parse(f"postgresql://u:{SECRET}@db.example.org/app?{query}")


@pytest.mark.parametrize("options", ["-c%20jit%3Doff", "-csearch_path%3Dapp"])
def test_settings_in_options_are_refused(options: str) -> None:
    """Poolers refuse settings at connect, so they are refused before."""
    with pytest.raises(ConfigError, match="options"):
        parse(f"postgresql://u:p@db.example.org/app?options={options}")


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://u:a@b@db.example.org/app", "a@b"),
        ("postgresql://u:a%40b@db.example.org/app", "a@b"),
        ("postgresql://u:a/b:c#d@db.example.org/app", "a/b:c#d"),
        ("postgresql://u:100%@db.example.org/app", "100%"),
        ("postgresql://u:p%C3%A4ss@db.example.org/app", "päss"),
        ("postgresql://u:@db.example.org/app", None),
        ("postgresql://u@db.example.org/app?password=x%26y", "x&y"),
    ],
)
def test_passwords_with_special_characters_stay_passwords(url: str, password: str | None) -> None:
    """No character of a password moves into the host."""
    parsed = parse(url)
    assert parsed.password == password
    assert parsed.hosts == (("db.example.org", 5432),)
    assert (parsed.user, parsed.database) == ("u", "app")


def test_a_question_mark_in_a_password_gets_a_sentence_that_helps() -> None:
    """What cannot be told apart is asked for in its escaped form, without showing it."""
    with pytest.raises(ConfigError, match="%3F") as caught:
        parse(f"postgresql://u:{SECRET}?x@db.example.org/app")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///app", (("localhost", 5432),)),
        ("postgresql://[::1]:6000/app", (("::1", 6000),)),
        ("postgresql://u@[2001:db8::7]/app", (("2001:db8::7", 5432),)),
        ("postgresql://one,two:6000/app", (("one", 5432), ("two", 6000))),
        ("postgresql:///app?host=one,two&port=1,2", (("one", 1), ("two", 2))),
        ("postgresql:///app?host=one,two&port=7", (("one", 7), ("two", 7))),
        ("postgresql:///app?host=/var/run/postgresql", (("/var/run/postgresql", 5432),)),
        ("postgresql:///app?host=/tmp/pg&port=6000", (("/tmp/pg", 6000),)),  # noqa: S108
        ("postgresql://u@%2Ftmp%2Fpg/app", (("/tmp/pg", 5432),)),  # noqa: S108
    ],
)
def test_hosts_of_every_form(url: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """IPv6, several hosts and Unix sockets are understood as libpq understands them."""
    parsed = parse(url)
    assert parsed.hosts == hosts
    assert parsed.connect_kwargs()["host"] == [host for host, _ in hosts]
    assert parsed.connect_kwargs()["port"] == [port for _, port in hosts]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "db.example.org",
        "mysql://u:p@db.example.org/app",
        "postgresql:/db.example.org/app",
        f"host=db.example.org password={SECRET}",
        f"https://u:{SECRET}@db.example.org/app",
        f"postgresql://u:{SECRET}@db.example.org:port/app",
        f"postgresql://u:{SECRET}@db.example.org:0/app",
        f"postgresql://u:{SECRET}@db.example.org:65536/app",
        f"postgresql://u:{SECRET}@db.example.org:-1/app",
        f"postgresql://u:{SECRET}@db.example.org:²/app",
        f"postgresql://u:{SECRET}@[::1/app",
        f"postgresql://u:{SECRET}@[::1]x/app",
        f"postgresql://u:{SECRET}@::1/app",
        f"postgresql://u:{SECRET}@db.example.org/app?sslmode=always",
        f"postgresql://u:{SECRET}@db.example.org/app?ssl=maybe",
        f"postgresql://u:{SECRET}@db.example.org/app?connect_timeout=soon",
        f"postgresql://u:{SECRET}@db.example.org/app?connect_timeout=²",
    ],
)
def test_what_is_no_url_is_refused_in_one_sentence_without_the_password(url: str) -> None:
    """A URL that can't be used is a ConfigError that says why and shows no secret."""
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert SECRET not in repr(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"]
)
def test_schemes_people_already_have_are_understood(scheme: str) -> None:
    """A URL made for SQLAlchemy works here too."""
    assert parse(f"{scheme}://u:p@db.example.org/app").database == "app"


def test_white_space_around_a_url_does_not_matter() -> None:
    """A secret store often adds a newline."""
    assert parse(" postgresql://u:p@db.example.org/app\n").database == "app"


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("postgresql://db.example.org/app", "verify-full"),
        ("postgresql://db.example.org/app?sslmode=prefer", "verify-full"),
        ("postgresql://db.example.org/app?sslmode=require", "verify-full"),
        ("postgresql://db.example.org/app?ssl=true", "verify-full"),
        ("postgresql://db.example.org/app?sslmode=verify-ca", "verify-ca"),
        ("postgresql://db.example.org/app?sslmode=verify-full", "verify-full"),
        ("postgresql://one,db.example.org/app", "verify-full"),
        ("postgresql://localhost/app", "disable"),
        ("postgresql://127.0.0.1/app?sslmode=prefer", "disable"),
        ("postgresql://[::1]/app", "disable"),
        ("postgresql:///app?host=/tmp", "disable"),
        ("postgresql://localhost/app?sslmode=require", "require"),
        ("postgresql://localhost/app?sslmode=verify-full", "verify-full"),
        ("postgresql://localhost,db.example.org/app", "verify-full"),
    ],
)
def test_the_server_is_authenticated_off_loopback(url: str, tls: TlsMode) -> None:
    """Off loopback the certificate is checked, whatever weaker mode the URL names."""
    assert parse(url).tls == tls


def test_plaintext_off_loopback_is_refused_unless_told_twice() -> None:
    """`sslmode=disable` for another machine needs the explicit setting."""
    url = "postgresql://db.example.org/app?sslmode=disable"
    with pytest.raises(ConfigError, match="PGCONTEXT_TLS=disable"):
        parse(url)
    assert parse(url, tls="disable").tls == "disable"


def test_the_own_certificate_authority_is_kept_and_system_means_the_default() -> None:
    """`sslrootcert=system` is the default store, any other value a file."""
    address = "postgresql://db.example.org/app?sslmode=verify-full&sslrootcert="
    assert parse(address + "system").sslrootcert is None
    assert parse(address + "/etc/ca.pem").sslrootcert == "/etc/ca.pem"


def test_secrets_are_masked_wherever_a_url_may_be_shown() -> None:
    """Neither repr, str, format nor masked() shows the password."""
    url = parse(f"postgresql://us%40er:{SECRET}@db.example.org:6543/app?sslmode=require")
    for shown in (repr(url), str(url), f"{url}", url.masked(), repr([url])):
        assert SECRET not in shown
        assert "***" in shown
    assert url.masked() == "postgresql://us%40er:***@db.example.org:6543/app"


HOSTS = st.one_of(
    st.sampled_from(["localhost", "db.example.org", "10.0.0.7", "::1", "2001:db8::7"]),
    st.sampled_from(["/tmp", "/var/run/postgresql", "/srv/my db"]),  # noqa: S108
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(
    hosts=st.lists(st.tuples(HOSTS, st.integers(1, 65_535)), min_size=1, max_size=3),
    user=TEXT,
    password=st.none() | TEXT,
    database=TEXT,
    tls=st.sampled_from(["disable", "require", "verify-ca", "verify-full"]),
)
def test_a_url_written_out_is_read_back_as_the_same(
    hosts: list[tuple[str, int]],
    user: str,
    password: str | None,
    database: str,
    tls: TlsMode,
) -> None:
    """`text()` loses nothing, whatever characters the parts have."""
    url = DatabaseUrl(hosts=tuple(hosts), user=user, password=password, database=database, tls=tls)
    assert parse(url.text(), tls=tls) == url


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Whatever stands in the environment, the answer is a URL or a ConfigError."""
    for candidate in (text, f"postgresql://{text}", f"postgresql://u:p@h/d?{text}"):
        try:
            url = parse(candidate)
        except ConfigError:
            continue
        assert url.hosts
        assert all(0 < port < 65_536 for _, port in url.hosts)


def test_a_url_pickles() -> None:
    """A settings object may cross to another process."""
    url = parse("postgresql://u:p@one,two:6000/app")
    assert pickle.loads(pickle.dumps(url)) == url  # noqa: S301 (our own bytes)
