"""Make contexts, messages and tombstones.

The text of this file is frozen: it never follows later changes of `pgcontext.schema`.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# In public, where a session's search path finds it; where it is already, it stays.
EXTENSION = "CREATE EXTENSION IF NOT EXISTS vector SCHEMA public"

CONTEXTS = """
CREATE TABLE {schema}.contexts (
    tenant_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    id uuid NOT NULL,
    name text,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    message_count integer NOT NULL DEFAULT 0,
    total_tokens bigint NOT NULL DEFAULT 0,
    latest_version bigint NOT NULL DEFAULT 0,
    revision bigint NOT NULL DEFAULT 0,
    parent_id uuid,
    fork_version bigint,
    fork_revision bigint,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT contexts_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT contexts_parent_fkey FOREIGN KEY (tenant_id, parent_id)
        REFERENCES {schema}.contexts (tenant_id, id),
    CONSTRAINT contexts_fork_check CHECK (
        (parent_id IS NULL) = (fork_version IS NULL)
        AND (parent_id IS NULL) = (fork_revision IS NULL)
    ),
    CONSTRAINT contexts_counters_check CHECK (message_count >= 0 AND total_tokens >= 0)
) WITH (fillfactor = 70)
"""

MESSAGES = """
CREATE TABLE {schema}.messages (
    tenant_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    id uuid NOT NULL,
    context_id uuid NOT NULL,
    version bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    role text NOT NULL,
    content text,
    tool_call_id text,
    tool_name text,
    token_count integer NOT NULL DEFAULT 0,
    model text,
    payload jsonb,
    idempotency_key text,
    batch_ordinal integer,
    deleted_at timestamptz,
    embedding vector({dimensions}),
    embedding_model text,
    embed_after timestamptz,
    signature bit({dimensions})
        GENERATED ALWAYS AS (binary_quantize(embedding)::bit({dimensions})) STORED,
    text_search tsvector
        GENERATED ALWAYS AS (
            to_tsvector('english'::regconfig, left(coalesce(content, ''), 100000))
        ) STORED,
    CONSTRAINT messages_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT messages_context_fkey FOREIGN KEY (tenant_id, context_id)
        REFERENCES {schema}.contexts (tenant_id, id),
    CONSTRAINT messages_version_key UNIQUE (tenant_id, context_id, version) INCLUDE (signature),
    CONSTRAINT messages_role_check
        CHECK (role IN ('user', 'assistant', 'system', 'tool', 'developer')),
    CONSTRAINT messages_version_check CHECK (version > 0),
    CONSTRAINT messages_token_count_check CHECK (token_count >= 0),
    CONSTRAINT messages_idempotency_check
        CHECK ((idempotency_key IS NULL) = (batch_ordinal IS NULL))
)
"""

TOMBSTONES = """
CREATE TABLE {schema}.tombstones (
    tenant_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    context_id uuid NOT NULL,
    version bigint NOT NULL,
    revision bigint NOT NULL,
    restored_revision bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tombstones_pkey PRIMARY KEY (tenant_id, context_id, version, revision),
    CONSTRAINT tombstones_context_fkey FOREIGN KEY (tenant_id, context_id)
        REFERENCES {schema}.contexts (tenant_id, id) ON DELETE CASCADE
)
"""

INDEXES = (
    """CREATE INDEX contexts_newest_idx ON {schema}.contexts (tenant_id, created_at, id)""",
    """CREATE INDEX contexts_parent_idx ON {schema}.contexts (tenant_id, parent_id)
    WHERE parent_id IS NOT NULL""",
    """CREATE INDEX contexts_metadata_idx ON {schema}.contexts
    USING gin (metadata jsonb_path_ops)""",
    """CREATE INDEX contexts_deleted_idx ON {schema}.contexts (tenant_id, deleted_at)
    WHERE deleted_at IS NOT NULL""",
    """CREATE INDEX contexts_expires_idx ON {schema}.contexts (tenant_id, expires_at)
    WHERE expires_at IS NOT NULL""",
    """CREATE UNIQUE INDEX messages_idempotency_idx
    ON {schema}.messages (tenant_id, context_id, idempotency_key, batch_ordinal)
    WHERE idempotency_key IS NOT NULL""",
    """CREATE INDEX messages_pinned_idx ON {schema}.messages (tenant_id, context_id, version)
    WHERE role IN ('system', 'developer')""",
    """CREATE INDEX messages_deleted_idx ON {schema}.messages (tenant_id, deleted_at)
    WHERE deleted_at IS NOT NULL""",
    """CREATE INDEX messages_pending_idx ON {schema}.messages (tenant_id, embed_after)
    WHERE embed_after IS NOT NULL""",
    """CREATE INDEX messages_embedding_idx ON {schema}.messages
    USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)
    WHERE deleted_at IS NULL""",
    """CREATE INDEX messages_text_idx ON {schema}.messages USING gin (text_search)
    WHERE deleted_at IS NULL""",
    """CREATE UNIQUE INDEX tombstones_hidden_idx
    ON {schema}.tombstones (tenant_id, context_id, version)
    WHERE restored_revision IS NULL""",
)

POLICY = """
CREATE POLICY {table}_tenant ON {schema}.{table}
    USING (tenant_id = nullif(current_setting('pgcontext.tenant_id', true), '')::uuid)
"""

# Without the library loaded, only a superuser may SET hnsw.* in a function.
LOAD_LIBRARY = "SELECT '[1]'::vector"

NEAREST = """
CREATE FUNCTION {schema}.pgcontext_nearest(
    of_tenant uuid, query halfvec, candidates integer, of_embedding_model text,
    of_roles text[], since timestamptz, until timestamptz, of_metadata jsonb, of_model text
) RETURNS TABLE (id uuid, distance double precision)
LANGUAGE sql STABLE PARALLEL SAFE
SET hnsw.iterative_scan = 'relaxed_order'
SET hnsw.ef_search = '200'
SET hnsw.max_scan_tuples = '200000'
SET plan_cache_mode = 'force_custom_plan'
AS $function$
    SELECT m.id, m.embedding::halfvec({dimensions}) <=> query AS distance
    FROM {schema}.messages AS m
    WHERE m.tenant_id = of_tenant
      AND m.deleted_at IS NULL
      AND m.embedding IS NOT NULL
      AND m.embedding_model IS NOT DISTINCT FROM of_embedding_model
      AND (of_roles IS NULL OR m.role = ANY (of_roles))
      AND (since IS NULL OR m.created_at >= since)
      AND (until IS NULL OR m.created_at < until)
      AND (of_model IS NULL OR m.model = of_model)
      AND EXISTS (
          SELECT FROM {schema}.contexts AS c
          WHERE c.tenant_id = of_tenant AND c.id = m.context_id AND c.deleted_at IS NULL
            AND (of_metadata IS NULL OR c.metadata @> of_metadata)
      )
    ORDER BY m.embedding::halfvec({dimensions}) <=> query
    LIMIT candidates
$function$"""


def execute(text: str, **names: str) -> None:
    """Run one statement with the configured schema, the dimension and other names in place."""
    context = op.get_context()
    names["schema"] = context.dialect.identifier_preparer.quote_schema(context.version_table_schema)
    names["dimensions"] = str(context.opts["dimensions"])
    for key, value in names.items():
        text = text.replace("{" + key + "}", value)
    op.execute(text)


def upgrade() -> None:
    execute(EXTENSION)
    execute(LOAD_LIBRARY)
    for statement in (CONTEXTS, MESSAGES, TOMBSTONES, *INDEXES):
        execute(statement)
    for table in ("contexts", "messages", "tombstones"):
        execute("ALTER TABLE {schema}.{table} ENABLE ROW LEVEL SECURITY", table=table)
        execute(POLICY, table=table)
    execute(NEAREST)


def downgrade() -> None:
    """Remove everything but the extension, which may serve others and be somebody else's."""
    execute(
        "DROP FUNCTION {schema}.pgcontext_nearest"
        "(uuid, halfvec, integer, text, text[], timestamptz, timestamptz, jsonb, text)"
    )
    execute("DROP TABLE {schema}.tombstones, {schema}.messages, {schema}.contexts")
