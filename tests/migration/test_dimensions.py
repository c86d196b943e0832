"""Giving the embeddings of a database another length: what becomes of it, and what may go wrong."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest

from pgcontext import (
    ConfigError,
    ContextStore,
    DimensionMismatchError,
    InvalidInputError,
    SchemaMismatchError,
    UnavailableError,
    limits,
    migrate,
)
from pgcontext.cli.output import Exit
from pgcontext.migrate import DimensionsPlan, change_dimensions, plan_dimensions
from pgcontext.migrate import dimensions as module
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences
from tests.support.chats import axis, call, user, users
from tests.support.cli import Cli
from tests.support.embedders import Words
from tests.support.migrations import VERSIONS, execute, fetch, settings_of
from tests.support.postgres import migrate as migrated_by

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

OTHER: Final = 12
TEXT_INDEXES: Final = (
    "SELECT x.relname FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid"
    " JOIN pg_am AS m ON m.oid = x.relam"
    " WHERE i.indrelid = 'messages'::regclass AND m.amname = 'gin' AND i.indisvalid"
)


def change(url: str, to: int = OTHER, **settings: Any) -> list[str]:
    """Change the length, and return what was reported, each step once."""
    steps: list[str] = []
    change_dimensions(
        to, settings=settings_of(url, **settings), report=lambda step, _part: steps.append(step)
    )
    return list(dict.fromkeys(step.partition(";")[0] for step in steps))


async def fill(url: str) -> None:
    """Put in messages with all that can be about an embedding."""
    async with ContextStore.from_env(url=url, embedder=Words("old")) as store:
        context = await store.create(name="all kinds")
        await store.append(
            context.id,
            [
                user("embedded"),
                user("given", embedding=axis(0), embedding_model="mine"),
                call("c", embedding=axis(1)),
                user("gone"),
            ],
        )
        await store.append(context.id, user("later"), embed="later")
        await store.append(context.id, user("never"), embed=False)
        await store.erase(context.id, 4)
        await store.delete_messages(context.id, 2)


def marks(url: str) -> list[tuple[str | None, bool, str | None, bool]]:
    """Of each message: content, whether it has an embedding, its model, whether one is owed."""
    rows = fetch(
        url,
        "SELECT content, embedding IS NOT NULL, embedding_model, embed_after IS NOT NULL"
        " FROM messages ORDER BY version",
    )
    return [tuple(row) for row in rows]


@pytest.fixture
def url(database_url: str) -> str:
    """A database with messages of all kinds."""
    asyncio.run(fill(database_url))
    return database_url


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("before", "after"), [(8, 12), (12, 2_500), (4_000, 1), (1, 8)])
def test_the_database_becomes_as_if_made_with_that_length(
    make_database: Callable[..., str], version: int, before: int, after: int
) -> None:
    """The whole catalog is equal to that of a fresh one; and back again."""
    one, two, fresh = (make_database(version=version, migrated=False) for _ in range(3))
    for each, length in ((one, before), (two, after), (fresh, after)):
        migrated_by(each, dimensions=length)
    steps = change(one, after)
    assert len(steps) >= 3
    assert differences(catalog(one), catalog(fresh)) == []
    assert migrate.check(settings=settings_of(one, dimensions=after)) == []
    change(two, before)
    change(two, after)
    assert differences(catalog(two), catalog(fresh)) == []


def test_another_schema_is_changed_and_public_is_not(empty_database_url: str) -> None:
    """Two stores in one database have lengths of their own, also with names that need quotes."""
    for schema in ("public", "user", "chats_2"):
        migrate.upgrade(settings=settings_of(empty_database_url, schema=schema))
    before = catalog(empty_database_url)
    change(empty_database_url, schema="user")
    assert catalog(empty_database_url) == before
    assert migrate.status(settings=settings_of(empty_database_url, schema="user")).dimensions == 12
    settings = settings_of(empty_database_url, schema="user", dimensions=OTHER)
    assert migrate.check(settings=settings) == []


def test_what_had_an_embedding_is_owed_one(url: str) -> None:
    """Where there is text; what had none, and was not owed one, isn't now; nothing else changes."""
    content = "SELECT to_jsonb(m) - '{embedding,signature,embedding_model,embed_after}'::text[]"
    before = fetch(url, f"{content} FROM messages AS m ORDER BY version")
    assert plan_dimensions(OTHER, settings=settings_of(url)) == DimensionsPlan(
        before=DIMENSIONS,
        after=OTHER,
        messages=6,
        embedded=2,
        owed=1,
        lost=1,
        table_bytes=fetch(url, "SELECT pg_total_relation_size('messages')")[0][0],
        indexes=(),
    )
    change(url)
    assert marks(url) == [
        ("embedded", False, None, True),
        ("given", False, None, True),
        (None, False, None, False),
        (None, False, None, False),
        ("later", False, None, True),
        ("never", False, None, False),
    ]
    assert fetch(url, f"{content} FROM messages AS m ORDER BY version") == before


async def test_blanks_are_owed_none(database_url: str) -> None:
    """What nobody can embed is neither marked nor sent; the plan says that its vector is lost."""
    async with ContextStore.from_env(url=database_url) as store:
        context = await store.create()
        blanks = [user(blank, embedding=axis(0)) for blank in ("", " \n", "\u00a0")]
        await store.append(context.id, [*blanks, user(" a", embedding=axis(0))])
    plan = await asyncio.to_thread(plan_dimensions, OTHER, settings=settings_of(database_url))
    assert (plan.embedded, plan.lost) == (1, 3)
    await asyncio.to_thread(change, database_url)
    owed = await asyncio.to_thread(marks, database_url)
    assert [is_owed for _, _, _, is_owed in owed] == [False, False, False, True]


async def test_the_store_goes_on_with_the_new_length(database_url: str) -> None:
    """By words at once; by vector as soon as they are embedded anew, in a context and without."""
    await fill(database_url)
    await asyncio.to_thread(change, database_url)
    embedder = Words("new", dimensions=OTHER)
    async with ContextStore.from_env(
        url=database_url, dimensions=OTHER, embedder=embedder
    ) as store:
        [context] = (await store.list()).items
        for scope in (None, context.id):
            hits = await store.search("embedded", context_id=scope, mode="text")
            assert [hit.message.content for hit in hits] == ["embedded"]
            assert await store.search("embedded", context_id=scope, mode="vector") == []
        assert await store.embed_pending() == 3
        await store.append(context.id, user("another"))
        for scope in (None, context.id):
            for text in ("embedded", "later", "another"):
                [hit] = await store.search(
                    text, context_id=scope, mode="vector", max_distance=0.001
                )
                assert hit.message.content == text
        await store.restore_messages(context.id, 2)
        hits = await store.search("given", mode="vector", max_distance=0.001)
        assert [hit.message.content for hit in hits] == ["given"]


def test_the_same_length_again_changes_nothing(url: str) -> None:
    """No table is rewritten, no index made, no embedding lost."""
    files = "SELECT relname, relfilenode FROM pg_class WHERE relname LIKE 'messages%' ORDER BY 1"
    before, held = fetch(url, files), marks(url)
    assert change(url, DIMENSIONS) == ["gathering statistics"]
    assert (fetch(url, files), marks(url)) == (before, held)


@pytest.mark.parametrize("length", [0, -1, limits.EMBEDDING_DIMENSIONS_MAX + 1])
def test_a_length_has_bounds(url: str, length: int) -> None:
    """The sentence says which; nothing is asked of the database."""
    for attempt in (plan_dimensions, change_dimensions):
        with pytest.raises(InvalidInputError, match="1 to 4,000"):
            attempt(length, settings=settings_of("postgresql://localhost:1/nothing"))


def test_a_database_that_is_not_migrated_is_refused(empty_database_url: str) -> None:
    """It says the command to run."""
    with pytest.raises(SchemaMismatchError, match="pgcontext db migrate"):
        change(empty_database_url)


def test_what_depends_on_the_column_is_in_the_way(url: str) -> None:
    """A view of the user's own: nothing is changed, and the sentence says what to do."""
    execute(url, "CREATE VIEW mine AS SELECT id, embedding FROM messages")
    before, held = catalog(url), marks(url)
    with pytest.raises(ConfigError, match=r"views .* depend .*; nothing was changed: remove"):
        change(url)
    assert (catalog(url), marks(url)) == (before, held)


@contextmanager
def reading(url: str) -> Generator[None]:
    """Hold the table as a long report does, which reads and reads."""
    held, done = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.fetch("SELECT FROM messages")
            held.set()
            await asyncio.to_thread(done.wait)
        await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_it_never_hangs_behind_traffic(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that isn't to be had in time is left as it is."""
    monkeypatch.setattr(limits, "MIGRATION_LOCK_SECONDS_MAX", 1)
    before, held = catalog(url), marks(url)
    with reading(url), pytest.raises(UnavailableError, match="nothing was changed"):
        change(url)
    assert (catalog(url), marks(url)) == (before, held)
    change(url)


def waiting(url: str) -> bool:
    """Whether somebody waits for the table."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted)"
    )
    return bool(fetch(url, query)[0][0])


def test_killed_in_the_middle_nothing_is_changed(url: str) -> None:
    """The transaction dies with the command; the next run does it all."""
    before, held = catalog(url), marks(url)
    with reading(url):
        process = subprocess.Popen(
            [sys.executable, "-m", "pgcontext.cli", "db", "dimensions", str(OTHER), "--yes"],
            env=os.environ | {"DATABASE_URL": url},
            stderr=subprocess.PIPE,
        )
        try:
            for _ in range(200):
                if waiting(url):
                    break
                time.sleep(0.05)
            assert waiting(url)
        finally:
            process.kill()
            process.communicate()
    for _ in range(100):
        if marks(url) == held and not waiting(url):
            break
        time.sleep(0.1)
    assert (catalog(url), marks(url)) == (before, held)
    change(url)
    assert sum(owed for *_, owed in marks(url)) == 3


def test_interrupted_before_the_text_index_the_next_run_builds_it(
    url: str, make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search by words works meanwhile; afterwards the catalog is that of a fresh database."""

    def interrupt(*_given: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_alone", interrupt)
        with pytest.raises(KeyboardInterrupt):
            change(url)
    assert fetch(url, TEXT_INDEXES) == []
    plan = plan_dimensions(OTHER, settings=settings_of(url))
    assert plan.before == plan.after == OTHER
    assert plan.indexes
    found = asyncio.run(search(url, "embedded", dimensions=OTHER))
    assert found == ["embedded"]
    held = marks(url)
    assert all(step.startswith(("building", "gathering")) for step in change(url))
    fresh = make_database(migrated=False)
    migrated_by(fresh, dimensions=OTHER)
    assert differences(catalog(url), catalog(fresh)) == []
    assert marks(url) == held


def test_an_index_that_was_cut_off_is_built_anew(url: str) -> None:
    """What a concurrent build leaves behind when it dies is no index; the next run replaces it."""
    change(url)
    whole = fetch(url, TEXT_INDEXES)
    assert whole
    execute(
        url,
        "UPDATE pg_index SET indisvalid = false FROM pg_class AS x, pg_am AS m"
        " WHERE x.oid = indexrelid AND m.oid = x.relam AND m.amname = 'gin'"
        " AND indrelid = 'messages'::regclass",
    )
    assert fetch(url, TEXT_INDEXES) == []
    change(url)
    assert fetch(url, TEXT_INDEXES) == whole


async def search(url: str, words: str, **settings: Any) -> list[str | None]:
    async with ContextStore.from_env(url=url, **settings) as store:
        return [hit.message.content for hit in await store.search(words, mode="text")]


async def test_writers_wait_and_lose_nothing(database_url: str) -> None:
    """Messages appended while the table is rewritten are all there, each once and in order."""
    async with ContextStore.from_env(url=database_url) as store:
        context = await store.create()
        await store.append(context.id, users(500))
        changing = asyncio.create_task(asyncio.to_thread(change, database_url))
        count = 500
        while not changing.done():
            count += 1
            await store.append(context.id, user(f"message {count}"))
        await changing
        read = [message async for message in store.iter_history(context.id)]
        assert [message.content for message in read] == [
            f"message {number}" for number in range(1, count + 1)
        ]
        assert count > 501


async def test_who_still_has_the_old_length_is_told(database_url: str) -> None:
    """Stored without an embedding all goes on; with one it is refused, naming the command."""
    await asyncio.to_thread(change, database_url)
    async with ContextStore.from_env(url=database_url) as store:
        context = await store.create()
        await store.append(context.id, user("plain"))
        with pytest.raises(DimensionMismatchError, match="pgcontext db dimensions"):
            await store.append(context.id, user("vector", embedding=axis(0)))
        assert len(await store.history(context.id)) == 1


async def test_who_still_embeds_in_the_old_length_loses_no_message(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """What it appends is owed an embedding, which another makes; it gives back what it claimed."""
    await asyncio.to_thread(change, database_url)
    async with ContextStore.from_env(url=database_url, embedder=Words()) as old:
        context = await old.create()
        batch = [user("given", embedding=axis(0)), user("embedded")]
        with pytest.raises(DimensionMismatchError, match="pgcontext db dimensions"):
            await old.append(context.id, batch)
        messages = await old.append(context.id, [call("c"), user("embedded")], idempotency_key="k")
        assert [message.embedding_pending for message in messages] == [False, True]
        assert await old.history(context.id) == messages
        with pytest.raises(DimensionMismatchError, match="pgcontext db dimensions"):
            await old.embed_pending()
    due_in = await connection.fetchval("SELECT max(embed_after) - now() FROM messages")
    assert due_in.total_seconds() <= limits.EMBED_RETRY_SECONDS
    await connection.execute("UPDATE messages SET embed_after = now() WHERE embed_after > now()")
    new = Words(dimensions=OTHER)
    async with ContextStore.from_env(url=database_url, dimensions=OTHER, embedder=new) as store:
        assert await store.embed_pending() == 1


def test_a_migration_with_another_length_names_the_command(url: str) -> None:
    """Both ways out: the setting, or the database."""
    with pytest.raises(ConfigError) as raised:
        migrate.upgrade(settings=settings_of(url, dimensions=OTHER))
    assert f"set PGCONTEXT_DIMENSIONS={DIMENSIONS}" in str(raised.value)
    assert str(raised.value).endswith(f"pgcontext db dimensions {OTHER}")


@pytest.fixture
def cli(url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on the database, with the length of before in the settings."""
    return Cli(monkeypatch, url)


def test_the_command_says_what_it_will_do_and_asks(cli: Cli, url: str) -> None:
    """How much is rewritten, embedded anew and lost; anything but yes leaves it as it is."""
    before, held = catalog(url), marks(url)
    asked = cli.process("db", "dimensions", OTHER, stdin=b"n\n")
    assert (asked.code, asked.out) == (Exit.CHECK_FAILED, "")
    assert "From 8 to 12 dimensions: the 6 messages" in asked.err
    assert "nobody reads or writes them meanwhile" in asked.err
    assert "2 embeddings are lost, and made anew by 'pgcontext embed'" in asked.err
    assert "1 embeddings are lost for good" in asked.err
    assert asked.err.endswith("[y/N] pgcontext: Nothing was changed.\n")
    assert (catalog(url), marks(url)) == (before, held)
    refused = cli("db", "dimensions", OTHER, "--json")
    assert (refused.code, "say --yes" in refused.error["detail"]) == (Exit.INVALID_INPUT, True)
    assert marks(url) == held


def test_the_command_does_it_and_says_what_comes_next(cli: Cli, url: str) -> None:
    """Each step on stderr; then the setting to change and the command to run; again: nothing."""
    done = cli.process("db", "dimensions", OTHER, stdin=b"y\n")
    assert done.code == 0
    assert done.out == (
        "The database's embeddings have 12 dimensions. Set PGCONTEXT_DIMENSIONS=12 wherever "
        "pgcontext runs, then run: pgcontext embed\n"
    )
    steps = re.findall(r"(\w+) [^\n]* \.\.\.\n", done.err.partition("[y/N] ")[2])
    assert steps == ["rewriting", *["building"] * len(fetch(url, TEXT_INDEXES)), "gathering"]
    again = cli.ok("db", "dimensions", OTHER)
    assert again.out == "The database's embeddings have 12 dimensions already.\n"
    value = cli.json("db", "dimensions", DIMENSIONS, "--yes")
    assert (value["before"], value["after"], value["embedded"]) == (OTHER, DIMENSIONS, 0)


@pytest.mark.parametrize("length", ["0", "4001", "many"])
def test_the_command_refuses_what_is_no_length(cli: Cli, url: str, length: str) -> None:
    """Bad input, in one sentence or typer's own words."""
    held = marks(url)
    refused = cli("db", "dimensions", length, "--yes")
    assert (refused.code, refused.out) == (Exit.INVALID_INPUT, "")
    assert marks(url) == held


def test_the_command_refuses_a_transaction_pooler(cli: Cli) -> None:
    """It says which variable to set."""
    cli.patch.setenv("DATABASE_URL", "postgresql://me:secret@db.example.com:6432/app")
    refused = cli("db", "dimensions", OTHER, "--yes", "--json")
    assert (refused.code, refused.error["type"]) == (Exit.CONFIG, "ConfigError")
    assert "set DATABASE_URL_UNPOOLED" in refused.error["detail"]


def test_the_embedded_postgresql_is_changed_too(cli: Cli, tmp_path: Path) -> None:
    """Also when the settings already say the new length, as the refusal had told."""
    cli.patch.delenv("DATABASE_URL")
    cli.patch.setenv("PGCONTEXT_DATA_DIR", str(tmp_path / "data"))
    assert cli.process("db", "status", "--json").value["dimensions"] == DIMENSIONS
    # While it holds no embedding, its length would just follow the settings.
    asyncio.run(_append_an_embedding())
    cli.patch.setenv("PGCONTEXT_DIMENSIONS", str(OTHER))
    refused = cli.process("list")
    assert refused.code == Exit.CONFIG
    assert f"pgcontext db dimensions {OTHER}" in refused.err
    assert cli.process("db", "dimensions", OTHER, "--yes").code == 0
    assert cli.process("db", "status", "--json").value["dimensions"] == OTHER
    assert cli.process("list").code == 0
    # Who still says the old one is refused, and doesn't undo it, though no embedding is there yet.
    cli.patch.setenv("PGCONTEXT_DIMENSIONS", str(DIMENSIONS))
    refused = cli.process("list")
    assert refused.code == Exit.CONFIG
    assert f"{OTHER} dimensions, and PGCONTEXT_DIMENSIONS says {DIMENSIONS}" in refused.err
    assert cli.process("db", "dimensions", DIMENSIONS, "--yes").code == 0
    # Nor does the file that remembers what was migrated lead anybody astray.
    cli.patch.setenv("PGCONTEXT_DIMENSIONS", str(OTHER))
    assert cli.process("list").code == Exit.CONFIG


async def _append_an_embedding() -> None:
    async with ContextStore.from_env() as store:
        context = await store.create()
        message = {"role": "user", "content": "hello", "embedding": [1.0] * DIMENSIONS}
        await store.append(context.id, message)
