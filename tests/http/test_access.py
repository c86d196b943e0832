"""Who comes in, who does not, and what each may do."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from pgcontext import ContextStore, Settings, limits
from pgcontext.errors import ConfigError, InvalidInputError
from pgcontext.http import access, create_app
from pgcontext.http.operations import OPERATIONS
from pgcontext.http.problems import UnauthorizedError
from pgcontext.keys import KeyNotFoundError, Keys, read
from tests.support import DIMENSIONS
from tests.support.asgi import Answer, Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

A: Final = UUID(int=0xA)
PATHS: Final = {
    "{context_id}": "01890000-0000-7000-8000-000000000001",
}
GUARDED: Final = [operation for operation in OPERATIONS if operation.scope is not None]


def path_of(operation: Any) -> str:
    path: str = operation.path
    for mark, value in PATHS.items():
        path = path.replace(mark, value)
    return path


def refused(answer: Answer) -> bytes:
    """Hold that it is the one 401, and return all that it says."""
    assert (answer.status, answer.type) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    return answer.body


@pytest.fixture
def keys(store: ContextStore) -> Keys:
    """The keys of the default tenant."""
    return Keys.of(store)


async def let_in(client: Client, key: str | None) -> bool:
    """Whether a key opens the list of contexts."""
    answer = await client.with_key(key)("GET", "/v1/contexts")
    if answer.status == 200:
        return True
    refused(answer)
    return False


def as_if_later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the application's clock go ahead, and the database's not."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_nobody_comes_in_without_a_key(anybody: Client, operation: Any) -> None:
    """On no path; the body isn't even read."""

    def never() -> Any:
        pytest.fail("the body of an unknown caller was read")
        yield b""

    answer = await anybody(operation.method, path_of(operation), chunks=never())
    assert refused(answer)


def broken(text: str) -> list[str]:
    prefix, tenant, key_id, secret = text.split("_", 3)
    nil = UUID(int=7).hex
    return [
        "",
        "x",
        secret,
        f"{prefix}_{tenant}_{key_id}_",
        f"{prefix}_{tenant}_{key_id}_{secret[:-1]}",
        f"{prefix}_{tenant}_{key_id}_{secret}x",
        f"{prefix}_{tenant}_{key_id}_{secret.swapcase()}",
        f"{prefix}_{A.hex}_{key_id}_{secret}",
        f"{prefix}_{tenant}_{nil}_{secret}",
        f"other_{tenant}_{key_id}_{secret}",
        f"{prefix}_{tenant}_{secret}",
        text + "é",
        text * 100,
    ]


async def test_wrong_expired_revoked_and_foreign_keys_look_the_same(
    anybody: Client, keys: Keys, connection: asyncpg.Connection
) -> None:
    """Whatever is wrong with a key, the answer is the same to the last byte."""
    good, late, gone = [await keys.create(name, scope="read") for name in ("a", "b", "c")]
    await connection.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", late.key.id)
    await keys.revoke(gone.key.id)
    assert await let_in(anybody, good.text)
    bodies = {
        refused(await anybody.with_key(text)("GET", "/v1/contexts"))
        for text in [*broken(good.text), late.text, gone.text]
    }
    schemes = [f"Basic {good.text}", good.text, "Bearer", f"bearer  {good.text}"]
    answers = [
        await anybody("GET", "/v1/contexts", headers={"authorization": value}) for value in schemes
    ]
    assert [answer.status for answer in answers] == [401, 401, 401, 200]
    assert bodies | {refused(answer) for answer in answers[:3]} == {bodies.pop()}


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
async def test_a_key_does_what_its_scope_includes(
    make_client: Callable[..., Awaitable[Client]], scope: Any
) -> None:
    """A read key can't write, a write key can't erase; what is above a scope is 403."""
    client = await make_client(scope)
    order = ["read", "write", "admin"]
    for operation in GUARDED:
        answer = await client(operation.method, path_of(operation), b"[]")
        allowed = order.index(scope) >= order.index(operation.scope or "")
        assert (answer.status != 403) is allowed, operation.name
        if not allowed:
            assert answer.type == "forbidden"


def test_scopes_say_what_they_should() -> None:
    """Reading is GET and search; what can't be undone is for admins."""
    by_scope = {
        scope: {operation.name for operation in GUARDED if operation.scope == scope}
        for scope in ("read", "admin")
    }
    assert by_scope["admin"] == {"purge", "erase"}
    assert by_scope["read"] == {"search"} | {
        operation.name for operation in GUARDED if operation.method == "GET"
    }


async def test_a_key_is_shown_once_and_only_its_hash_is_stored(
    keys: Keys, connection: asyncpg.Connection
) -> None:
    """Nothing in the table gives the secret back, nor does a repr of what was made."""
    made = await keys.create("for the web", scope="write")
    secret = made.text.split("_", 3)[3]
    row = await connection.fetchval("SELECT to_jsonb(k)::text FROM api_keys AS k")
    assert secret not in row
    presented = read(made.text)
    assert presented is not None
    assert presented.secret_hash in row
    assert secret not in repr(made)
    assert [key.name for key in await keys.list()] == ["for the web"]


async def test_two_keys_share_nothing(keys: Keys) -> None:
    """Each has a secret of 256 random bits of its own."""
    texts = [(await keys.create("a", scope="read")).text for _ in range(20)]
    secrets = {text.split("_", 3)[3] for text in texts}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {43}


async def test_a_warm_request_asks_nothing_about_its_key(
    anybody: Client, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request looks the key up, the next ones send their own statement alone."""
    made = await keys.create("a", scope="read")
    client = anybody.with_key(made.text)
    caplog.set_level(logging.DEBUG, "pgcontext.statement")

    async def sent() -> list[str]:
        caplog.clear()
        assert (await client("GET", "/v1/contexts")).status == 200
        return [record.message.split()[0] for record in caplog.records if "took" in record.message]

    assert await sent() == ["pgcontext.key_look_up", "pgcontext.list"]
    assert await sent() == ["pgcontext.list"]
    assert await sent() == ["pgcontext.list"]


async def test_a_wrong_secret_is_refused_while_the_key_is_remembered(
    anybody: Client, keys: Keys
) -> None:
    """What is remembered of a key is its hash, not that somebody was let in."""
    made = await keys.create("a", scope="read")
    assert await let_in(anybody, made.text)
    assert not await let_in(anybody, made.text[:-1] + ("a" if made.text[-1] != "a" else "b"))
    assert await let_in(anybody, made.text)


async def test_a_revoked_key_goes_on_for_the_stated_seconds_at_most(
    anybody: Client, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was let in just before is let in until what is remembered is too old."""
    made = await keys.create("a", scope="read")
    assert await let_in(anybody, made.text)
    await keys.revoke(made.key.id)
    assert await let_in(anybody, made.text)
    as_if_later(monkeypatch, limits.KEY_CACHE_SECONDS_DEFAULT - 1)
    assert await let_in(anybody, made.text)
    as_if_later(monkeypatch, limits.KEY_CACHE_SECONDS_DEFAULT + 1)
    assert not await let_in(anybody, made.text)


async def test_the_stated_seconds_are_a_setting(store: ContextStore, keys: Keys) -> None:
    """With a shorter memory a revocation takes effect sooner."""
    settings = Settings.from_env({}, key_cache_seconds=0.05)
    client = Client(create_app(store, settings))
    made = await keys.create("a", scope="read")
    assert await let_in(client, made.text)
    await keys.revoke(made.key.id)
    await asyncio.sleep(0.06)
    assert not await let_in(client, made.text)


async def test_a_clock_that_was_set_back_keeps_no_key_alive(
    anybody: Client, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What seems to come from the future is looked up again."""
    made = await keys.create("a", scope="read")
    assert await let_in(anybody, made.text)
    await keys.revoke(made.key.id)
    as_if_later(monkeypatch, -3_600)
    assert not await let_in(anybody, made.text)


async def test_a_key_ends_when_it_expires_also_while_it_is_remembered(
    anybody: Client, keys: Keys
) -> None:
    """Nothing is believed longer than the key lives."""
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    made = await keys.create("a", scope="read", expires_at=soon)
    assert await let_in(anybody, made.text)
    await asyncio.sleep(0.55)
    assert not await let_in(anybody, made.text)


async def test_rotating_makes_a_new_key_and_ends_the_old_one(anybody: Client, keys: Keys) -> None:
    """At once, or after the time that those who still use it are given."""
    expires = datetime.now(UTC) + timedelta(days=1)
    old = await keys.create("a", scope="write", expires_at=expires)
    new = await keys.rotate(old.key.id)
    assert (new.key.name, new.key.scope) == ("a", "write")
    assert abs((new.key.expires_at or expires) - expires) < timedelta(milliseconds=1)
    assert not await let_in(anybody, old.text)
    assert await let_in(anybody, new.text)
    newest = await keys.rotate(new.key.id, grace_seconds=3_600)
    assert await let_in(anybody, new.text)
    assert await let_in(anybody, newest.text)
    # Revoking ends the time that was given.
    revoked = await keys.revoke(new.key.id)
    assert revoked.revoked_at is not None
    assert revoked.revoked_at <= datetime.now(UTC) + timedelta(seconds=5)


async def test_a_key_is_rotated_once(keys: Keys) -> None:
    """Of several at once one wins; a revoked, expired or unknown key has no successor."""
    made = await keys.create("a", scope="read")
    results = await asyncio.gather(
        *(keys.rotate(made.key.id) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, KeyNotFoundError) for result in results) == 4
    assert len(await keys.list()) == 2
    for key_id in (made.key.id, UUID(int=9)):
        with pytest.raises(KeyNotFoundError):
            await keys.rotate(key_id)


async def test_revoking_twice_is_once(keys: Keys) -> None:
    """The moment stays; an unknown key says so."""
    made = await keys.create("a", scope="read")
    first, second = await keys.revoke(made.key.id), await keys.revoke(made.key.id)
    assert first == second
    with pytest.raises(KeyNotFoundError):
        await keys.revoke(UUID(int=9))


async def test_a_tenants_keys_are_its_own(store: ContextStore, keys: Keys) -> None:
    """Another tenant neither lists nor ends them."""
    made = await keys.create("a", scope="read")
    other = Keys.of(store.for_tenant(A))
    assert await other.list() == []
    with pytest.raises(KeyNotFoundError):
        await other.revoke(made.key.id)
    with pytest.raises(KeyNotFoundError):
        await other.rotate(made.key.id)
    assert [key.revoked_at for key in await keys.list()] == [None]


async def test_keys_are_checked_before_they_are_made(keys: Keys) -> None:
    """Names, scopes, moments and times of grace are what they should be."""
    for scope in ("root", "", None):
        with pytest.raises(InvalidInputError, match="scope"):
            await keys.create("a", scope=scope)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="name"):
        await keys.create("a\0b", scope="read")
    with pytest.raises(InvalidInputError, match="expires_at"):
        await keys.create("a", scope="read", expires_at=datetime(2090, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidInputError, match="grace_seconds"):
        await keys.rotate(UUID(int=1), grace_seconds=limits.KEY_GRACE_SECONDS_MAX + 1)


async def test_what_is_remembered_is_bounded(
    store: ContextStore, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of keys that are not there pushes out none that is."""
    monkeypatch.setattr(limits, "KEYS_REMEMBERED_COUNT_MAX", 3)
    made = await keys.create("a", scope="read")
    gate = access.KeyGate(keys, remember_seconds=60)
    right = {"headers": [(b"authorization", f"Bearer {made.text}".encode())]}
    await gate.admit(right)
    for number in range(10):
        wrong = made.text.replace(made.key.id.hex, UUID(int=number).hex)
        with pytest.raises(UnauthorizedError):
            await gate.admit({"headers": [(b"authorization", f"Bearer {wrong}".encode())]})
    assert len(gate._dead._known) == 3
    await store.aclose()
    monkeypatch.setattr(Keys, "look_up", None)
    assert (await gate.admit(right)).scope == "read"


def claims(**settings: Any) -> Settings:
    tenant = {"auth_tenant": "/authorizer/jwt/claims/tenant"}
    return Settings.from_env({}, **{"auth": "authorizer", **tenant, **settings})


def event(context: Any) -> dict[str, Any]:
    return {"aws.event": {"requestContext": context}}


JWT: Final = {"authorizer": {"jwt": {"claims": {"tenant": str(A), "scope": "x pgcontext:write"}}}}


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({}, JWT),
        (
            {"auth_tenant": "/authorizer/claims/custom:tenant"},
            {"authorizer": {"claims": {"custom:tenant": str(A)}}},
        ),
        ({"auth_tenant": "/authorizer/lambda/t"}, {"authorizer": {"lambda": {"t": A.hex}}}),
        ({"auth_tenant": "/authorizer/t"}, {"authorizer": {"t": str(A), "principalId": "u"}}),
        (
            {"auth_tenant": "/authorizer/iam/userArn", "auth_tenants": {"arn:aws:iam::1:u": A}},
            {"authorizer": {"iam": {"userArn": "arn:aws:iam::1:u"}}},
        ),
        (
            {"auth_tenant": "/identity/userArn", "auth_tenants": {"arn:aws:iam::1:u": A}},
            {"identity": {"userArn": "arn:aws:iam::1:u"}},
        ),
        (
            {"auth_tenant": "/authorizer/jwt/claims/https:~1~1a.example~1tenant~0"},
            {"authorizer": {"jwt": {"claims": {"https://a.example/tenant~": str(A)}}}},
        ),
    ],
)
async def test_an_authorizers_claims_name_the_tenant(
    store: ContextStore, settings: Any, context: Any
) -> None:
    """Wherever the kind of authorizer puts them, and whatever they are called."""
    await store.for_tenant(A).create(name="of A")
    await store.create(name="of nobody")
    client = Client(create_app(store, claims(**settings)), **event(context))
    answer = await client("GET", "/v1/contexts")
    assert [item["name"] for item in answer.value["items"]] == ["of A"]


@pytest.mark.parametrize(
    "context",
    [
        None,
        "authorizer",
        [],
        {},
        {"authorizer": None},
        {"authorizer": {"jwt": {"claims": {}}}},
        {"authorizer": {"jwt": {"claims": {"tenant": None}}}},
        {"authorizer": {"jwt": {"claims": {"tenant": ""}}}},
        {"authorizer": {"jwt": {"claims": {"tenant": "acme"}}}},
        {"authorizer": {"jwt": {"claims": {"tenant": 7}}}},
        {"authorizer": {"jwt": {"claims": {"tenant": [str(A)]}}}},
    ],
)
async def test_without_the_claim_nobody_comes_in(store: ContextStore, context: Any) -> None:
    """Nor with one that names no tenant: the default one is not for strangers."""
    client = Client(create_app(store, claims()), **event(context))
    refused(await client("GET", "/v1/contexts"))


async def test_claims_are_never_taken_from_a_request(store: ContextStore, keys: Keys) -> None:
    """Behind a server that hands over no event there are none, whatever a client sends."""
    client = Client(create_app(store, claims()))
    headers = {"aws.event": str(JWT), "x-amzn-request-context": str(JWT)}
    refused(await client("GET", "/v1/contexts", headers=headers))
    # And a key opens nothing where claims are asked for.
    made = await keys.create("a", scope="admin")
    refused(await client.with_key(made.text)("GET", "/v1/contexts"))


@pytest.mark.parametrize(
    ("said", "statuses"),
    [
        ("read", (200, 403, 403)),
        ("openid pgcontext:write email", (200, 201, 403)),
        ("pgcontext/admin", (200, 201, 200)),
        ("[pgcontext:read pgcontext:admin]", (200, 201, 200)),
        (["read", "write"], (200, 201, 403)),
        ("billing:admin other/admin administrator", (401, 401, 401)),
        ("", (401, 401, 401)),
        (None, (401, 401, 401)),
    ],
)
async def test_a_claim_may_say_the_scope(
    store: ContextStore, said: Any, statuses: tuple[int, ...]
) -> None:
    """The most that it says; scopes of other services are nothing to us."""
    scope = " ".join(said) if isinstance(said, list) else said
    context = {"authorizer": {"jwt": {"claims": {"tenant": str(A), "scope": scope}}}}
    settings = claims(auth_scope="/authorizer/jwt/claims/scope")
    client = Client(create_app(store, settings), **event(context))
    answers = [
        await client("GET", "/v1/contexts"),
        await client("POST", "/v1/contexts", {}),
        await client("POST", "/v1/purge", {"older_than_seconds": 0}),
    ]
    assert tuple(answer.status for answer in answers) == statuses


async def test_without_a_scope_claim_callers_may_read(store: ContextStore) -> None:
    """The default is the least; a setting gives all of them more."""
    for scope, status in (("read", 403), ("write", 201)):
        client = Client(create_app(store, claims(auth_scope=scope)), **event(JWT))
        assert (await client("POST", "/v1/contexts", {})).status == status


NONE: Final = Settings.from_env({}, auth="none")


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        (("127.0.0.1", 8000), "localhost:8000", 200),
        (("127.0.0.5", 8000), "LOCALHOST", 200),
        (("::1", 8000), "[::1]:8000", 200),
        (("/run/app.sock", None), "localhost", 200),
        (("192.168.1.7", 8000), "localhost:8000", 401),
        (("0.0.0.0", 8000), "localhost:8000", 401),  # noqa: S104
        (("example", 80), "localhost", 401),
        (None, "localhost", 401),
        (("127.0.0.1", 8000), "attacker.example:8000", 401),
        (("127.0.0.1", 8000), "localhost.attacker.example", 401),
        (("127.0.0.1", 8000), "", 401),
    ],
)
async def test_none_is_for_this_machine_alone(
    store: ContextStore, address: Any, host: str, status: int
) -> None:
    """By the server's own address, and by the name that was asked for."""
    client = Client(create_app(store, NONE), server=address)
    answer = await client("GET", "/v1/contexts", headers={"host": host})
    assert answer.status == status
    purge = {"older_than_seconds": 1}
    erased = await client("POST", "/v1/purge", purge, headers={"host": host})
    assert erased.status == status


def test_none_is_refused_in_a_function(database_url: str) -> None:
    """A function is never on loopback only, so the application isn't even made."""
    env = {
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "PGCONTEXT_AUTH": "none",
        "DATABASE_URL": "postgresql://u:p@ep-x-pooler.eu.aws.neon.tech/d",
    }
    with pytest.raises(ConfigError, match="PGCONTEXT_AUTH"):
        create_app(settings=Settings.from_env(env))


@pytest.mark.parametrize(
    "env",
    [
        {"PGCONTEXT_AUTH": "everybody"},
        {"PGCONTEXT_AUTH": "authorizer"},
        {"PGCONTEXT_AUTH": "authorizer", "PGCONTEXT_AUTH_TENANT": "authorizer.jwt"},
        {"PGCONTEXT_AUTH_SCOPE": "root"},
        {"PGCONTEXT_AUTH_TENANTS": '{"a": "b"}'},
        {"PGCONTEXT_AUTH_TENANTS": "[]"},
        {"PGCONTEXT_KEY_CACHE_SECONDS": "0"},
        {"PGCONTEXT_KEY_CACHE_SECONDS": "301"},
        {"PGCONTEXT_CORS_ORIGINS": "app.example.com"},
        {"PGCONTEXT_CORS_ORIGINS": "https://app.example.com/"},
    ],
)
def test_settings_that_cannot_be_are_refused(env: dict[str, str]) -> None:
    """By the variable's name, before anybody is let in."""
    with pytest.raises(ConfigError, match=list(env)[-1]):
        Settings.from_env(env)


async def test_the_database_says_what_is_stored_where(database_url: str) -> None:
    """Where keys can't be looked up nobody comes in, and it isn't the caller's fault."""
    settings = Settings.from_env({}, url=database_url, dimensions=DIMENSIONS, schema="elsewhere")
    store = ContextStore(settings=settings)
    key = f"pgc_{A.hex}_{A.hex}_secret"
    answer = await Client(create_app(store), key)("GET", "/v1/contexts")
    assert (answer.status, answer.type) == (503, "not-ready")
    await store.aclose()
