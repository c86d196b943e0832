"""The migrations make what `pgcontext.schema` describes, and a difference between them shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC

from pgcontext import limits, migrate
from pgcontext.errors import (
    ConfigError,
    ContextStoreError,
    InvalidInputError,
    SchemaMismatchError,
)
from pgcontext.migrate import scripts
from pgcontext.migrate.comparison import operations, said
from pgcontext.migrate.connection import run
from pgcontext.migrate.preflight import prepare
from pgcontext.schema import build_metadata
from tests.support import DIMENSIONS
from tests.support.catalog import catalog, differences, names
from tests.support.migrations import VERSIONS, create_all, execute, fetch, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from pgcontext.migrate.comparison import Describe
    from pgcontext.settings import Settings


HEAD: Final = limits.SCHEMA_REVISION
NEXT: Final = f"{int(HEAD) + 1:04}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"schema": "o'brien"}, "PGCONTEXT_SCHEMA must"),
        ({"schema": 'a"b'}, "PGCONTEXT_SCHEMA must"),
        ({"schema": "Chats"}, "PGCONTEXT_SCHEMA must"),
        ({"language": "english'::regconfig; --"}, "PGCONTEXT_TEXT_LANGUAGE must"),
        ({"dimensions": 0}, "PGCONTEXT_DIMENSIONS must"),
        ({"dimensions": limits.EMBEDDING_DIMENSIONS_MAX + 1}, "PGCONTEXT_DIMENSIONS must"),
    ],
    ids=repr,
)
def test_no_tables_are_described_that_no_settings_could_name(
    arguments: dict[str, Any], sentence: str
) -> None:
    """A name that would need quoting is refused alike for tables, for migrations and for stores."""
    with pytest.raises(ConfigError, match=sentence):
        build_metadata(**arguments)


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
    kinds = {name.partition(" ")[0] for name in found}
    assert kinds == {"table", "column", "constraint", "index", "policy", "function"}
    described_tables = build_metadata(dimensions, schema).sorted_tables
    assert names(found, "table") == sorted(table.name for table in described_tables)


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
        "ALTER FUNCTION pgcontext_graph SET hnsw.ef_search = '100'",
        "ALTER FUNCTION pgcontext_scan RESET plan_cache_mode",
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


def _table(metadata: sa.MetaData, name: str) -> sa.Table:
    return metadata.tables[f"{metadata.schema}.{name}"]


def _index(metadata: sa.MetaData, table: str, name: str) -> sa.Index:
    [found] = [index for index in _table(metadata, table).indexes if index.name == name]
    return found


def _constraint(metadata: sa.MetaData, table: str, name: str) -> sa.Constraint:
    constraints = _table(metadata, table).constraints
    [found] = [item for item in constraints if item.name == name]
    return found


def _added_column(metadata: sa.MetaData) -> None:
    _table(metadata, "messages").append_column(sa.Column("tags", sa.Text))


def _changed_type(metadata: sa.MetaData) -> None:
    _table(metadata, "messages").c.model.type = sa.String(20)


def _changed_vector(metadata: sa.MetaData) -> None:
    _table(metadata, "messages").c.embedding.type = HALFVEC(DIMENSIONS)


def _changed_default(metadata: sa.MetaData) -> None:
    _table(metadata, "contexts").c.revision.server_default = sa.DefaultClause(sa.text("1"))


def _changed_nullability(metadata: sa.MetaData) -> None:
    _table(metadata, "contexts").c.name.nullable = False


def _changed_generation(metadata: sa.MetaData) -> None:
    computed = _table(metadata, "messages").c.text_search.computed
    assert computed is not None
    computed.sqltext = sa.text("to_tsvector('german'::regconfig, content)")


def _added_index(metadata: sa.MetaData) -> None:
    sa.Index("messages_model_idx", _table(metadata, "messages").c.model)


def _removed_index(metadata: sa.MetaData) -> None:
    index = _index(metadata, "messages", "messages_deleted_idx")
    _table(metadata, "messages").indexes.discard(index)


def _changed_index(metadata: sa.MetaData) -> None:
    _removed_index(metadata)
    columns = _table(metadata, "messages").c
    sa.Index("messages_deleted_idx", columns.tenant_id, columns.created_at)


def _changed_expression(metadata: sa.MetaData) -> None:
    messages = _table(metadata, "messages")
    messages.indexes.discard(_index(metadata, "messages", "messages_embedding_idx"))
    expression = f"(binary_quantize(embedding)::bit({DIMENSIONS}))"
    bits = sa.literal_column(expression, sa.Text()).label("bits")
    sa.Index(
        "messages_embedding_idx",
        bits,
        postgresql_using="hnsw",
        postgresql_ops={"bits": "bit_hamming_ops"},
        _table=messages,
    )


def _changed_predicate(metadata: sa.MetaData) -> None:
    index = _index(metadata, "messages", "messages_text_idx")
    index.dialect_options["postgresql"]["where"] = None


def _changed_operator_class(metadata: sa.MetaData) -> None:
    index = _index(metadata, "contexts", "contexts_metadata_idx")
    index.dialect_options["postgresql"]["ops"] = {}


def _changed_payload(metadata: sa.MetaData) -> None:
    constraint = _constraint(metadata, "messages", "messages_version_key")
    constraint.dialect_options["postgresql"]["include"] = ["signature"]


def _removed_check(metadata: sa.MetaData) -> None:
    constraint = _constraint(metadata, "messages", "messages_version_check")
    _table(metadata, "messages").constraints.discard(constraint)


def _changed_foreign_key(metadata: sa.MetaData) -> None:
    constraint = _constraint(metadata, "tombstones", "tombstones_context_fkey")
    assert isinstance(constraint, sa.ForeignKeyConstraint)
    constraint.ondelete = None


def _added_foreign_key(metadata: sa.MetaData) -> None:
    tombstones, messages = (_table(metadata, name) for name in ("tombstones", "messages"))
    constraint = sa.ForeignKeyConstraint(
        [tombstones.c.tenant_id, tombstones.c.context_id],
        [messages.c.tenant_id, messages.c.id],
        name="tombstones_messages_fkey",
    )
    tombstones.append_constraint(constraint)


def _added_table(metadata: sa.MetaData) -> None:
    sa.Table("labels", metadata, sa.Column("id", sa.Uuid, primary_key=True))


def _changed_storage(metadata: sa.MetaData) -> None:
    _table(metadata, "contexts").dialect_options["postgresql"]["with"] = {}


Change = Callable[[sa.MetaData], None]
# What `check` says of each change, and what `push` does about it; None where it refuses.
CHANGES: Final[dict[Change, tuple[str, str | None]]] = {
    _added_column: ("column messages.tags is missing", "add column messages.tags"),
    _changed_type: ("column messages.model differs", "alter column messages.model (type)"),
    _changed_default: (
        "column contexts.revision differs",
        "alter column contexts.revision (default)",
    ),
    _changed_nullability: (
        "column contexts.name differs",
        "alter column contexts.name (nullable)",
    ),
    _changed_generation: ("column messages.text_search differs", None),
    _added_index: (
        "index messages_model_idx is missing",
        "create index messages.messages_model_idx",
    ),
    _removed_index: (
        "index messages_deleted_idx is not described",
        "drop index messages.messages_deleted_idx",
    ),
    _changed_index: (
        "index messages_deleted_idx differs",
        "create index messages.messages_deleted_idx",
    ),
    _changed_expression: (
        "index messages_embedding_idx differs",
        "create index messages.messages_embedding_idx",
    ),
    _changed_predicate: ("index messages_text_idx differs", None),
    _changed_operator_class: ("index contexts_metadata_idx differs", None),
    _changed_payload: ("constraint messages.messages_version_key differs", None),
    _removed_check: ("constraint messages.messages_version_check is not described", None),
    _changed_foreign_key: (
        "constraint tombstones.tombstones_context_fkey differs",
        "create foreign key tombstones.tombstones_context_fkey",
    ),
    _added_foreign_key: (
        "constraint tombstones.tombstones_messages_fkey is missing",
        "create foreign key tombstones.tombstones_messages_fkey",
    ),
    _added_table: ("table labels is missing", "create table labels"),
    _changed_storage: ("table contexts differs", None),
}


def described_with(change: Change) -> Describe:
    """A description of the database like ours but for one change."""

    def describe(dimensions: int, schema: str, language: str) -> sa.MetaData:
        metadata = build_metadata(dimensions, schema, language)
        change(metadata)
        return metadata

    return describe


@pytest.mark.parametrize("version", VERSIONS)
def test_check_is_clean_after_the_migrations(
    make_database: Callable[..., str], version: int
) -> None:
    """What was migrated is as described, also by Alembic's own comparison, in any schema."""
    url = make_database(version=version, migrated=False)
    for schema in ("public", "chats", "user"):
        settings = settings_of(url, schema=schema)
        migrate.upgrade(settings=settings)
        assert migrate.check(settings=settings) == []
        assert seen_by_alembic(settings, build_metadata) == []


def seen_by_alembic(settings: Settings, describe: Describe) -> list[str]:
    """What Alembic's own comparison finds, as `alembic check` does it."""

    def work(connection: sa.Connection) -> list[str]:
        prepare(connection, settings)
        return [said(found) for found in operations(connection, settings, describe)]

    return run(work, settings, keep=False)


def test_check_sees_each_change(database_url: str) -> None:
    """A clean check means something, since each such change of the description is reported."""
    settings = settings_of(database_url)
    for change, (line, _) in CHANGES.items():
        assert line in migrate.check(settings=settings, describe=described_with(change))


def test_alembic_sees_each_change_that_it_can_make(database_url: str) -> None:
    """So does Alembic's comparison, but for what it is blind to."""
    settings = settings_of(database_url)
    for change, (_, line) in CHANGES.items():
        found = seen_by_alembic(settings, described_with(change))
        assert found == [] if line is None else line in found, change.__name__


@pytest.mark.parametrize(
    ("change", "line"),
    {
        "DROP POLICY contexts_tenant ON contexts": "policy contexts.contexts_tenant is missing",
        "ALTER POLICY contexts_tenant ON contexts USING (true)": (
            "policy contexts.contexts_tenant differs"
        ),
        "ALTER TABLE messages DISABLE ROW LEVEL SECURITY": "table messages differs",
        "DROP INDEX messages_embedding_idx": "index messages_embedding_idx is missing",
        "CREATE INDEX mine ON messages (model)": "index mine is not described",
        "CREATE TRIGGER mine BEFORE UPDATE ON contexts FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()": (
            "trigger contexts.mine is not described"
        ),
        "ALTER TABLE contexts ALTER metadata DROP NOT NULL": "column contexts.metadata differs",
    }.items(),
)
def test_check_sees_what_was_done_to_the_database(
    database_url: str, change: str, line: str
) -> None:
    """A policy that somebody dropped is as much a difference as a column."""
    execute(database_url, change)
    assert migrate.check(settings=settings_of(database_url)) == [line]


def test_check_sees_another_function(database_url: str) -> None:
    """Settings of the function belong to it."""
    execute(
        database_url,
        "SELECT '[1]'::vector; ALTER FUNCTION pgcontext_graph SET hnsw.ef_search = '100'",
    )
    [line] = migrate.check(settings=settings_of(database_url))
    assert line.startswith("function pgcontext_graph(of_tenant uuid, ")
    assert line.endswith(" differs")


def test_check_leaves_what_is_the_applications_alone(database_url: str) -> None:
    """Tables and functions of others in the same schema are nobody's difference, nor is a grant."""
    execute(
        database_url,
        "CREATE TABLE invoices (id integer PRIMARY KEY)",
        "CREATE FUNCTION tax() RETURNS int LANGUAGE sql AS 'SELECT 19'",
        "GRANT SELECT ON contexts TO public",
    )
    settings = settings_of(database_url)
    assert migrate.check(settings=settings) == []
    assert seen_by_alembic(settings, build_metadata) == []


def test_check_leaves_nothing_behind(database_url: str) -> None:
    """The schema it compares in is never seen by anybody else."""
    before = catalog(database_url)
    migrate.check(settings=settings_of(database_url))
    assert differences(before, catalog(database_url)) == []
    assert not fetch(database_url, "SELECT FROM pg_namespace WHERE nspname ~ 'scratch'")


def test_check_before_the_migrations_names_the_command(empty_database_url: str) -> None:
    """An empty database isn't compared, but sent to be migrated."""
    with pytest.raises(SchemaMismatchError, match="run: pgcontext db migrate"):
        migrate.check(settings=settings_of(empty_database_url))


def test_push_makes_an_empty_database_as_described(empty_database_url: str) -> None:
    """Also with what no migration has yet."""
    settings = settings_of(empty_database_url)
    describe = described_with(_changed_predicate)
    assert migrate.push(settings=settings, describe=describe) == []
    assert migrate.status(settings=settings).state == "current"
    assert migrate.check(settings=settings, describe=describe) == []
    assert migrate.check(settings=settings) == ["index messages_text_idx differs"]


def test_push_brings_a_database_to_the_description(database_url: str) -> None:
    """Each change is made, and made back; what can't be is refused and nothing is changed."""
    settings = settings_of(database_url)
    migrated = catalog(database_url)
    for change, (difference, line) in CHANGES.items():
        describe = described_with(change)
        if line is None:
            with pytest.raises(SchemaMismatchError, match=re.escape(difference)):
                migrate.push(settings=settings, describe=describe)
        else:
            assert line in migrate.push(settings=settings, describe=describe)
            assert migrate.check(settings=settings, describe=describe) == []
            migrate.push(settings=settings)
    execute(database_url, "DROP TABLE labels")
    assert differences(migrated, catalog(database_url)) == []


def test_another_type_of_vector_is_seen_and_not_pushed(database_url: str) -> None:
    """A generated column depends on it, so the server refuses, and everything stays."""
    settings = settings_of(database_url)
    describe = described_with(_changed_vector)
    before = catalog(database_url)
    assert "column messages.embedding differs" in migrate.check(
        settings=settings, describe=describe
    )
    assert "alter column messages.embedding (type)" in seen_by_alembic(settings, describe)
    with pytest.raises(ContextStoreError, match="nothing was changed"):
        migrate.push(settings=settings, describe=describe)
    assert differences(before, catalog(database_url)) == []


def test_push_makes_policies_and_functions_anew(database_url: str) -> None:
    """What Alembic does not see is made as described, whatever it was."""
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
    assert path == versions_folder / f"{NEXT}_label_contexts.py"
    assert path.read_text().startswith('"""Label contexts."""\n')
    assert "pgcontext_scratch" not in path.read_text()
    assert differences(before, catalog(url)) == []

    fresh = make_database(migrated=False)
    settings = settings_of(fresh, schema="chats")
    assert migrate.upgrade(revision=HEAD, settings=settings) == HEAD
    first = catalog(fresh, "chats")
    assert migrate.upgrade(settings=settings) == NEXT
    assert migrate.check(settings=settings, describe=describe) == []
    assert migrate.downgrade(settings=settings) == HEAD
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
    assert len(list(versions_folder.glob("0*.py"))) == int(HEAD)
    path = migrate.generate("By hand", empty=True, settings=settings)
    assert path == versions_folder / f"{NEXT}_by_hand.py"
    assert migrate.upgrade(settings=settings) == NEXT


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
