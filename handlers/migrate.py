"""A job that brings the database to the schema of the installed pgcontext.

It connects to DATABASE_URL_UNPOOLED (or POSTGRES_URL_NON_POOLING, or a DATABASE_URL that is
direct) and refuses a transaction pooler. Running it again changes nothing; run twice at once, the
work is done once.

As a function: `migrate.handler`. From a shell: `python handlers/migrate.py`.
"""

from __future__ import annotations

import sys

from pgcontext.errors import ContextStoreError
from pgcontext.migrate import upgrade


def handler(event: object, context: object) -> dict[str, str]:  # noqa: ARG001 (Lambda's signature)
    """Migrate, and return the revision that the database is at then.

    Raises:
        ContextStoreError: what stands in the way, in one sentence.
    """
    return {"revision": upgrade()}


if __name__ == "__main__":
    try:
        print(handler(None, None)["revision"])
    except ContextStoreError as error:
        sys.exit(str(error))
