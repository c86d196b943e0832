from __future__ import annotations

import pytest

from tests.support.modules import HEAVY, loaded_by


@pytest.mark.parametrize("heavy", sorted(HEAVY))
def test_what_is_called_heavy_would_be_seen(heavy: str) -> None:
    """Each heavy package is installed, and the listing shows it when something imports it."""
    assert heavy in loaded_by(f"import {heavy}")


def test_importing_pgcontext_loads_nothing_heavy() -> None:
    """The import brings asyncpg and msgspec, and nothing of the side branch."""
    loaded = loaded_by("from pgcontext import ContextStore")
    assert {"pgcontext", "asyncpg", "msgspec"} <= loaded
    assert not loaded & HEAVY


def test_making_a_store_loads_nothing_heavy() -> None:
    """A store is made without what its later methods may want."""
    loaded = loaded_by(
        "from pgcontext import ContextStore\n"
        "ContextStore('postgresql://someone:secret@127.0.0.1:5432/somewhere')"
    )
    assert not loaded & HEAVY
