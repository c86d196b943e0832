"""The commands under `pgcontext db`: what each does, says, prints as JSON, refuses and asks."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgcontext import ContextStore, limits, migrate
from pgcontext.cli.output import Exit
from pgcontext.cli.seeds import BICYCLES, GARDEN, SEEDS
from pgcontext.migrate import scripts
from pgcontext.schema import metadata
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, names
from tests.support.cli import Cli
from tests.support.migrations import execute, fetch

if TYPE_CHECKING:
    from pathlib import Path

HEAD: Final = limits.SCHEMA_REVISION
ELSEWHERE: Final = "postgresql://me:secret@db.example.com/app"
POOLER: Final = "postgresql://me:secret@db.example.com:6432/app"
COMMANDS: Final = (
    *("check", "dimensions", "drop", "generate", "language", "migrate", "push", "rollback"),
    *("seed", "status"),
)
# The arguments that a command can't do without.
NEEDED: Final = {"dimensions": ("3",), "language": ("german",)}


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on a migrated database."""
    return Cli(monkeypatch, database_url)


@pytest.fixture
def empty_cli(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on a database with nothing in it."""
    return Cli(monkeypatch, empty_database_url)


def test_help_names_every_command(cli: Cli) -> None:
    """`pgcontext db` alone lists what there is, each with what it does."""
    shown = cli("db", "--help").out
    assert [name for name in COMMANDS if not re.search(rf"\b{name} +\w", shown)] == []


def test_migrate_says_what_it_did(empty_cli: Cli) -> None:
    """From nothing to the head, and the second time nothing more."""
    first, second = empty_cli.ok("db", "migrate"), empty_cli.ok("db", "migrate")
    assert first.out == f"Migrated the database from revision none to {HEAD}.\n"
    assert second.out == f"The database is at revision {HEAD} already.\n"
    assert empty_cli.json("db", "migrate") == {"before": HEAD, "revision": HEAD}


def test_status_before_and_after(empty_cli: Cli) -> None:
    """It names the database without its password, the revision, and the command to run."""
    before = empty_cli.json("db", "status")
    assert (before["state"], before["revision"], before["pending"]) == (
        "behind",
        None,
        migrate.revisions(),
    )
    assert "run: pgcontext db migrate" in empty_cli.ok("db", "status").out
    empty_cli.ok("db", "migrate")
    after = empty_cli.json("db", "status")
    assert set(after) == {
        *("url", "state", "revision", "head", "pending", "schema", "dimensions"),
        *("language", "server_version", "pgvector_version"),
    }
    assert (after["state"], after["revision"], after["dimensions"]) == ("current", HEAD, DIMENSIONS)
    shown = empty_cli.ok("db", "status").out
    assert re.search(rf"revision +{HEAD} +current", shown)
    assert after["server_version"] in shown


def test_status_of_a_newer_database(cli: Cli, database_url: str) -> None:
    """A later version of pgcontext was here; that is shown, not refused."""
    execute(database_url, "UPDATE pgcontext_alembic_version SET version_num = '9999'")
    assert cli.json("db", "status")["state"] == "newer"
    assert "upgrade this one" in cli.ok("db", "status").out


def test_check_prints_what_differs_and_fails(cli: Cli, database_url: str) -> None:
    """Exit code 0 while all is as described, 1 from the first difference on."""
    assert cli.ok("db", "check").out == "The database is as described.\n"
    assert cli.json("db", "check") == {"differences": []}
    execute(database_url, "ALTER TABLE contexts DROP COLUMN name", "DROP INDEX messages_text_idx")
    found = cli("db", "check")
    assert found.code == Exit.CHECK_FAILED
    assert found.out == "column contexts.name is missing\nindex messages_text_idx is missing\n"
    found = cli("db", "check", "--json")
    assert (found.code, found.value) == (
        Exit.CHECK_FAILED,
        {"differences": found.value["differences"]},
    )
    assert len(found.value["differences"]) == 2


def test_check_of_an_empty_database_names_the_command(empty_cli: Cli) -> None:
    """The exit code says that it isn't migrated."""
    found = empty_cli("db", "check", "--json")
    assert (found.code, found.error["type"]) == (Exit.NOT_MIGRATED, "SchemaMismatchError")
    assert found.error["detail"].endswith("run: pgcontext db migrate")


@pytest.fixture
def versions_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of migrations/, so that the command may write into it."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder)
    monkeypatch.setattr(scripts, "_CHECKOUT", folder)
    return folder / "versions"


def test_generate_writes_a_file_or_says_why_not(cli: Cli, versions_folder: Path) -> None:
    """Nothing differs, so nothing is written, unless a file to fill is asked for."""
    assert cli.ok("db", "generate", "-m", "More").out.startswith("Nothing to write")
    assert cli.json("db", "generate", "-m", "More") == {"file": None}
    written = versions_folder / f"{int(HEAD) + 1:04}_more.py"
    assert cli.json("db", "generate", "-m", "More.", "--empty") == {"file": str(written)}
    assert written.exists()
    refused = cli("db", "generate", "-m", " ")
    assert (refused.code, "needs a message" in refused.err) == (Exit.INVALID_INPUT, True)
    assert cli("db", "generate").code == Exit.INVALID_INPUT


def test_rollback_undoes_and_says_so(cli: Cli, database_url: str) -> None:
    """Told --yes it doesn't ask; more steps than there are is bad input."""
    applied = len(migrate.revisions())
    refused = cli("db", "rollback", applied + 1, "--yes")
    assert (refused.code, refused.out) == (Exit.INVALID_INPUT, "")
    assert f"Cannot undo {applied + 1} migrations: {applied} are applied here." in refused.err
    said = cli.ok("db", "rollback", applied, "--yes").out
    assert said == "Every migration is undone; the extension pgvector was left.\n"
    assert catalog(database_url) == {}
    cli.ok("db", "migrate")
    before = [None, *migrate.revisions()][-2]
    assert cli.json("db", "rollback", "-y") == {"revision": before}


@pytest.mark.parametrize("command", ["rollback", "drop"])
@pytest.mark.parametrize("answer", [b"n\n", b"\n", b""])
def test_what_removes_asks_first(cli: Cli, database_url: str, command: str, answer: bytes) -> None:
    """Anything but yes leaves everything there, also the end of the input."""
    before = catalog(database_url)
    asked = cli.process("db", command, stdin=answer)
    assert (asked.code, asked.out) == (Exit.CHECK_FAILED, "")
    assert asked.err.endswith("[y/N] pgcontext: Nothing was changed.\n")
    assert catalog(database_url) == before


@pytest.mark.parametrize("command", ["rollback", "drop"])
def test_what_removes_does_it_when_told(cli: Cli, database_url: str, command: str) -> None:
    """Yes is yes, and the question names the database."""
    before = catalog(database_url)
    asked = cli.process("db", command, stdin=b"y\n")
    assert (asked.code, asked.err.startswith(("Undo ", "Remove "))) == (0, True)
    assert "/test_" in asked.err
    assert before.keys() - catalog(database_url).keys()


@pytest.mark.parametrize("command", ["rollback", "drop"])
def test_with_json_nothing_is_asked(cli: Cli, database_url: str, command: str) -> None:
    """A program can't answer, so it has to say --yes."""
    before = catalog(database_url)
    refused = cli("db", command, "--json")
    assert (refused.code, refused.out) == (Exit.INVALID_INPUT, "")
    assert "say --yes" in refused.error["detail"]
    assert catalog(database_url) == before


def test_drop_says_what_it_removed(cli: Cli, database_url: str) -> None:
    """Tables and functions by name; the second time there was nothing."""
    functions = {name.partition("(")[0] for name in names(catalog(database_url), "function")}
    removed = cli.json("db", "drop", "--yes")["removed"]
    assert set(removed) == {*metadata.tables, *functions, "pgcontext_alembic_version"}
    assert cli.ok("db", "drop", "--yes").out == "There was nothing to remove.\n"


def test_language_asks_says_and_goes_on(cli: Cli, database_url: str) -> None:
    """It asks with both languages' names; a second time there is nothing left to do."""
    execute(
        database_url,
        "INSERT INTO contexts (id) VALUES ('00000000-0000-0000-0000-000000000001')",
        "INSERT INTO messages (id, context_id, version, role, content) VALUES (gen_random_uuid(), "
        "'00000000-0000-0000-0000-000000000001', 1, 'user', 'kleine Kinder')",
    )
    declined = cli.process("db", "language", "german", stdin=b"n\n")
    assert (declined.code, "in german instead of english?" in declined.err) == (1, True)
    assert cli.json("db", "status")["language"] == "english"
    unasked = cli("db", "language", "german", "--json")
    assert (unasked.code, unasked.error["type"]) == (Exit.INVALID_INPUT, "Usage")
    said = cli.ok("db", "language", "german", "--yes").out
    assert said == "The database's language is german; 1 message got other words.\n"
    assert cli.json("db", "language", "german", "--yes") == {
        "before": "german",
        "language": "german",
        "changed": 0,
    }
    assert re.search("language +german", cli.ok("db", "status").out)
    assert cli.ok("db", "check").code == 0
    unknown = cli("db", "language", "klingon", "--yes")
    assert (unknown.code, "it has: " in unknown.err) == (Exit.CONFIG, True)


def test_push_makes_and_changes_a_database(empty_cli: Cli, empty_database_url: str) -> None:
    """An empty one is made; one that lacks a column gets it."""
    assert empty_cli.ok("db", "push").out == "The database is as described.\n"
    assert empty_cli.ok("db", "check").code == 0
    execute(empty_database_url, "ALTER TABLE messages DROP COLUMN tool_name")
    assert empty_cli.json("db", "push") == {"changes": ["add column messages.tool_name"]}
    execute(empty_database_url, "ALTER TABLE messages ALTER model SET DEFAULT 'm'")
    assert empty_cli.ok("db", "push").out == (
        "alter column messages.model (default)\nThe database is as described.\n"
    )
    execute(empty_database_url, "ALTER TABLE contexts RESET (fillfactor)")
    refused = empty_cli("db", "push", "--json")
    assert (refused.code, refused.error["type"]) == (Exit.NOT_MIGRATED, "SchemaMismatchError")
    assert "table contexts differs" in refused.error["detail"]


@pytest.mark.parametrize(
    "command",
    [
        ("push",),
        ("drop",),
        ("drop", "--yes"),
        ("drop", "--not-local"),
        ("seed",),
    ],
)
def test_another_machine_is_left_alone(cli: Cli, command: tuple[str, ...]) -> None:
    """What is for development, or removes, refuses it before it connects; the URL isn't shown."""
    cli.patch.setenv("DATABASE_URL", ELSEWHERE)
    refused = cli("db", *command)
    assert (refused.code, refused.out) == (Exit.CONFIG, "")
    assert "machine" in refused.err
    assert "secret" not in refused.err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in {"generate", "seed"}])
def test_a_transaction_pooler_is_refused(cli: Cli, command: str) -> None:
    """Each says which variable to set, and each has --json for it."""
    cli.patch.setenv("DATABASE_URL", POOLER)
    refused = cli("db", command, *NEEDED.get(command, ()), "--json")
    assert (refused.code, refused.error["type"]) == (Exit.CONFIG, "ConfigError")
    assert "set DATABASE_URL_UNPOOLED" in refused.error["detail"]


def test_nobody_listens(cli: Cli) -> None:
    """One sentence and the code for it."""
    cli.patch.setenv("DATABASE_URL", "postgresql://localhost:1/app")
    refused = cli("db", "migrate")
    assert refused.code == Exit.UNAVAILABLE
    assert refused.err.count("\n") == 1


def test_warnings_reach_the_user(cli: Cli, database_url: str) -> None:
    """An extension with known defects is worked with, and spoken of on stderr."""
    execute(database_url, "UPDATE pg_extension SET extversion = '0.8.1' WHERE extname = 'vector'")
    done = cli.process("db", "migrate")
    assert (done.code, done.out) == (0, f"The database is at revision {HEAD} already.\n")
    assert "pgvector 0.8.1 has defects that 0.8.4 mends" in done.err


async def contents(url: str) -> dict[str, Any]:
    """What the two tenants' contexts show."""
    shown: dict[str, Any] = {}
    async with ContextStore(url) as both:
        for tenant in SEEDS:
            store = both.for_tenant(tenant)
            for context in (await store.list(include_deleted=True)).items:
                view = (
                    []
                    if context.deleted_at
                    else [message.as_dict() for message in await store.history(context.id)]
                )
                shown[context.name or ""] = (tenant, context, view)
    return shown


def test_seed_puts_in_examples_once(cli: Cli, database_url: str) -> None:
    """Two tenants, forks of forks, deleted messages and contexts; the second run adds nothing."""
    assert cli.json("db", "seed") == {
        "tenants": [str(GARDEN), str(BICYCLES)],
        "contexts": 6,
        "made": 6,
    }
    first = asyncio.run(contents(database_url))
    assert {tenant for tenant, _, _ in first.values()} == {GARDEN, BICYCLES}
    assert sum(context.parent_id is not None for _, context, _ in first.values()) == 3
    assert sum(context.deleted_at is not None for _, context, _ in first.values()) == 1
    assert fetch(database_url, "SELECT count(*) FROM tombstones")[0][0] > 0
    said = cli.ok("db", "seed").out
    assert said.startswith("6 contexts of two tenants are there, 0 of them new")
    assert asyncio.run(contents(database_url)) == first


def test_seed_goes_on_where_it_stopped(cli: Cli, database_url: str) -> None:
    """Killed after any of its steps, the next run finishes; what the user deleted stays so."""
    cli.ok("db", "seed")
    whole = asyncio.run(contents(database_url))
    execute(
        database_url,
        "DELETE FROM tombstones",
        "UPDATE messages SET deleted_at = NULL",
        "DELETE FROM messages WHERE context_id::text LIKE '%202'",
        "UPDATE contexts SET message_count = 0, total_tokens = 0, latest_version = 0"
        " WHERE id::text LIKE '%202'",
        "DELETE FROM contexts WHERE id::text LIKE '%202' OR id::text LIKE '%103'"
        " AND NOT EXISTS (SELECT FROM messages WHERE context_id = contexts.id)",
        "UPDATE contexts SET message_count = latest_version",
    )
    assert cli.json("db", "seed")["made"] == 1
    again = asyncio.run(contents(database_url))
    assert {name: view for name, (_, _, view) in again.items()} == {
        name: view for name, (_, _, view) in whole.items()
    }
    ours = next(seed for seed in SEEDS[GARDEN] if not seed.is_deleted)
    cli.ok("delete", ours.id)
    cli.ok("db", "seed")
    assert cli("show", ours.id).code == Exit.NOT_FOUND


def test_commands_use_the_embedded_postgresql_without_a_url(cli: Cli, tmp_path: Path) -> None:
    """As the store does: it is started, and it is migrated."""
    cli.patch.delenv("DATABASE_URL")
    cli.patch.setenv("PGCONTEXT_DATA_DIR", str(tmp_path / "data"))
    done = cli.process("db", "status", "--json")
    assert (done.code, done.value["state"]) == (0, "current")
