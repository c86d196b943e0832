<%
    import re

    # Which schema the tables live in is a setting, so no migration may name one.
    name = config.attributes["schema"]

    def anywhere(code):
        code = re.sub(rf"schema='{name}'", "schema=schema", code)
        return re.sub(rf"'{name}\.(\w+(?:\.\w+)?)'", r"f'{schema}.\1'", code)

    def body(code):
        code = anywhere(code or "pass")
        first = "schema = op.get_context().version_table_schema\n    " if "schema" in code else ""
        return first + code
%>\
"""${message}."""

% if imports:
${imports}
% endif
import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${body(upgrades)}


def downgrade() -> None:
    ${body(downgrades)}
