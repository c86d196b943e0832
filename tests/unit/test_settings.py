import math
from typing import Any

import pytest

from pgcontext import ContextStore, limits
from pgcontext.errors import ConfigError
from pgcontext.settings import Settings
from tests.support.modules import without_packages

NEON = "postgresql://u:p@ep-x-pooler.eu.aws.neon.tech/db"
NEON_DIRECT = "postgresql://u:p@ep-x.eu.aws.neon.tech/db"
SUPABASE = "postgresql://u:p@aws-0.pooler.supabase.com:6543/db"
SUPABASE_SESSION = "postgresql://u:p@aws-0.pooler.supabase.com:5432/db"
LOCAL = "postgresql://u:p@localhost/db"
UNKNOWN = "postgresql://u:p@db.example.org/db"
FUNCTIONS = [{"AWS_LAMBDA_FUNCTION_NAME": "chat"}, {"VERCEL": "1"}]


def masked(settings: Settings) -> str | None:
    """Say which URL the store would connect to."""
    return settings.url.masked() if settings.url else None


def test_an_empty_environment_means_the_embedded_database_and_the_defaults() -> None:
    """Without any variable everything has its documented default."""
    settings = Settings.from_env({})
    assert settings.url is None
    assert settings.direct_url is None
    assert settings.pool_size == limits.POOL_CONNECTIONS_MAX == 3
    assert (settings.embedder, settings.dimensions) == ("local", 256)
    assert settings.schema == "public"
    assert settings.tokenizer == "o200k_base"
    assert settings.embedding_model is None


def test_a_set_but_empty_variable_counts_as_unset() -> None:
    """Deployment tools often set every variable they know, empty."""
    env = dict.fromkeys(
        ["DATABASE_URL", "PGCONTEXT_POOL_SIZE", "PGCONTEXT_TLS", "PGCONTEXT_SCHEMA"], ""
    )
    assert Settings.from_env(env) == Settings.from_env({})


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({"DATABASE_URL": NEON}, "neon"),
        ({"POSTGRES_URL": SUPABASE}, "supabase"),
        ({"DATABASE_URL": NEON, "POSTGRES_URL": SUPABASE}, "neon"),
        ({"DATABASE_URL": UNKNOWN, "DATABASE_CONNECTION_POOL_URL": SUPABASE}, "supabase"),
    ],
)
def test_names_people_already_have_are_read(env: dict[str, str], url: str) -> None:
    """The variables of Vercel, Neon, Supabase and Heroku work as they are."""
    assert url in (masked(Settings.from_env(env)) or "")


@pytest.mark.parametrize(
    "env",
    [
        {"DATABASE_URL": NEON, "DATABASE_URL_UNPOOLED": NEON_DIRECT},
        {"POSTGRES_URL": NEON, "POSTGRES_URL_NON_POOLING": NEON_DIRECT},
        {"DATABASE_URL": NEON, "DATABASE_UNPOOLED_URL": NEON_DIRECT},
        {"DATABASE_CONNECTION_POOL_URL": UNKNOWN, "DATABASE_URL": NEON_DIRECT},
        {"DATABASE_URL": NEON_DIRECT},
    ],
)
def test_migrations_get_the_direct_url(env: dict[str, str]) -> None:
    """Long work goes over the unpooled URL, or a DATABASE_URL that is direct."""
    direct = Settings.from_env(env).direct_url
    assert direct is not None
    assert direct.hosts[0][0] == "ep-x.eu.aws.neon.tech"


@pytest.mark.parametrize(
    "env",
    [{"DATABASE_URL": SUPABASE}, {"DATABASE_URL": UNKNOWN, "PGCONTEXT_POOLER": "transaction"}],
)
def test_migrations_refuse_a_transaction_pooler(env: dict[str, str]) -> None:
    """Without a direct URL the sentence says which variable to set."""
    with pytest.raises(ConfigError, match="DATABASE_URL_UNPOOLED"):
        _ = Settings.from_env(env).direct_url


def test_migrations_refuse_a_pooler_in_the_unpooled_variable() -> None:
    """A transaction pooler in DATABASE_URL_UNPOOLED is a mistake to name."""
    with pytest.raises(ConfigError, match="direct"):
        _ = Settings.from_env({"DATABASE_URL_UNPOOLED": SUPABASE}).direct_url


def test_migrations_accept_a_session_pooler() -> None:
    """A session pooler keeps a session, so migrations may use it."""
    assert Settings.from_env({"DATABASE_URL": SUPABASE_SESSION}).direct_url is not None


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("url", "form"), [(NEON_DIRECT, "ep-x-pooler.eu.aws.neon.tech"), (UNKNOWN, "PGCONTEXT_POOLER")]
)
def test_a_function_refuses_a_direct_or_unknown_url(
    function: dict[str, str], url: str, form: str
) -> None:
    """The refusal names the provider's pooled form and the way to say otherwise."""
    with pytest.raises(ConfigError, match=form):
        Settings.from_env({**function, "DATABASE_URL": url})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_accepts_a_pooled_url_or_the_users_word(function: dict[str, str]) -> None:
    """A pooled URL passes, and so does PGCONTEXT_POOLER, whatever it says."""
    assert Settings.from_env({**function, "DATABASE_URL": NEON}).in_function
    assert Settings.from_env({**function, "DATABASE_URL": SUPABASE_SESSION}).in_function
    for pooler in ("transaction", "session", "direct"):
        env = {**function, "DATABASE_URL": UNKNOWN, "PGCONTEXT_POOLER": pooler}
        assert Settings.from_env(env).pooling == pooler


@pytest.mark.parametrize(
    ("env", "caches"),
    [
        ({"DATABASE_URL": LOCAL}, True),
        ({"DATABASE_URL": NEON_DIRECT}, True),
        ({"DATABASE_URL": SUPABASE_SESSION}, True),
        ({"DATABASE_URL": NEON}, True),
        ({"DATABASE_URL": SUPABASE}, False),
        ({"DATABASE_URL": UNKNOWN}, False),
        ({"DATABASE_URL": "postgresql://u:p@localhost:6432/db"}, False),
        ({"DATABASE_URL": UNKNOWN, "PGCONTEXT_POOLER": "direct"}, True),
        ({"DATABASE_URL": LOCAL, "PGCONTEXT_POOLER": "transaction"}, False),
        ({"DATABASE_URL": SUPABASE, "PGCONTEXT_STATEMENT_CACHE": "on"}, True),
        ({"DATABASE_URL": LOCAL, "PGCONTEXT_STATEMENT_CACHE": "off"}, False),
    ],
)
def test_statements_are_cached_only_where_it_is_safe(env: dict[str, str], caches: bool) -> None:
    """A kept statement behind a pooler that doesn't track it returns others' rows."""
    assert Settings.from_env(env).caches_statements is caches


@pytest.mark.parametrize(
    ("env", "accepted"),
    [
        ({"DATABASE_URL": NEON, "PGCONTEXT_POOL_SIZE": "1"}, True),
        ({"DATABASE_URL": NEON, "PGCONTEXT_POOL_SIZE": "3"}, True),
        ({"DATABASE_URL": NEON, "PGCONTEXT_POOL_SIZE": "4"}, False),
        ({"DATABASE_URL": UNKNOWN, "PGCONTEXT_POOL_SIZE": "4"}, False),
        ({"DATABASE_URL": LOCAL, "PGCONTEXT_POOL_SIZE": "100"}, True),
        ({"DATABASE_URL": LOCAL, "PGCONTEXT_POOL_SIZE": "101"}, False),
        ({"DATABASE_URL": LOCAL, "PGCONTEXT_POOL_SIZE": "0"}, False),
        ({"PGCONTEXT_POOL_SIZE": "20"}, True),
        (
            {
                "DATABASE_URL": UNKNOWN,
                "PGCONTEXT_POOLER": "direct",
                "PGCONTEXT_POOL_SIZE": "4",
                "VERCEL": "1",
            },
            False,
        ),
    ],
)
def test_more_than_three_connections_need_a_direct_url(env: dict[str, str], accepted: bool) -> None:
    """A larger pool is refused, never cut down, unless the connection is direct."""
    if accepted:
        assert Settings.from_env(env).pool_size == int(env["PGCONTEXT_POOL_SIZE"])
        return
    with pytest.raises(ConfigError, match="PGCONTEXT_POOL_SIZE"):
        Settings.from_env(env)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGCONTEXT_POOLER", "pgbouncer"),
        ("PGCONTEXT_POOL_SIZE", "three"),
        ("PGCONTEXT_POOL_SIZE", "-1"),
        ("PGCONTEXT_POOL_SIZE", "2.5"),
        ("PGCONTEXT_POOL_SIZE", "²"),
        ("PGCONTEXT_STATEMENT_CACHE", "yes"),
        ("PGCONTEXT_DIMENSIONS", "0"),
        ("PGCONTEXT_DIMENSIONS", "4001"),
        ("PGCONTEXT_DIMENSIONS", "1e3"),
        ("PGCONTEXT_TLS", "prefer"),
        ("PGCONTEXT_SCHEMA", "Robert'); DROP SCHEMA public; --"),
        ("PGCONTEXT_SCHEMA", "Upper"),
        ("PGCONTEXT_SCHEMA", "1st"),
        ("PGCONTEXT_SCHEMA", "a" * 64),
        ("PGCONTEXT_SCHEMA", "app\n"),
        ("PGCONTEXT_CLAIM_SECONDS", "0"),
        ("PGCONTEXT_CLAIM_SECONDS", "-5"),
        ("PGCONTEXT_ACQUIRE_SECONDS", "nan"),
        ("PGCONTEXT_STATEMENT_SECONDS", "inf"),
        ("PGCONTEXT_CONNECT_SECONDS", "5s"),
        ("PGCONTEXT_CONNECT_SECONDS", ""),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_variables_name(name: str, value: str) -> None:
    """Each variable says what it accepts; an empty one is unset."""
    if not value:
        assert Settings.from_env({name: value}) == Settings.from_env({})
        return
    with pytest.raises(ConfigError, match=name):
        Settings.from_env({name: value})


def test_seconds_and_numbers_are_read() -> None:
    """Values arrive typed, in the unit the name says."""
    settings = Settings.from_env(
        {
            "PGCONTEXT_DIMENSIONS": "8",
            "PGCONTEXT_CLAIM_SECONDS": "30",
            "PGCONTEXT_ACQUIRE_SECONDS": "0.5",
            "PGCONTEXT_STATEMENT_SECONDS": "2.25",
            "PGCONTEXT_CONNECT_SECONDS": "1",
            "PGCONTEXT_SCHEMA": "app_2",
            "PGCONTEXT_EMBEDDING_MODEL": "text-embedding-3-small",
            "PGCONTEXT_TOKENIZER": "cl100k_base",
            "PGCONTEXT_DATA_DIR": "/srv/pgcontext",
        }
    )
    assert (settings.dimensions, settings.schema) == (8, "app_2")
    assert (settings.claim_seconds, settings.acquire_seconds) == (30.0, 0.5)
    assert (settings.statement_seconds, settings.connect_seconds) == (2.25, 1.0)
    assert (settings.embedding_model, settings.tokenizer) == (
        "text-embedding-3-small",
        "cl100k_base",
    )
    assert settings.data_dir == "/srv/pgcontext"


def test_an_override_wins_over_the_environment() -> None:
    """What the code says outranks a variable, and a URL may be text."""
    settings = Settings.from_env({"DATABASE_URL": NEON, "PGCONTEXT_DIMENSIONS": "8"}, url=SUPABASE)
    assert "supabase" in (masked(settings) or "")
    assert settings.dimensions == 8


def test_a_bad_url_is_a_config_error_without_its_password() -> None:
    """The URL is judged when the settings are made, and its secret stays out of the sentence."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({"DATABASE_URL": "postgresql://u:hunter2@host/db?jit=off"})
    assert "hunter2" not in str(caught.value)


def test_settings_never_show_a_password() -> None:
    """The repr of the settings is safe to log."""
    env = {
        "DATABASE_URL": "postgresql://u:hunter2@ep-x-pooler.aws.neon.tech/db",
        "DATABASE_URL_UNPOOLED": "postgresql://u:hunter2@ep-x.aws.neon.tech/db",
    }
    assert "hunter2" not in repr(Settings.from_env(env))


def test_an_explicit_tls_mode_outranks_the_url() -> None:
    """PGCONTEXT_TLS is the way down that has to be written out."""
    env = {"DATABASE_URL": UNKNOWN + "?sslmode=require"}
    strict, lax = Settings.from_env(env), Settings.from_env({**env, "PGCONTEXT_TLS": "require"})
    assert strict.url is not None
    assert lax.url is not None
    assert (strict.url.tls, lax.url.tls) == ("verify-full", "require")


@pytest.mark.parametrize(
    ("env", "embedder", "dimensions"),
    [
        ({"PGCONTEXT_DIMENSIONS": "256"}, "local", 256),
        ({"PGCONTEXT_DIMENSIONS": "1536"}, "none", 1536),
        ({"PGCONTEXT_EMBEDDING_MODEL": "mine"}, "none", 1536),
        ({"PGCONTEXT_EMBEDDER": "none"}, "none", 256),
        ({"PGCONTEXT_EMBEDDER": "none", "DATABASE_URL": LOCAL}, "none", 1536),
        ({"PGCONTEXT_EMBEDDER": "local", "DATABASE_URL": LOCAL}, "local", 256),
        ({"DATABASE_URL": LOCAL}, "none", 1536),
        ({"DATABASE_URL_UNPOOLED": LOCAL}, "none", 1536),
        ({"AWS_LAMBDA_FUNCTION_NAME": "chat"}, "none", 1536),
        (
            {
                "PGCONTEXT_EMBEDDING_URL": "http://localhost:11434/v1",
                "PGCONTEXT_EMBEDDING_MODEL": "m",
            },
            "http",
            1536,
        ),
    ],
)
def test_the_embedder_follows_from_what_is_set(
    env: dict[str, str], embedder: str, dimensions: int
) -> None:
    """An address means a server; nothing at all, with the embedded database, the local model."""
    settings = Settings.from_env(env)
    assert (settings.embedder, settings.dimensions) == (embedder, dimensions)


def test_without_the_local_model_nothing_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded database works without it, and its embeddings have the usual length."""
    without_packages(monkeypatch, "wordllama")
    settings = Settings.from_env({})
    assert (settings.embedder, settings.dimensions) == ("none", 1536)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PGCONTEXT_EMBEDDER": "openai"}, "none, local, http"),
        ({"PGCONTEXT_EMBEDDER": "http", "OPENAI_API_KEY": "k"}, "PGCONTEXT_EMBEDDING_MODEL"),
        (
            {"PGCONTEXT_EMBEDDER": "http", "PGCONTEXT_EMBEDDING_MODEL": "m"},
            "PGCONTEXT_EMBEDDING_KEY .or OPENAI_API_KEY",
        ),
        (
            {"PGCONTEXT_EMBEDDER": "local", "PGCONTEXT_DIMENSIONS": "1536"},
            "256 dimensions, and PGCONTEXT_DIMENSIONS says 1536",
        ),
        (
            {"PGCONTEXT_EMBEDDER": "local", "PGCONTEXT_EMBEDDING_MODEL": "m"},
            "a model of its own",
        ),
        ({"PGCONTEXT_EMBEDDING_KEY": "k"}, "KEY is for an embedding server, and none is named"),
        ({"PGCONTEXT_EMBEDDING_KEY": "k", "DATABASE_URL": LOCAL}, "PGCONTEXT_EMBEDDER=http"),
        (
            {"PGCONTEXT_EMBEDDING_SEND_DIMENSIONS": "on"},
            "unset PGCONTEXT_EMBEDDING_SEND_DIMENSIONS",
        ),
        (
            {
                "PGCONTEXT_EMBEDDER": "local",
                "PGCONTEXT_EMBEDDING_URL": "https://api.openai.com/v1",
            },
            "URL is for an embedding server, and PGCONTEXT_EMBEDDER=local asks none",
        ),
        ({"PGCONTEXT_EMBEDDER": "local", "PGCONTEXT_EMBEDDING_KEY": "k"}, "unset .*_KEY"),
        ({"PGCONTEXT_EMBEDDING_MODEL": "m" * 257}, "1 to 256 characters"),
        ({"PGCONTEXT_EMBEDDING_MODEL": "\udcff"}, "valid Unicode"),
        ({"PGCONTEXT_EMBEDDING_SECONDS": "0"}, "above 0"),
        ({"PGCONTEXT_EMBEDDING_SEND_DIMENSIONS": "yes"}, "on, off"),
    ],
)
def test_an_embedder_that_cannot_be_is_refused(env: dict[str, str], sentence: str) -> None:
    """Each sentence says what is accepted."""
    with pytest.raises(ConfigError, match=sentence):
        Settings.from_env(env)


@pytest.mark.parametrize(
    ("env", "overrides"),
    [
        ({"PGCONTEXT_EMBEDDER": "none"}, {}),
        ({}, {"embedder": "none"}),
        ({"PGCONTEXT_EMBEDDER": ""}, {"embedder": "none"}),
    ],
)
def test_naming_no_embedder_switches_off_what_else_is_set(
    env: dict[str, str], overrides: dict[str, Any]
) -> None:
    """So one program goes without, or brings its own, where the environment names a server."""
    server = {
        "PGCONTEXT_EMBEDDING_URL": "http://localhost:11434/v1",
        "PGCONTEXT_EMBEDDING_KEY": "k",
        "PGCONTEXT_EMBEDDING_MODEL": "m",
        "PGCONTEXT_EMBEDDING_SEND_DIMENSIONS": "on",
    }
    assert Settings.from_env({**server, **env}, **overrides).embedder == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"exact_rows": -1},
        {"exact_rows": 2**31},
        {"embedding_seconds": 0},
        {"claim_seconds": math.inf},
        {"acquire_seconds": math.nan},
        {"statement_seconds": -1},
        {"connect_seconds": limits.SETTING_SECONDS_MAX + 1},
        {"embedding_model": ""},
        {"embedding_model": "a\0b"},
    ],
    ids=repr,
)
def test_settings_made_in_code_are_checked_alike(fields: dict[str, Any]) -> None:
    """What no variable can say is refused too, by the variable's name, when a store takes it."""
    [name] = fields
    with pytest.raises(ConfigError, match=f"PGCONTEXT_{name.upper()} must"):
        ContextStore(settings=Settings(**fields))


OPENAI = {"PGCONTEXT_EMBEDDER": "http", "PGCONTEXT_EMBEDDING_MODEL": "m", "OPENAI_API_KEY": "sk-1"}


def test_the_key_of_openai_is_shown_to_openai_alone() -> None:
    """A key that is there for other reasons is not sent to another address."""
    ours = Settings.from_env(OPENAI).embedding_key
    assert ours is not None
    assert ours.value == "sk-1"
    for url in ("http://localhost:11434/v1", "https://api.openai.com.example.org/v1"):
        assert Settings.from_env({**OPENAI, "PGCONTEXT_EMBEDDING_URL": url}).embedding_key is None
    named = Settings.from_env({**OPENAI, "PGCONTEXT_EMBEDDING_KEY": "sk-2"}).embedding_key
    assert named is not None
    assert named.value == "sk-2"


def test_settings_never_show_the_key() -> None:
    """Neither one of the environment nor one that is given as text."""
    assert "sk-1" not in repr(Settings.from_env(OPENAI))
    assert "hunter2" not in repr(Settings.from_env(OPENAI, embedding_key="hunter2"))
