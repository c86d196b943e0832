import asyncio
import gc
import logging
import pickle
import traceback
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgcontext import (
    ConfigError,
    ContextNotFoundError,
    ContextStore,
    ContextStoreError,
    InvalidInputError,
    SchemaMismatchError,
    UnavailableError,
)
from tests.support.chats import NOWHERE, contents, user

SECRET = "the-content-that-must-not-show"  # noqa: S105 (a message)
POOLED = "postgresql://u:hunter2@ep-x-pooler.eu.aws.neon.tech/db"


async def test_a_store_works_again_after_it_was_closed(store: ContextStore) -> None:
    """Closing gives the connections back; the next call makes new ones."""
    context = await store.create()
    await store.aclose()
    await store.append(context.id, user("again"))
    await store.aclose()
    await store.aclose()
    assert contents(await store.history(context.id)) == ["again"]


async def test_the_store_closes_itself_as_a_context_manager(
    make_store: Any, connection: Any
) -> None:
    """`async with` leaves no connection behind, also when the body fails."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = await connection.fetchval(count)

    async def fail() -> None:
        async with make_store() as store:
            assert isinstance(store, ContextStore)
            await store.create()
            assert await connection.fetchval(count) > before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    for _ in range(100):
        if await connection.fetchval(count) == before:
            break
        await asyncio.sleep(0.02)
    assert await connection.fetchval(count) == before


async def test_a_store_never_used_is_closed_without_a_database() -> None:
    """Making, entering and closing a store does no I/O."""
    async with ContextStore(NOWHERE) as store:
        assert store.tenant_id == UUID(int=0)


async def test_a_tenants_store_shares_the_connections(store: ContextStore, connection: Any) -> None:
    """However many tenants, the bound on connections is one."""
    tenants = [store.for_tenant(uuid4()) for _ in range(20)]
    await asyncio.gather(*(tenant.create() for tenant in tenants))
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await connection.fetchval(count) <= 3 + 1


async def test_tenants_do_not_see_each_other(store: ContextStore) -> None:
    """A tenant's store works on its own contexts, and the original goes on with its own."""
    tenant_id = uuid4()
    tenant = store.for_tenant(str(tenant_id))
    assert isinstance(tenant, ContextStore)
    assert (tenant.tenant_id, store.tenant_id) == (tenant_id, UUID(int=0))
    context = await tenant.create()
    assert context.tenant_id == tenant_id
    with pytest.raises(ContextNotFoundError):
        await store.get(context.id)
    again = tenant.for_tenant(tenant_id)
    assert await again.get(context.id) == context


@pytest.mark.parametrize("bad", ["", "tenant", 7, None])
async def test_a_tenant_is_a_uuid(bad: Any) -> None:
    """Whoever has names for tenants maps them to UUIDs first."""
    with pytest.raises(InvalidInputError, match="tenant_id"):
        ContextStore(NOWHERE).for_tenant(bad)
    if bad is not None:
        with pytest.raises(InvalidInputError, match="tenant_id"):
            ContextStore(NOWHERE, tenant_id=bad)


def test_a_store_serves_one_event_loop_after_another(database_url: str) -> None:
    """A function that calls asyncio.run for each request keeps its store."""
    store = ContextStore(database_url)

    async def request() -> int:
        await store.create()
        return len((await store.list()).items)

    assert [asyncio.run(request()) for _ in range(4)] == [1, 2, 3, 4]
    asyncio.run(store.aclose())
    gc.collect()


@pytest.mark.parametrize(
    "function", [("AWS_LAMBDA_FUNCTION_NAME", "chat"), ("VERCEL", "1")], ids=lambda pair: pair[0]
)
def test_in_a_function_a_store_needs_a_database(
    monkeypatch: pytest.MonkeyPatch, function: tuple[str, str]
) -> None:
    """The embedded PostgreSQL never runs there; the sentence says what to set."""
    monkeypatch.setenv(*function)
    for make in (ContextStore, ContextStore.from_env):
        with pytest.raises(ConfigError, match="DATABASE_URL"):
            make()
    assert ContextStore(POOLED).settings.in_function


def test_from_env_reads_the_environment_and_takes_overrides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No I/O: the database named here doesn't exist."""
    monkeypatch.setenv("DATABASE_URL", POOLED)
    tenant_id = uuid4()
    store = ContextStore.from_env(tenant_id=tenant_id, pool_size=1)
    assert store.settings.url is not None
    assert store.settings.url.hosts[0][0].startswith("ep-x-pooler")
    assert store.settings.pool_size == 1
    assert store.tenant_id == tenant_id


@pytest.mark.parametrize(
    "url", ["", "localhost", "mysql://u:hunter2@h/db", "postgresql://u:hunter2@h/db?jit=off", 7]
)
def test_a_bad_url_is_told_when_the_store_is_made(url: Any) -> None:
    """A ConfigError, without its password, before any I/O."""
    with pytest.raises(ConfigError) as caught:
        ContextStore(url)
    assert "hunter2" not in str(caught.value)


def test_a_store_shows_no_password() -> None:
    """Its repr is safe to log."""
    assert "hunter2" not in repr(ContextStore(POOLED))


async def test_an_unreachable_database_is_unavailable_and_retryable() -> None:
    """After bounded retries, in one sentence without the URL's secret."""
    async with ContextStore(NOWHERE) as store:
        with pytest.raises(UnavailableError) as caught:
            await store.create()
    assert caught.value.retryable
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert pickle.loads(pickle.dumps(caught.value)).retryable  # noqa: S301 (our own bytes)


async def test_a_database_that_is_not_migrated_says_the_command(
    make_store: Any, connection: Any
) -> None:
    """SchemaMismatchError with what to run."""
    store = make_store()
    await connection.execute("ALTER TABLE contexts RENAME TO somewhere_else")
    with pytest.raises(SchemaMismatchError, match="pgcontext db migrate") as caught:
        await store.create()
    assert caught.value.sqlstate == "42P01"


async def test_a_refusal_of_the_database_repeats_no_content(
    store: ContextStore, connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL quotes the failing row; neither the error, its causes nor the log may."""
    caplog.set_level(logging.DEBUG)
    context = await store.create()
    await connection.execute(
        f"ALTER TABLE messages ADD CONSTRAINT no_secrets CHECK (content <> '{SECRET}')"
    )
    with pytest.raises(ContextStoreError) as caught:
        await store.append(context.id, user(SECRET, extra=SECRET))
    assert caught.value.sqlstate == "23514"
    assert not caught.value.retryable
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


async def test_bad_input_repeats_no_content(
    store: ContextStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with a message, its words stay out of the error and the log."""
    caplog.set_level(logging.DEBUG)
    context = await store.create()
    for fields in (
        {"extra": SECRET + "\0"},
        {SECRET + "\0": 1},
        {"extra": {SECRET: object()}},
        {"role": SECRET},
        {"tool_calls": SECRET},
        {"embedding": [SECRET]},
        {"id": SECRET},
        {"model": SECRET * 100},
    ):
        with pytest.raises(InvalidInputError) as caught:
            await store.append(context.id, {**user(SECRET), **fields})
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in caplog.text


async def test_ordinary_work_logs_no_content(
    store: ContextStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Also at debug level."""
    caplog.set_level(logging.DEBUG)
    context = await store.create(name=SECRET, metadata={"k": SECRET})
    await store.append(context.id, user(SECRET))
    await store.history(context.id)
    await store.search(SECRET)
    assert SECRET not in caplog.text
