"""The three ways of docs/rollback.md, by the commands that stand there, on tables with rows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from pgcontext import ContextStore, Settings, limits, migrate
from pgcontext.schema import metadata
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences
from tests.support.migrations import VERSIONS, as_role, execute, fetch, programs, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).parents[2]
ROLE: Final = "pgcontext_test_owner"
TENANTS: Final = (UUID(int=0), UUID(int=0xB))

HEAD: Final = limits.SCHEMA_REVISION
NEXT: Final = f"{int(HEAD) + 1:04}"
# A migration as a later version of pgcontext may bring it.
LATER: Final = f'''"""Rate messages."""

from alembic import op

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.execute("ALTER TABLE public.messages ADD COLUMN rating integer NOT NULL DEFAULT 3")
    op.execute("CREATE INDEX messages_rating_idx ON public.messages (tenant_id, rating)")
    op.execute("CREATE TABLE public.ratings (tenant_id uuid PRIMARY KEY)")


def downgrade() -> None:
    op.execute("DROP TABLE public.ratings")
    op.execute("ALTER TABLE public.messages DROP COLUMN rating")
'''


def commands(section: int) -> list[str]:
    """The shell commands of one way, as the page shows them."""
    page = (ROOT / "docs" / "rollback.md").read_text("utf-8")
    _, text = re.split(rf"^## {section}\. .*$", page, flags=re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```$", text.split("\n## ")[0], re.MULTILINE | re.DOTALL)


def shell(script: str, version: int, folder: Path, **variables: str) -> str:
    """Run commands as a reader would, who has pgcontext and PostgreSQL's programs installed."""
    path = [str(Path(sys.executable).parent), str(programs(version)), os.environ["PATH"]]
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=os.environ
        | {"PATH": os.pathsep.join(path), "PGCONTEXT_DIMENSIONS": str(DIMENSIONS)}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("error|warning", done.stderr, re.IGNORECASE), done.stderr
    return done.stdout


async def fill(url: str) -> None:
    """Write something of every kind, for two tenants."""
    settings = Settings.from_env({}, url=url, dimensions=DIMENSIONS, embedding_model="a-model")
    async with ContextStore(settings=settings) as both:
        for tenant in TENANTS:
            await fill_tenant(both.for_tenant(tenant))


async def fill_tenant(store: ContextStore) -> None:
    expiry = datetime(2090, 1, 2, 3, 4, 5, tzinfo=UTC)
    parent = await store.create(name="Grüße, 世界 🌍", metadata={"a": [1, {"b": None}], "é": 1.5})
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await store.append(
        parent.id,
        [
            {"role": "system", "content": 'Be \\ brief.\n\tAnd "exact".', "token_count": 4},
            {"role": "user", "content": "nearest", "embedding": [0.5] * DIMENSIONS},
            {"role": "assistant", "content": None, "tool_calls": [call], "model": "model-1"},
            {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": "", "extra": {}},
            {"role": "user", "content": [{"type": "text", "text": "parts"}], "name": "Ann"},
            {"role": "assistant", "content": "x" * 100_000, "token_count": 2**31 - 1},
        ],
        idempotency_key="one batch",
    )
    await store.delete_messages(parent.id, [2])
    fork = await store.fork(parent.id, at_version=5, name="sees 2 no more")
    await store.restore_messages(parent.id, [2])
    await store.delete_messages(parent.id, [6])
    await store.append(fork.id, [{"role": "user", "content": f"{n}"} for n in range(4)])
    await store.delete_messages(fork.id, [1, 7])
    nested = await store.fork(fork.id, at_version=7, name="of a fork")
    await store.append(nested.id, {"role": "user", "content": "on"})
    await store.delete(fork.id)
    await store.erase(nested.id, [6])
    empty = await store.create(expires_at=expiry)
    await store.fork(empty.id, name="of nothing")
    gone = await store.create(name="to be forgotten")
    await store.append(gone.id, {"role": "user", "content": "a secret"})
    await store.erase(gone.id)


def snapshot(url: str) -> dict[str, list[str]]:
    """Every row of every table, every column as text; each table has some."""
    query = "SELECT to_jsonb(t)::text FROM @table AS t ORDER BY 1"
    found = {
        table: [row[0] for row in fetch(url, query.replace("@table", table))]
        for table in metadata.tables
    }
    assert all(found.values()), found.keys()
    return found


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    """Each way is walked on both versions of the server."""
    found: int = request.param
    return found


@pytest.fixture
def make_owned(make_database: Callable[..., str], version: int) -> Iterator[Callable[[], str]]:
    """Make databases of a role that is no superuser, as providers give them out."""
    admin = make_database(version=version, migrated=False)
    execute(admin, f"CREATE ROLE {ROLE} LOGIN")
    made: list[str] = []

    def make() -> str:
        url = make_database(version=version, migrated=False)
        name = url.partition("?")[0].rpartition("/")[2]
        execute(url, "CREATE EXTENSION vector", f"ALTER DATABASE {name} OWNER TO {ROLE}")
        made.append(url)
        return as_role(url, ROLE)

    yield make
    for url in made:
        name = url.partition("?")[0].rpartition("/")[2]
        execute(url, f"ALTER DATABASE {name} OWNER TO postgres", f"DROP OWNED BY {ROLE} CASCADE")
    execute(admin, f"DROP ROLE {ROLE}")


@pytest.fixture
def filled_url(make_owned: Callable[[], str]) -> str:
    """A migrated database with something of everything in it."""
    url = make_owned()
    migrate.upgrade(settings=settings_of(url))
    asyncio.run(fill(url))
    execute(
        url,
        "INSERT INTO api_keys (id, name, scope, secret_hash)"
        " VALUES (gen_random_uuid(), 'deploy', 'read', repeat('a', 64))",
    )
    return url


def test_undoing_a_migration_keeps_every_row(filled_url: str, version: int, tmp_path: Path) -> None:
    """All that the former revision knows is as it was; what was written since stays."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / f"{NEXT}_rate_messages.py").write_text(LATER)
    variables = {"DATABASE_URL": filled_url, "PYTHONPATH": str(tmp_path / "src")}
    before, described = snapshot(filled_url), catalog(filled_url)

    shell("pgcontext db migrate", version, tmp_path, **variables)
    assert migrate.status(settings=settings_of(filled_url)).revision == NEXT
    execute(
        filled_url,
        "UPDATE messages SET rating = 5",
        "INSERT INTO ratings VALUES (gen_random_uuid())",
    )
    assert snapshot(filled_url) != before

    [script] = commands(1)
    said = shell(script, version, tmp_path, **variables)
    assert f"The database is at revision {HEAD}." in said
    assert snapshot(filled_url) == before
    assert differences(described, catalog(filled_url)) == []


def test_undoing_the_first_migration_leaves_the_extension(
    filled_url: str, version: int, tmp_path: Path
) -> None:
    """With the first migration all rows go, as the page says; migrating again starts anew."""
    [script] = commands(1)
    script = script.replace("rollback", f"rollback {len(migrate.revisions())}")
    shell(script, version, tmp_path, DATABASE_URL=filled_url)
    assert catalog(filled_url) == {}
    assert fetch(filled_url, "SELECT FROM pg_extension WHERE extname = 'vector'")
    migrate.upgrade(settings=settings_of(filled_url))
    assert fetch(filled_url, "SELECT count(*) FROM contexts")[0][0] == 0


def test_restoring_a_dump_brings_every_row_back(
    filled_url: str, make_owned: Callable[[], str], version: int, tmp_path: Path
) -> None:
    """Another database has the same rows and the same catalog, and the store works on it."""
    dump, restore = commands(2)
    restored_url = make_owned()
    before, described = snapshot(filled_url), catalog(filled_url)
    shell(dump, version, tmp_path, DATABASE_URL_UNPOOLED=filled_url)
    execute(filled_url, "DELETE FROM tombstones", "UPDATE contexts SET name = 'lost'")

    shell(restore, version, tmp_path, RESTORED_URL=restored_url)
    assert snapshot(restored_url) == before
    assert differences(described, catalog(restored_url)) == []
    settings = settings_of(restored_url)
    assert migrate.status(settings=settings).state == "current"
    assert migrate.check(settings=settings) == []

    async def use() -> None:
        store_settings = Settings.from_env({}, url=restored_url, dimensions=DIMENSIONS)
        async with ContextStore(settings=store_settings) as store:
            [hit] = await store.search("nearest", mode="text", limit=1)
            await store.append(hit.message.context_id, {"role": "user", "content": "on"})

    asyncio.run(use())


# What an export does not hold, or cannot give back, by the page's own list.
NOT_IN_AN_EXPORT: Final = """
SELECT to_jsonb(c) - '{created_at,updated_at,deleted_at,revision,fork_revision}'::text[]
       || jsonb_build_object('is_deleted', deleted_at IS NOT NULL) AS row
FROM contexts AS c ORDER BY tenant_id, id
"""
MESSAGES_IN_AN_EXPORT: Final = """
SELECT to_jsonb(m) - '{created_at,deleted_at,idempotency_key,batch_ordinal}'::text[]
       || jsonb_build_object('is_deleted', deleted_at IS NOT NULL) AS row
FROM messages AS m
WHERE NOT EXISTS (
    SELECT FROM tombstones AS t
    WHERE (t.tenant_id, t.context_id, t.version) = (m.tenant_id, m.context_id, m.version)
      AND t.revision = 0
)
ORDER BY tenant_id, context_id, version
"""
ERASED: Final = """
SELECT tenant_id, context_id, version, content, payload, embedding
FROM messages JOIN tombstones USING (tenant_id, context_id, version) WHERE revision = 0
ORDER BY 1, 2, 3
"""


def survivors(url: str) -> dict[str, Any]:
    """What an export and an import must carry over: rows, empty places, and every view."""
    return {
        "contexts": [row[0] for row in fetch(url, NOT_IN_AN_EXPORT)],
        "messages": [row[0] for row in fetch(url, MESSAGES_IN_AN_EXPORT)],
        "erased": [tuple(row) for row in fetch(url, ERASED)],
        "views": asyncio.run(views(url)),
    }


async def views(url: str) -> dict[UUID, list[tuple[Any, ...]]]:
    """What each context that is not deleted shows, its hidden messages too."""
    shown: dict[UUID, list[tuple[Any, ...]]] = {}
    async with ContextStore(settings=Settings.from_env({}, url=url, dimensions=8)) as both:
        for tenant in TENANTS:
            store = both.for_tenant(tenant)
            for context in (await store.list()).items:
                shown[context.id] = [
                    (message.version, message.id, message.as_dict(), message.deleted_at is None)
                    for message in await store.history(context.id, include_deleted=True)
                ]
    return shown


def test_export_and_import_carry_over_what_the_page_says(
    filled_url: str, version: int, tmp_path: Path
) -> None:
    """Tables made anew hold the same contexts, forks, messages, views and counters."""
    before = survivors(filled_url)
    assert all(before.values())
    script = "".join(commands(3))
    shell(script, version, tmp_path, DATABASE_URL=filled_url, DATABASE_URL_UNPOOLED=filled_url)
    after = survivors(filled_url)
    for kind, wanted in before.items():
        assert after[kind] == wanted, kind
    # A second run of the import finds everything there.
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == len(TENANTS)
    for file in files:
        again = f"pgcontext import --tenant {file.stem} {file.name}"
        shell(again, version, tmp_path, DATABASE_URL=filled_url)
    assert survivors(filled_url) == after
