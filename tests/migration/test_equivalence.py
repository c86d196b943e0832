"""The migrations make what `pgcontext.schema` describes, and a difference between them shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC

from pgcontext import limits, migrate
from pgcontext.errors import ConfigError, InvalidInputError, SchemaMismatchError
from pgcontext.migrate import scripts
from pgcontext.schema import build_metadata
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences
from tests.support.migrations import VERSIONS, create_all, execute, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgcontext.migrate.comparison import Describe


@pytest.mark.parametrize("dimensions", [3, DIMENSIONS, limits.EMBEDDING_DIMENSIONS_MAX])
@pytest.mark.parametrize("schema", ["public", "chats", "user"])
@pytest.mark.parametrize("version", VERSIONS)
def test_migrations_make_what_the_schema_describes(
    make_database: Callable[..., str], version: int, schema: str, dimensions: int
) -> None:
    """`create_all` and `upgrade head` leave the same catalog, to the last operator class."""
    described = make_database(version=version, migrated=False)
    migrated = make_database(version=version, migrated=False)
    create_all(settings_of(described, schema=schema, dimensions=dimensions))
    migrate.upgrade(settings=settings_of(migrated, schema=schema, dimensions=dimensions))
    found = catalog(migrated, schema)
    assert differences(catalog(described, schema), found) == []
    assert {kind: len(objects) for kind, objects in found.items() if kind != "constraints"} == {
        "relations": 3,
        "columns": 41,
        "indexes": 16,
        "policies": 3,
        "triggers": 0,
        "functions": 1,
    }


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE messages ADD COLUMN tags text",
        "ALTER TABLE messages DROP COLUMN batch_ordinal CASCADE",
        "ALTER TABLE messages RENAME COLUMN model TO author_model",
        "ALTER TABLE messages ALTER COLUMN token_count TYPE bigint",
        "ALTER TABLE messages ALTER COLUMN token_count SET DEFAULT 1",
        "ALTER TABLE messages ALTER COLUMN content SET NOT NULL",
        "ALTER TABLE messages ALTER COLUMN content SET STORAGE external",
        "ALTER TABLE messages ALTER COLUMN signature DROP EXPRESSION",
        "ALTER TABLE messages DROP CONSTRAINT messages_role_check",
        "ALTER TABLE messages RENAME CONSTRAINT messages_context_fkey TO messages_contexts_fkey",
        (
            "ALTER TABLE tombstones DROP CONSTRAINT tombstones_context_fkey, "
            "ADD CONSTRAINT tombstones_context_fkey FOREIGN KEY (tenant_id, context_id) "
            "REFERENCES contexts (tenant_id, id)"
        ),
        "ALTER TABLE contexts SET (fillfactor = 80)",
        "ALTER TABLE contexts DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE contexts FORCE ROW LEVEL SECURITY",
        "ALTER POLICY contexts_tenant ON contexts USING (true)",
        "DROP POLICY contexts_tenant ON contexts",
        "CREATE INDEX messages_model_idx ON messages (model)",
        "DROP INDEX messages_text_idx",
        (
            "DROP INDEX messages_embedding_idx; CREATE INDEX messages_embedding_idx ON messages "
            "USING hnsw ((embedding::halfvec(8)) halfvec_l2_ops) WHERE deleted_at IS NULL"
        ),
        (
            "DROP INDEX messages_embedding_idx; CREATE INDEX messages_embedding_idx ON messages "
            "USING hnsw ((embedding::halfvec(8)) halfvec_cosine_ops)"
        ),
        (
            "DROP INDEX contexts_metadata_idx; "
            "CREATE INDEX contexts_metadata_idx ON contexts USING gin (metadata)"
        ),
        "ALTER FUNCTION pgcontext_nearest SET hnsw.ef_search = '100'",
        "ALTER FUNCTION pgcontext_nearest RESET plan_cache_mode",
        "ALTER FUNCTION pgcontext_nearest VOLATILE",
        "ALTER FUNCTION pgcontext_nearest SECURITY DEFINER",
        "CREATE FUNCTION pgcontext_more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        (
            "CREATE TRIGGER touch BEFORE UPDATE ON contexts FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        "CREATE TABLE labels (id integer)",
        "CREATE VIEW labels AS SELECT id FROM contexts",
        "CREATE SEQUENCE labels",
    ],
)
def test_the_catalog_reader_sees_a_difference(database_url: str, change: str) -> None:
    """Equality of two catalogs means something, since each such change breaks it."""
    before = catalog(database_url)
    execute(database_url, "SELECT '[1]'::vector; " + change)
    assert differences(before, catalog(database_url)) != []


def _added_column(metadata: sa.MetaData) -> None:
    metadata.tables["public.messages"].append_column(sa.Column("tags", sa.Text))


def _added_index(metadata: sa.MetaData) -> None:
    sa.Index("messages_model_idx", metadata.tables["public.messages"].c.model)


def _removed_index(metadata: sa.MetaData) -> None:
    table = metadata.tables["public.messages"]
    table.indexes = {index for index in table.indexes if index.name != "messages_deleted_idx"}


def _changed_index(metadata: sa.MetaData) -> None:
    table = metadata.tables["public.messages"]
    _removed_index(metadata)
    sa.Index("messages_deleted_idx", table.c.tenant_id, table.c.created_at)


def _changed_expression(metadata: sa.MetaData) -> None:
    table = metadata.tables["public.messages"]
    table.indexes = {index for index in table.indexes if index.name != "messages_embedding_idx"}
    sa.Index(
        "messages_embedding_idx",
        sa.literal_column(f"(embedding::halfvec({DIMENSIONS}) || '[1]')", HALFVEC).label("half"),
        postgresql_using="hnsw",
        postgresql_ops={"half": "halfvec_cosine_ops"},
        _table=table,
    )


def _changed_type(metadata: sa.MetaData) -> None:
    metadata.tables["public.messages"].c.model.type = sa.String(20)


def _changed_vector(metadata: sa.MetaData) -> None:
    metadata.tables["public.messages"].c.embedding.type = HALFVEC(DIMENSIONS)


def _changed_default(metadata: sa.MetaData) -> None:
    metadata.tables["public.contexts"].c.revision.server_default = sa.DefaultClause(sa.text("1"))


def _changed_nullability(metadata: sa.MetaData) -> None:
    metadata.tables["public.contexts"].c.name.nullable = False


def _added_table(metadata: sa.MetaData) -> None:
    sa.Table("labels", metadata, sa.Column("id", sa.Uuid, primary_key=True))


def _added_foreign_key(metadata: sa.MetaData) -> None:
    tombstones, messages = (
        metadata.tables[f"public.{name}"] for name in ("tombstones", "messages")
    )
    constraint = sa.ForeignKeyConstraint(
        [tombstones.c.tenant_id, tombstones.c.context_id],
        [messages.c.tenant_id, messages.c.id],
        name="tombstones_messages_fkey",
    )
    tombstones.append_constraint(constraint)


CHANGES: dict[str, Callable[[sa.MetaData], None]] = {
    "add column messages.tags": _added_column,
    "create index messages.messages_model_idx": _added_index,
    "drop index messages.messages_deleted_idx": _removed_index,
    "create index messages.messages_deleted_idx": _changed_index,
    "create index messages.messages_embedding_idx": _changed_expression,
    "alter column messages.model (type)": _changed_type,
    "alter column messages.embedding (type)": _changed_vector,
    "alter column contexts.revision (default)": _changed_default,
    "alter column contexts.name (nullable)": _changed_nullability,
    "create table labels": _added_table,
    "create foreign key tombstones.tombstones_messages_fkey": _added_foreign_key,
}


def described_with(change: Callable[[sa.MetaData], None]) -> Describe:
    """A description of the database like ours but for one change."""

    def describe(dimensions: int, schema: str) -> sa.MetaData:
        metadata = build_metadata(dimensions, schema)
        change(metadata)
        return metadata

    return describe


@pytest.mark.parametrize("version", VERSIONS)
def test_check_is_clean_after_the_migrations(
    make_database: Callable[..., str], version: int
) -> None:
    """What `alembic check` compares is the same on both sides, in any schema."""
    url = make_database(version=version, migrated=False)
    for schema in ("public", "chats"):
        settings = settings_of(url, schema=schema)
        migrate.upgrade(settings=settings)
        assert migrate.check(settings=settings) == []


def test_check_sees_each_change(database_url: str) -> None:
    """A clean check means something, since each such change of the description is reported."""
    settings = settings_of(database_url)
    for line, change in CHANGES.items():
        assert line in migrate.check(settings=settings, describe=described_with(change)), line


def test_check_leaves_the_applications_own_tables_alone(database_url: str) -> None:
    """Another table in the same schema is nobody's difference."""
    execute(database_url, "CREATE TABLE invoices (id integer PRIMARY KEY)")
    assert migrate.check(settings=settings_of(database_url)) == []


def test_check_before_the_migrations_names_the_command(empty_database_url: str) -> None:
    """An empty database isn't compared, but sent to be migrated."""
    with pytest.raises(SchemaMismatchError, match="run: pgcontext db migrate"):
        migrate.check(settings=settings_of(empty_database_url))


def test_push_brings_the_database_to_the_description(empty_database_url: str) -> None:
    """From nothing, and from a former description, push leads to what check calls clean."""
    settings = settings_of(empty_database_url)
    assert migrate.push(settings=settings) == []
    migrated = catalog(empty_database_url)
    for line, change in CHANGES.items():
        if change in {_changed_vector, _changed_expression}:
            continue  # no cast leads there while a generated column depends on it
        describe = described_with(change)
        assert line in migrate.push(settings=settings, describe=describe)
        assert migrate.check(settings=settings, describe=describe) == []
        assert migrate.push(settings=settings, describe=describe) == []
        migrate.push(settings=settings)
    execute(empty_database_url, "DROP TABLE labels")
    assert differences(migrated, catalog(empty_database_url)) == []


def test_push_makes_policies_and_functions_anew(database_url: str) -> None:
    """What no comparison sees is made as described, whatever it was."""
    before = catalog(database_url)
    execute(
        database_url,
        "DROP POLICY contexts_tenant ON contexts",
        "ALTER POLICY messages_tenant ON messages USING (true)",
        "ALTER TABLE contexts DISABLE ROW LEVEL SECURITY",
        "ALTER FUNCTION pgcontext_nearest VOLATILE",
    )
    migrate.push(settings=settings_of(database_url))
    assert differences(before, catalog(database_url)) == []


def test_push_refuses_another_machine() -> None:
    """It is for development, so it never even connects elsewhere."""
    with pytest.raises(ConfigError, match="development database on this machine"):
        migrate.push("postgresql://me@db.example.com/app")


@pytest.fixture
def versions_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of migrations/, so that a test may write into it."""
    import shutil

    folder = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), folder)
    monkeypatch.setattr(scripts, "_CHECKOUT", folder)
    return folder / "versions"


@pytest.mark.parametrize("database", ["empty_database_url", "database_url"])
def test_generate_writes_a_migration_that_makes_the_change(
    versions_folder: Path,
    database: str,
    request: pytest.FixtureRequest,
    make_database: Callable[..., str],
) -> None:
    """What it writes runs, up and down, in a schema of any name; the database isn't touched."""
    url = request.getfixturevalue(database)
    before = catalog(url)

    def change(metadata: sa.MetaData) -> None:
        schema = metadata.schema
        messages = metadata.tables[f"{schema}.messages"]
        messages.append_column(sa.Column("tags", sa.Text))
        sa.Index("messages_tags_idx", messages.c.tags)
        sa.Table(
            "labels",
            metadata,
            sa.Column("tenant_id", sa.Uuid, primary_key=True),
            sa.Column("context_id", sa.Uuid, primary_key=True),
            sa.Column("centre", HALFVEC(DIMENSIONS)),
            sa.ForeignKeyConstraint(
                ["tenant_id", "context_id"],
                ["contexts.tenant_id", "contexts.id"],
                name="labels_context_fkey",
            ),
        )

    describe = described_with(change)
    path = migrate.generate("Label contexts.", settings=settings_of(url), describe=describe)
    assert path == versions_folder / "0002_label_contexts.py"
    assert path.read_text().startswith('"""Label contexts."""\n')
    assert "pgcontext_scratch" not in path.read_text()
    assert differences(before, catalog(url)) == []

    fresh = make_database(migrated=False)
    settings = settings_of(fresh, schema="chats")
    assert migrate.upgrade(revision="0001", settings=settings) == "0001"
    first = catalog(fresh, "chats")
    assert migrate.upgrade(settings=settings) == "0002"
    assert migrate.check(settings=settings, describe=describe) == []
    assert migrate.downgrade(settings=settings) == "0001"
    assert differences(first, catalog(fresh, "chats")) == []


def test_generate_sees_a_table_that_is_gone(versions_folder: Path, database_url: str) -> None:
    """In its own schema everything is ours, so a removed table is dropped."""

    def change(metadata: sa.MetaData) -> None:
        metadata.remove(metadata.tables[f"{metadata.schema}.tombstones"])

    path = migrate.generate(
        "Forget", settings=settings_of(database_url), describe=described_with(change)
    )
    assert path is not None
    assert "op.drop_table('tombstones', schema=schema)" in path.read_text()


def test_generate_without_a_difference_writes_nothing(
    versions_folder: Path, database_url: str
) -> None:
    """An empty migration is written only when it is asked for."""
    settings = settings_of(database_url)
    assert migrate.generate("Nothing", settings=settings) is None
    assert len(list(versions_folder.glob("0*.py"))) == 1
    path = migrate.generate("By hand", empty=True, settings=settings)
    assert path == versions_folder / "0002_by_hand.py"
    assert migrate.upgrade(settings=settings) == "0002"


def test_generate_refuses_what_makes_no_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """A migration needs a message, and a checkout to be written into."""
    settings = settings_of(database_url)
    with pytest.raises(InvalidInputError, match="needs a message"):
        migrate.generate(" ", settings=settings)
    monkeypatch.setattr(scripts, "_PACKAGED", tmp_path)
    with pytest.raises(ConfigError, match="in a checkout"):
        migrate.generate("More", settings=settings)


def test_the_code_knows_the_head() -> None:
    """The revision that the request path asks for is the newest migration's."""
    assert migrate.revisions()[-1] == limits.SCHEMA_REVISION
