"""The language of the texts: fixed by the first migration, changed by a command, dumped along."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest

from pgcontext import ContextStore, Settings, limits, migrate
from pgcontext.errors import ConfigError
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences
from tests.support.migrations import VERSIONS, execute, fetch, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS: Final = ("die Häuser am See", "les chats sont mangés", "the houses were eaten")
WORDS: Final = "SELECT text_search::text FROM messages ORDER BY version"


def store_settings(url: str) -> Settings:
    """Settings of a store on the database, with nothing from the environment."""
    return Settings.from_env({}, url=url, dimensions=DIMENSIONS)


def write(url: str, *texts: str) -> None:
    """Store a message of each text."""

    async def work() -> None:
        async with ContextStore(settings=store_settings(url)) as store:
            context = await store.create()
            await store.append(context.id, [{"role": "user", "content": text} for text in texts])

    asyncio.run(work())


def found(url: str, query: str) -> list[str | None]:
    """What a search for words finds, best first."""

    async def work() -> list[str | None]:
        async with ContextStore(settings=store_settings(url)) as store:
            return [hit.message.content for hit in await store.search(query, mode="text")]

    return asyncio.run(work())


@pytest.fixture
def german_url(empty_database_url: str) -> str:
    """A database that was migrated for German texts."""
    migrate.upgrade(settings=settings_of(empty_database_url, text_language="german"))
    return empty_database_url


def test_the_first_migration_fixes_the_language(german_url: str) -> None:
    """Words are stemmed by it; whoever doesn't name a language later takes what is there."""
    write(german_url, *TEXTS)
    assert found(german_url, "Haus") == ["die Häuser am See"]
    assert found(german_url, "hauser") == ["die Häuser am See"]
    assert found(german_url, "die am") == []
    unnamed = settings_of(german_url)
    assert migrate.status(settings=unnamed).language == "german"
    assert migrate.upgrade(settings=unnamed) == limits.SCHEMA_REVISION
    assert migrate.check(settings=unnamed) == []
    assert migrate.push(settings=unnamed) == []
    assert migrate.check(settings=settings_of(german_url, text_language="german")) == []


def test_another_language_than_the_databases_is_refused(german_url: str) -> None:
    """By the command that changes it; nothing is changed by itself."""
    settings = settings_of(german_url, text_language="english")
    for action in (migrate.upgrade, migrate.check, migrate.push):
        with pytest.raises(ConfigError, match="pgcontext db language english"):
            action(settings=settings)


@pytest.mark.parametrize("language", ["klingon", "pg_catalog", "swedish_chef"])
def test_a_language_that_is_not_there_is_refused(empty_database_url: str, language: str) -> None:
    """By name, with those that are, before anything is made."""
    with pytest.raises(ConfigError, match=f"TEXT_LANGUAGE={language}; it has: .*german.*simple"):
        migrate.upgrade(settings=settings_of(empty_database_url, text_language=language))
    assert migrate.status(settings=settings_of(empty_database_url)).revision is None


@pytest.mark.parametrize("language", ["English", "german; DROP TABLE", "a" * 64, "pg.german", "'"])
def test_what_is_no_name_is_refused_without_a_database(language: str) -> None:
    """The setting is checked when it is read."""
    with pytest.raises(ConfigError, match="PGCONTEXT_TEXT_LANGUAGE must be"):
        settings_of("postgresql://nowhere/none", text_language=language)


def test_a_database_in_another_encoding_is_refused(empty_database_url: str) -> None:
    """Accents can be folded in UTF8 only; a text would be refused later, which is worse."""
    execute(
        empty_database_url,
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 STRATEGY file_copy",
    )
    try:
        name = empty_database_url.partition("?")[0].rpartition("/")[2]
        url = empty_database_url.replace(f"/{name}", "/latin")
        with pytest.raises(ConfigError, match=r"encoding is LATIN1.* ENCODING 'UTF8'"):
            migrate.upgrade(settings=settings_of(url))
    finally:
        execute(empty_database_url, "DROP DATABASE latin WITH (FORCE)")


@pytest.mark.parametrize("version", VERSIONS)
def test_changing_the_language_makes_what_a_new_database_has(
    make_database: Callable[..., str], version: int
) -> None:
    """The same catalog and the same words as if it had been so from the beginning."""
    changed, fresh = (make_database(version=version, migrated=False) for _ in range(2))
    migrate.upgrade(settings=settings_of(changed))
    migrate.upgrade(settings=settings_of(fresh, text_language="french"))
    write(changed, *TEXTS)
    write(fresh, *TEXTS)
    seen: list[int] = []
    plan = migrate.plan_language("french", settings=settings_of(changed))
    assert (plan.before, plan.after, plan.messages) == ("english", "french", 3)
    assert migrate.change_language("french", settings=settings_of(changed), report=seen.append) == 3
    assert seen == [3]
    assert differences(catalog(fresh), catalog(changed)) == []
    assert fetch(changed, WORDS) == fetch(fresh, WORDS)
    assert found(changed, "chat manger") == ["les chats sont mangés"]
    assert migrate.change_language("french", settings=settings_of(changed)) == 0


def test_an_interrupted_change_goes_on(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done shows in the rows: the next run finds the rest, over all tenants."""
    monkeypatch.setattr(limits, "LANGUAGE_BATCH_MESSAGES_MAX", 2)
    for _ in range(3):
        write(database_url, *TEXTS)
    settings = settings_of(database_url)

    def stop(seen: int) -> None:
        if seen == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate.change_language("german", settings=settings, report=stop)
    assert migrate.status(settings=settings).language == "german"
    write(database_url, "neue Häuser")
    assert found(database_url, "Haus")[0] is not None
    assert migrate.change_language("german", settings=settings) == 5
    assert len(found(database_url, "Haus")) == 4


def test_who_writes_at_that_moment_is_not_missed(database_url: str) -> None:
    """A message that was written in the old language and is committed later gets its words too."""
    settings = settings_of(database_url)

    async def scenario() -> int:
        writer = await asyncpg.connect(database_url)
        try:
            transaction = writer.transaction()
            await transaction.start()
            await writer.execute(
                "WITH c AS (INSERT INTO contexts (id, latest_version, message_count)"
                " VALUES (gen_random_uuid(), 1, 1) RETURNING tenant_id, id)"
                " INSERT INTO messages (tenant_id, id, context_id, version, role, content)"
                " SELECT tenant_id, gen_random_uuid(), id, 1, 'user', 'Häuser' FROM c"
            )
            work = asyncio.create_task(
                asyncio.to_thread(migrate.change_language, "german", settings=settings)
            )
            waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'messages'::regclass"
            while not await writer.fetchval(f"{waiting} AND NOT granted"):
                assert not work.done()
                await asyncio.sleep(0.02)
            await transaction.commit()
            return await work
        finally:
            await writer.close()

    assert asyncio.run(scenario()) == 1
    assert found(database_url, "Haus") == ["Häuser"]


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_are_kept_and_found_across_the_migration(
    make_database: Callable[..., str], version: int
) -> None:
    """Up to the functions and back again: the rows stay, their words follow."""
    url = make_database(version=version, migrated=False)
    settings = settings_of(url)
    migrate.upgrade(settings=settings)
    write(url, *TEXTS, "call get_user_details(x)", "")
    migrate.downgrade(steps=len(migrate.revisions()) - 2, settings=settings)
    words: list[Any] = fetch(url, "SELECT text_search::text FROM messages ORDER BY version")
    assert [row[0] for row in words][2:4] == [
        "'eaten':4 'hous':2",
        "'call':1 'detail':4 'get':2 'user':3 'x':5",
    ]
    migrate.upgrade(settings=settings)
    assert found(url, "getUserDetails") == ["call get_user_details(x)"]
    assert migrate.check(settings=settings) == []
