"""Row-level security stands behind the statements: a role sees the tenant it has set, no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import asyncpg
import pytest

from pgcontext import ContextStore, Settings
from tests.support import DIMENSIONS
from tests.support.migrations import VERSIONS, as_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROLE: Final = "pgcontext_test_app"
A, B = UUID(int=0xA), UUID(int=0xB)
TABLES: Final = ("contexts", "messages", "tombstones")


@pytest.fixture(params=VERSIONS)
async def database(
    request: pytest.FixtureRequest, make_database: Callable[..., str]
) -> AsyncIterator[str]:
    """A database in which two tenants have rows in every table; the role owns nothing."""
    url = make_database(version=request.param)
    async with ContextStore(
        settings=Settings.from_env({}, url=url, dimensions=DIMENSIONS)
    ) as store:
        for tenant in (A, B):
            mine = store.for_tenant(tenant)
            context = await mine.create(name=f"of {tenant}")
            message = {
                "role": "user",
                "content": "a word",
                "token_count": 2,
                "embedding": [1.0] * DIMENSIONS,
            }
            await mine.append(context.id, [message, message])
            await mine.delete_messages(context.id, [2])
    owner = await asyncpg.connect(url)
    await owner.execute(
        f"DROP ROLE IF EXISTS {ROLE}; CREATE ROLE {ROLE} LOGIN;"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}"
    )
    yield url
    await owner.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")
    await owner.close()


@pytest.fixture
async def app(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the role."""
    connection = await asyncpg.connect(as_role(database, ROLE))
    yield connection
    await connection.close()


async def seen(connection: asyncpg.Connection) -> dict[str, set[UUID]]:
    """Whose rows show in each table, without any predicate."""
    return {table: {row[0] for row in await connection.fetch(f"TABLE {table}")} for table in TABLES}


async def set_tenant(connection: asyncpg.Connection, tenant: UUID | None) -> None:
    text = "" if tenant is None else str(tenant)
    await connection.execute("SELECT set_config('pgcontext.tenant_id', $1, false)", text)


async def test_a_role_sees_only_the_tenant_it_has_set(app: asyncpg.Connection) -> None:
    """In every table, one tenant, then the other."""
    for tenant in (A, B):
        await set_tenant(app, tenant)
        assert await seen(app) == {table: {tenant} for table in TABLES}


async def test_a_role_sees_nothing_before_and_after(app: asyncpg.Connection) -> None:
    """Never set, set to nothing, and reset all mean no tenant, not an error and not all."""
    nothing: dict[str, set[UUID]] = {table: set() for table in TABLES}
    assert await seen(app) == nothing
    await set_tenant(app, A)
    await app.execute("RESET pgcontext.tenant_id")
    assert await seen(app) == nothing
    await set_tenant(app, None)
    assert await seen(app) == nothing
    await set_tenant(app, A)
    await app.execute("RESET ALL")
    assert await seen(app) == nothing


async def test_a_setting_of_one_transaction_ends_with_it(app: asyncpg.Connection) -> None:
    """Behind a pooler SET LOCAL is the way, and leaves nothing to the next client."""
    async with app.transaction():
        await app.execute(f"SET LOCAL pgcontext.tenant_id = '{A}'")
        assert await seen(app) == {table: {A} for table in TABLES}
    assert await seen(app) == {table: set() for table in TABLES}


async def test_a_role_cannot_write_for_another_tenant(app: asyncpg.Connection) -> None:
    """Neither insert nor move a row there, and what it cannot see it cannot change or delete."""
    await set_tenant(app, A)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute("INSERT INTO contexts (tenant_id, id) VALUES ($1, $1)", B)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute("UPDATE tombstones SET tenant_id = $1", B)
    assert await app.execute("UPDATE contexts SET name = 'x' WHERE tenant_id = $1", B) == "UPDATE 0"
    assert await app.execute("DELETE FROM tombstones WHERE tenant_id = $1", B) == "DELETE 0"


async def test_the_nearest_function_sees_no_more(app: asyncpg.Connection) -> None:
    """It runs as its caller: asked for another tenant, it finds nothing."""
    nearest = (
        "SELECT count(*) FROM pgcontext_nearest($1, '[1,1,1,1,1,1,1,1]'::vector, 10, 10, 1000,"
        " NULL, NULL, NULL, NULL, NULL, NULL)"
    )
    await set_tenant(app, A)
    assert await app.fetchval(nearest, A) == 1
    assert await app.fetchval(nearest, B) == 0


async def test_words_are_found_without_the_statistics(
    database: str, app: asyncpg.Connection
) -> None:
    """Which the role isn't shown: what it may see is found as if all words were rare."""
    owner = await asyncpg.connect(database)
    await owner.execute("ANALYZE messages")
    await owner.execute("UPDATE pg_class SET reltuples = 1e6 WHERE oid = 'messages'::regclass")
    await owner.close()
    assert await app.fetchval("SELECT count(*) FROM pg_stats WHERE tablename = 'messages'") == 0
    matching = (
        "SELECT count(*) FROM pgcontext_matching($1, 'word | more', '{word,more}', 1,"
        " NULL, NULL, NULL, NULL, NULL)"
    )
    await set_tenant(app, A)
    assert await app.fetchval(matching, A) == 1
    assert await app.fetchval(matching, B) == 0


async def test_the_store_works_behind_the_policies(database: str) -> None:
    """A role that is set to a tenant runs the store's statements for it, and for no other."""
    owner = await asyncpg.connect(database)
    await owner.execute(f"ALTER ROLE {ROLE} SET pgcontext.tenant_id = '{A}'")
    await owner.close()
    settings = Settings.from_env({}, url=as_role(database, ROLE), dimensions=DIMENSIONS)
    async with ContextStore(settings=settings, tenant_id=A) as store:
        context = (await store.list()).items[0]
        await store.append(context.id, {"role": "user", "content": "more", "token_count": 1})
        assert [message.version for message in await store.history(context.id)] == [1, 3]
        assert (await store.for_tenant(B).list()).items == []
