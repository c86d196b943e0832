"""Make the table of API keys.

The text of this file is frozen: it never follows later changes of `pgcontext.schema`. Code that
knows nothing of the table works beside it.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

API_KEYS = """
CREATE TABLE {schema}.api_keys (
    tenant_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    id uuid NOT NULL,
    name text NOT NULL,
    scope text NOT NULL,
    secret_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT api_keys_scope_check CHECK (scope IN ('read', 'write', 'admin')),
    CONSTRAINT api_keys_secret_hash_check CHECK (length(secret_hash) = 64)
)
"""

POLICY = """
CREATE POLICY api_keys_tenant ON {schema}.api_keys
    USING (tenant_id = nullif(current_setting('pgcontext.tenant_id', true), '')::uuid)
"""


def execute(text: str) -> None:
    """Run one statement with the configured schema in place."""
    context = op.get_context()
    schema = context.dialect.identifier_preparer.quote_schema(context.version_table_schema)
    op.execute(text.replace("{schema}", schema))


def upgrade() -> None:
    execute(API_KEYS)
    execute("ALTER TABLE {schema}.api_keys ENABLE ROW LEVEL SECURITY")
    execute(POLICY)


def downgrade() -> None:
    """Remove the keys: nobody comes in with one any more."""
    execute("DROP TABLE {schema}.api_keys")
