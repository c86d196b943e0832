"""The environment, read once and typed. No other module looks at `os.environ`.

Every variable is described in .env.example with its unit and default.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast
from uuid import UUID

import msgspec

from pgcontext import limits
from pgcontext.errors import ConfigError
from pgcontext.url import DatabaseUrl, Pooling, TlsMode, Verdict, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope: TypeAlias = Literal["read", "write", "admin"]

# The first that is set wins. A provider that names its pool explicitly outranks DATABASE_URL,
# which is the direct one there.
POOLED_NAMES: Final = ("DATABASE_CONNECTION_POOL_URL", "DATABASE_URL", "POSTGRES_URL")
UNPOOLED_NAMES: Final = (
    "DATABASE_URL_UNPOOLED",
    "DATABASE_UNPOOLED_URL",
    "POSTGRES_URL_NON_POOLING",
)
TLS_MODES: Final = ("disable", "require", "verify-ca", "verify-full")
POOLERS: Final = ("transaction", "session", "direct")
EMBEDDERS: Final = ("none", "local", "http")
LOCAL_MODEL_PACKAGE: Final = "wordllama"
OPENAI_URL: Final = "https://api.openai.com/v1"
AUTHS: Final = ("keys", "authorizer", "none")
SCOPES: Final[tuple[Scope, ...]] = ("read", "write", "admin")
"""What a caller over HTTP may do; each includes those before it."""
ORIGIN: Final = re.compile(r"\*|https?://[A-Za-z0-9.\-\[\]:]+")
BASE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_DECIMAL: Final = r"[0-9]{1,6}(\.[0-9]+)?"
LANGUAGE_NAME: Final = re.compile(r"[a-z_]{1,63}")
SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# What PostgreSQL stores as text, and an index as a key; and that in words.
MODEL_NAME: Final = re.compile(rf"[^\0\ud800-\udfff]{{1,{limits.MODEL_CHARS_MAX}}}")
MODEL_NAME_RULE: Final = (
    f"1 to {limits.MODEL_CHARS_MAX} characters that are valid Unicode, and no NUL"
)
# What is said to an embedding server, and to nothing else.
_OF_A_SERVER: Final = ("embedding_url", "embedding_key", "embedding_send_dimensions")
_BOUNDED_SECONDS: Final = (
    "embedding_seconds",
    "claim_seconds",
    "acquire_seconds",
    "statement_seconds",
    "connect_seconds",
)


class Secret(msgspec.Struct, frozen=True):
    """A text that no repr shows.

    Attributes:
        value: the text.
    """

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, with its default.

    Attributes:
        url: where the store connects; None means the embedded PostgreSQL.
        unpooled_url: where migrations connect; see `direct_url`.
        pooler: what the user says stands between; None leaves it to the URL's address.
        pool_size: connections at most.
        statement_cache: whether prepared statements are kept; "auto" only where it is safe.
        dimensions: length of the embeddings.
        schema: the schema of the tables.
        text_language: what text search takes texts to be in; None leaves it to the database, where
            the first migration fixed it.
        tls: an explicit TLS mode, which outranks the URL's.
        tokenizer: name of the vocabulary that counts tokens.
        embedder: what makes embeddings where the store is not given something: nothing, the local
            model, or a server by HTTP.
        embedding_model: the server's model; without an embedder, that of embeddings that are given
            without one.
        embedding_url: where the server is.
        embedding_key: the server's API key.
        embedding_seconds: how long an append or a search waits for the embedder, whatever it is,
            and one call of a server may take in all.
        embedding_send_dimensions: ask the server for embeddings of `dimensions` numbers.
        exact_rows: how many messages of a tenant a search goes through one by one; with more the
            HNSW index is asked, where the tenant holds most of it.
        claim_seconds: how long a worker may hold a message it embeds; embedding a batch may take
            nine tenths of it.
        acquire_seconds: how long to wait for a free connection.
        statement_seconds: how long to wait for a statement.
        connect_seconds: how long to wait for a connection to be made.
        auth: who may come in over HTTP: with an API key, with the claims of an authorizer in front
            of the function, or anybody on this machine.
        auth_tenant: JSON pointer into an event's requestContext to the claim that names the tenant.
        auth_tenants: tenants by the value of that claim, where the value is no tenant's UUID.
        auth_scope: what callers with claims may do: read, write or admin, or a JSON pointer to the
            claim that says so.
        key_cache_seconds: how long a key that was looked up is remembered, and so how long one that
            is revoked may go on.
        cors_origins: whose web pages may call; "*" for all.
        base_path: a prefix of HTTP paths that is not the application's, as "/chats".
        purge_days: how long the purge job leaves what was deleted or has expired.
        data_dir: where the embedded PostgreSQL lives; None for the user's data directory.
        in_function: this process is a serverless function.
    """

    url: DatabaseUrl | None = None
    unpooled_url: DatabaseUrl | None = None
    pooler: Pooling | None = None
    pool_size: int = limits.POOL_CONNECTIONS_MAX
    statement_cache: Literal["auto", "on", "off"] = "auto"
    dimensions: int = limits.EMBEDDING_DIMENSIONS_DEFAULT
    schema: str = "public"
    text_language: str | None = None
    tls: TlsMode | None = None
    tokenizer: str = "o200k_base"
    embedder: Literal["none", "local", "http"] = "none"
    embedding_model: str | None = None
    embedding_url: str = OPENAI_URL
    embedding_key: Secret | None = None
    embedding_seconds: float = limits.EMBEDDING_SECONDS_DEFAULT
    embedding_send_dimensions: bool = False
    exact_rows: int = limits.EXACT_ROWS_DEFAULT
    claim_seconds: float = 300.0
    acquire_seconds: float = limits.ACQUIRE_SECONDS_MAX
    statement_seconds: float = limits.STATEMENT_SECONDS_MAX
    connect_seconds: float = limits.CONNECT_SECONDS_MAX
    auth: Literal["keys", "authorizer", "none"] = "keys"
    auth_tenant: str | None = None
    auth_tenants: dict[str, UUID] = {}
    auth_scope: str = "read"
    key_cache_seconds: float = limits.KEY_CACHE_SECONDS_DEFAULT
    cors_origins: tuple[str, ...] = ()
    base_path: str = ""
    purge_days: float = 30.0
    data_dir: str | None = None
    in_function: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:  # noqa: ANN401
        """Read the environment; `overrides` are fields of this class and win.

        `url`, `unpooled_url` and `embedding_key` may be given as text. What depends on others, as
        the embedder and the dimensions do, follows from what is then known.

        Raises:
            ConfigError: a value is not acceptable; the sentence says what is.
        """
        env = os.environ if env is None else env
        tls = cast("TlsMode | None", _choice(env, "PGCONTEXT_TLS", TLS_MODES))
        values: dict[str, Any] = {
            "tls": tls,
            "pooler": _choice(env, "PGCONTEXT_POOLER", POOLERS),
            "pool_size": _integer(env, "PGCONTEXT_POOL_SIZE"),
            "statement_cache": _choice(env, "PGCONTEXT_STATEMENT_CACHE", ("auto", "on", "off")),
            "dimensions": _integer(env, "PGCONTEXT_DIMENSIONS"),
            "schema": env.get("PGCONTEXT_SCHEMA") or None,
            "text_language": env.get("PGCONTEXT_TEXT_LANGUAGE") or None,
            "tokenizer": env.get("PGCONTEXT_TOKENIZER") or None,
            "embedder": _choice(env, "PGCONTEXT_EMBEDDER", EMBEDDERS),
            "embedding_model": env.get("PGCONTEXT_EMBEDDING_MODEL") or None,
            "embedding_url": env.get("PGCONTEXT_EMBEDDING_URL") or None,
            "embedding_key": env.get("PGCONTEXT_EMBEDDING_KEY") or None,
            "embedding_seconds": _seconds(env, "PGCONTEXT_EMBEDDING_SECONDS"),
            "embedding_send_dimensions": _switch(env, "PGCONTEXT_EMBEDDING_SEND_DIMENSIONS"),
            "exact_rows": _integer(env, "PGCONTEXT_EXACT_ROWS"),
            "claim_seconds": _seconds(env, "PGCONTEXT_CLAIM_SECONDS"),
            "acquire_seconds": _seconds(env, "PGCONTEXT_ACQUIRE_SECONDS"),
            "statement_seconds": _seconds(env, "PGCONTEXT_STATEMENT_SECONDS"),
            "connect_seconds": _seconds(env, "PGCONTEXT_CONNECT_SECONDS"),
            "auth": _choice(env, "PGCONTEXT_AUTH", AUTHS),
            "auth_tenant": env.get("PGCONTEXT_AUTH_TENANT") or None,
            "auth_tenants": _tenants(env, "PGCONTEXT_AUTH_TENANTS"),
            "auth_scope": env.get("PGCONTEXT_AUTH_SCOPE") or None,
            "key_cache_seconds": _seconds(env, "PGCONTEXT_KEY_CACHE_SECONDS"),
            "cors_origins": tuple(env.get("PGCONTEXT_CORS_ORIGINS", "").replace(",", " ").split()),
            "base_path": env.get("PGCONTEXT_BASE_PATH", "").rstrip("/"),
            "purge_days": _number(env, "PGCONTEXT_PURGE_DAYS"),
            "data_dir": env.get("PGCONTEXT_DATA_DIR") or None,
            "in_function": _in_function(env),
            "url": _first(env, POOLED_NAMES),
            "unpooled_url": _first(env, UNPOOLED_NAMES),
        }
        if env.get("DATABASE_CONNECTION_POOL_URL"):
            values["pooler"] = values["pooler"] or "transaction"
            values["unpooled_url"] = values["unpooled_url"] or env.get("DATABASE_URL")
        values.update(overrides)
        for name in ("url", "unpooled_url"):
            if not isinstance(values[name], DatabaseUrl | None):
                values[name] = parse(values[name], tls=values["tls"])
        _complete_embedding(values, env)
        known = {key: value for key, value in values.items() if value is not None}
        return cls(**known).checked()

    def checked(self) -> Settings:
        """Return the settings, or say what about them cannot work. No I/O.

        Raises:
            ConfigError: see the sentence.
        """
        if not 1 <= self.dimensions <= limits.EMBEDDING_DIMENSIONS_MAX:
            msg = f"PGCONTEXT_DIMENSIONS must be 1 to {limits.EMBEDDING_DIMENSIONS_MAX}."
            raise ConfigError(msg)
        if not SCHEMA_NAME.fullmatch(self.schema):
            msg = "PGCONTEXT_SCHEMA must be lower-case letters, digits and underscores."
            raise ConfigError(msg)
        if self.text_language is not None and not LANGUAGE_NAME.fullmatch(self.text_language):
            msg = (
                "PGCONTEXT_TEXT_LANGUAGE must be a text search configuration of PostgreSQL, such "
                "as english, german or simple."
            )
            raise ConfigError(msg)
        if not 0 <= self.purge_days <= limits.PURGE_AGE_DAYS_MAX:
            msg = f"PGCONTEXT_PURGE_DAYS must be 0 to {limits.PURGE_AGE_DAYS_MAX}."
            raise ConfigError(msg)
        if not 0 <= self.exact_rows <= limits.EXACT_ROWS_MAX:
            msg = f"PGCONTEXT_EXACT_ROWS must be 0 to {limits.EXACT_ROWS_MAX:,}."
            raise ConfigError(msg)
        self._check_times()
        self._check_pool()
        self._check_embedder()
        self._check_http()
        if self.url is not None and self.in_function:
            self._check_function(self.url)
        return self

    def _check_times(self) -> None:
        for name in _BOUNDED_SECONDS:
            if not 0 < getattr(self, name) <= limits.SETTING_SECONDS_MAX:
                msg = (
                    f"PGCONTEXT_{name.upper()} must be a number of seconds above 0, at most "
                    f"{limits.SETTING_SECONDS_MAX:,.0f}."
                )
                raise ConfigError(msg)

    def _check_pool(self) -> None:
        most = (
            limits.POOL_CONNECTIONS_DIRECT_MAX
            if self.pooling == "direct" and not self.in_function
            else limits.POOL_CONNECTIONS_MAX
        )
        if not 1 <= self.pool_size <= most:
            msg = (
                f"PGCONTEXT_POOL_SIZE must be 1 to {most}: a function's connections multiply with "
                "its concurrency. More are accepted only for a direct connection outside functions."
            )
            raise ConfigError(msg)

    def _check_embedder(self) -> None:
        if self.embedder not in EMBEDDERS:
            raise ConfigError(f"PGCONTEXT_EMBEDDER must be one of: {', '.join(EMBEDDERS)}.")
        if self.embedding_model is not None and not MODEL_NAME.fullmatch(self.embedding_model):
            raise ConfigError(f"PGCONTEXT_EMBEDDING_MODEL must have {MODEL_NAME_RULE}.")
        if self.embedder == "http":
            self._check_server()
        if self.embedder != "local":
            return
        if self.embedding_model is not None:
            msg = (
                "PGCONTEXT_EMBEDDER=local has a model of its own: unset PGCONTEXT_EMBEDDING_MODEL, "
                "or choose PGCONTEXT_EMBEDDER=http or none."
            )
            raise ConfigError(msg)
        if self.dimensions != limits.EMBEDDING_DIMENSIONS_LOCAL:
            msg = (
                f"PGCONTEXT_EMBEDDER=local makes embeddings of {limits.EMBEDDING_DIMENSIONS_LOCAL} "
                f"dimensions, and PGCONTEXT_DIMENSIONS says {self.dimensions}: unset it, or choose "
                "PGCONTEXT_EMBEDDER=http or none."
            )
            raise ConfigError(msg)

    def _check_server(self) -> None:
        if self.embedding_model is None:
            msg = (
                "An embedding server needs PGCONTEXT_EMBEDDING_MODEL, the name of its model, such "
                "as text-embedding-3-small."
            )
            raise ConfigError(msg)
        if self.embedding_key is None and _is_openai(self.embedding_url):
            msg = (
                "Embeddings of OpenAI need PGCONTEXT_EMBEDDING_KEY (or OPENAI_API_KEY); those of "
                "another server, PGCONTEXT_EMBEDDING_URL."
            )
            raise ConfigError(msg)

    def _check_http(self) -> None:
        if self.auth == "authorizer" and not (self.auth_tenant or "").startswith("/"):
            msg = (
                "PGCONTEXT_AUTH=authorizer needs PGCONTEXT_AUTH_TENANT, a JSON pointer into the "
                "event's requestContext, such as /authorizer/jwt/claims/tenant_id."
            )
            raise ConfigError(msg)
        if self.auth_scope not in SCOPES and not self.auth_scope.startswith("/"):
            msg = "PGCONTEXT_AUTH_SCOPE must be read, write, admin, or a JSON pointer to the claim."
            raise ConfigError(msg)
        if self.key_cache_seconds > limits.KEY_CACHE_SECONDS_MAX:
            msg = f"PGCONTEXT_KEY_CACHE_SECONDS must be at most {limits.KEY_CACHE_SECONDS_MAX:g}."
            raise ConfigError(msg)
        if not BASE_PATH.fullmatch(self.base_path):
            msg = "PGCONTEXT_BASE_PATH must be a path such as /chats."
            raise ConfigError(msg)
        if not all(ORIGIN.fullmatch(origin) for origin in self.cors_origins):
            msg = "PGCONTEXT_CORS_ORIGINS must be origins such as https://app.example.com, or *."
            raise ConfigError(msg)

    def _check_function(self, url: DatabaseUrl) -> None:
        if self.pooling in {"transaction", "session"} or self.pooler is not None:
            return
        verdict = url.verdict
        kind = "direct" if verdict.pooling == "direct" else "not known to be pooled"
        msg = (
            f"The database URL is {kind} ({verdict.provider}), which a function's concurrency "
            f"would exhaust. Use the pooled address, here {verdict.pooled_form}, or say what it "
            "is with PGCONTEXT_POOLER=transaction, session or direct."
        )
        raise ConfigError(msg)

    @property
    def verdict(self) -> Verdict | None:
        """What the URL's address says; None for the embedded PostgreSQL."""
        return self.url.verdict if self.url is not None else None

    @property
    def pooling(self) -> Pooling:
        """What stands between the store and the server."""
        if self.pooler is not None:
            return self.pooler
        return self.url.verdict.pooling if self.url is not None else "direct"

    @property
    def caches_statements(self) -> bool:
        """Whether prepared statements may be kept on a connection.

        Behind a pooler that does not track them, a kept statement can return another process's
        rows; so the default is yes only where that cannot happen.
        """
        if self.statement_cache != "auto":
            return self.statement_cache == "on"
        if self.pooling in {"direct", "session"}:
            return True
        return self.url is not None and self.pooler is None and self.url.verdict.tracks_statements

    @property
    def direct_url(self) -> DatabaseUrl | None:
        """The URL for migrations and other long work; None for the embedded PostgreSQL.

        Raises:
            ConfigError: only a transaction pooler is known.
        """
        if self.unpooled_url is not None:
            if self.unpooled_url.verdict.pooling == "transaction":
                raise ConfigError(_needs_direct("DATABASE_URL_UNPOOLED names a transaction pooler"))
            return self.unpooled_url
        if self.url is not None and self.pooling == "transaction":
            raise ConfigError(_needs_direct("DATABASE_URL names a transaction pooler"))
        return self.url


def _complete_embedding(values: dict[str, Any], env: Mapping[str, str]) -> None:
    """Fill in which embedder there is, its key, and what length of embeddings follows from it.

    The embedded database is one for all programs of a user, so the length there is that of the
    local model also where a program has an embedder of its own, or none.
    """
    default = _default_embedder(values)
    _refuse_unused(values, values["embedder"] or default)
    values["embedder"] = values["embedder"] or default
    if values["dimensions"] is None and "local" in {values["embedder"], default}:
        values["dimensions"] = limits.EMBEDDING_DIMENSIONS_LOCAL
    key = values["embedding_key"]
    if key is None and values["embedder"] == "http" and _is_openai(values["embedding_url"]):
        key = env.get("OPENAI_API_KEY") or None  # which nobody else is shown
    values["embedding_key"] = Secret(key) if isinstance(key, str) else key


def _refuse_unused(values: Mapping[str, Any], embedder: str) -> None:
    """Refuse what only a server would be told, where none is asked: it would say nothing.

    Who names no embedder at all, by "none", switches off whatever else is set.

    Raises:
        ConfigError: names the variable.
    """
    unused = next((name for name in _OF_A_SERVER if values[name]), None)
    if unused is None or embedder == "http" or values["embedder"] == "none":
        return
    variable = f"PGCONTEXT_{unused.upper()}"
    why = (
        "PGCONTEXT_EMBEDDER=local asks none: set PGCONTEXT_EMBEDDER=http"
        if values["embedder"] == "local"
        else "none is named: set PGCONTEXT_EMBEDDING_URL, or PGCONTEXT_EMBEDDER=http for OpenAI's"
    )
    raise ConfigError(f"{variable} is for an embedding server, and {why}, or unset {variable}.")


def _is_openai(url: str | None) -> bool:
    return (url or OPENAI_URL).startswith(OPENAI_URL)


def _default_embedder(values: Mapping[str, Any]) -> str:
    """Decide what makes embeddings where nobody said so.

    The local model where it is installed and the database is the embedded one, unless something
    says that the embeddings are others.
    """
    if values["embedding_url"] is not None:
        return "http"
    is_embedded = values["url"] is None and values["unpooled_url"] is None
    fits = values["dimensions"] in {None, limits.EMBEDDING_DIMENSIONS_LOCAL}
    if not is_embedded or not fits or values["embedding_model"] is not None:
        return "none"
    installed = not values["in_function"] and find_spec(LOCAL_MODEL_PACKAGE) is not None
    return "local" if installed else "none"


def _needs_direct(what: str) -> str:
    return (
        f"{what}, and this needs a direct connection: set DATABASE_URL_UNPOOLED (or "
        "POSTGRES_URL_NON_POOLING) to the server's own address."
    )


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((env[name] for name in names if env.get(name)), None)


def _choice(env: Mapping[str, str], name: str, accepted: tuple[str, ...]) -> str | None:
    value = env.get(name) or None
    if value is not None and value not in accepted:
        msg = f"{name} must be one of: {', '.join(accepted)}."
        raise ConfigError(msg)
    return value


def _switch(env: Mapping[str, str], name: str) -> bool | None:
    value = _choice(env, name, ("on", "off"))
    return None if value is None else value == "on"


def _integer(env: Mapping[str, str], name: str) -> int | None:
    value = _matching(env, name, r"[0-9]{1,9}", "a whole number")
    return None if value is None else int(value)


def _number(env: Mapping[str, str], name: str) -> float | None:
    value = _matching(env, name, _DECIMAL, "a number, 0 or more")
    return None if value is None else float(value)


def _seconds(env: Mapping[str, str], name: str) -> float | None:
    accepted = "a number of seconds above 0"
    value = _matching(env, name, _DECIMAL, accepted)
    if value is None:
        return None
    if float(value) == 0:
        raise ConfigError(f"{name} must be {accepted}.")
    return float(value)


def _matching(env: Mapping[str, str], name: str, pattern: str, accepted: str) -> str | None:
    value = env.get(name) or None
    if value is not None and not re.fullmatch(pattern, value):
        raise ConfigError(f"{name} must be {accepted}.")
    return value


def _tenants(env: Mapping[str, str], name: str) -> dict[str, UUID] | None:
    value = env.get(name) or None
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=dict[str, UUID])
    except msgspec.DecodeError:
        msg = f"{name} must be a JSON object that gives each claim the UUID of its tenant."
        raise ConfigError(msg) from None


def _in_function(env: Mapping[str, str]) -> bool:
    # VERCEL=1 is also set while building, where nothing connects.
    return bool(env.get("AWS_LAMBDA_FUNCTION_NAME") or env.get("VERCEL"))


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment for a process this one starts: its own, with some variables set."""
    return {**os.environ, **changes}
