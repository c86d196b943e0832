"""`python -m pgcontext.migrate`: upgrade, without the packages of the command line.

With `--embedded` as the embedded PostgreSQL is at its start.
"""

from __future__ import annotations

import sys
from typing import Final

from pgcontext.errors import (
    ConfigError,
    ContextStoreError,
    InvalidInputError,
    SchemaMismatchError,
    UnavailableError,
)
from pgcontext.migrate import upgrade
from pgcontext.migrate.embedded import upgrade_embedded

# Those of the `pgcontext` command; the table is in docs/cli.md.
EXIT_CODES: Final[tuple[tuple[type[ContextStoreError], int], ...]] = (
    (InvalidInputError, 2),
    (ConfigError, 5),
    (UnavailableError, 6),
    (SchemaMismatchError, 7),
)
EMBEDDED: Final = "--embedded"
UNEXPECTED: Final = 70
INTERRUPTED: Final = 130


def main() -> int:
    """Upgrade the database that the environment names; return the exit code."""
    try:
        revision = upgrade_embedded() if EMBEDDED in sys.argv[1:] else upgrade()
    except ContextStoreError as error:
        return _fail(str(error), exit_code(error))
    except KeyboardInterrupt:
        return _fail("Interrupted; nothing was changed.", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 (the last resort, so that no traceback is shown)
        # Its text may quote anything, so only its class is named.
        return _fail(f"Unexpected {type(error).__name__}; nothing was changed.", UNEXPECTED)
    print(f"The database is at revision {revision}.")  # noqa: T201 (this is a command)
    return 0


def exit_code(error: ContextStoreError) -> int:
    """Tell the exit code that stands for an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), UNEXPECTED)


def _fail(sentence: str, code: int) -> int:
    print(f"pgcontext: {sentence}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
