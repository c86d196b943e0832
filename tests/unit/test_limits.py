import re
from pathlib import Path

import pytest

import pgcontext
from pgcontext import limits

BOUNDS = [name for name in vars(limits) if re.fullmatch(r"[A-Z][A-Z_]+", name)]
UNITS = {
    "ATTEMPTS",
    "BITS",
    "BYTES",
    "CHARS",
    "CONNECTIONS",
    "CONTEXTS",
    "COUNT",
    "DAYS",
    "DEPTH",
    "DIMENSIONS",
    "HITS",
    "MESSAGES",
    "NEIGHBORS",
    "REQUESTS",
    "REVISION",
    "ROLES",
    "ROWS",
    "SECONDS",
    "TEXTS",
    "VERSION",
    "VERSIONS",
}
SOURCES = {
    path: path.read_text()
    for path in Path(pgcontext.__file__ or "").parent.rglob("*.py")
    if path.name != "limits.py"
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_has_its_unit_in_its_name(name: str) -> None:
    """Whoever reads the name knows what is counted."""
    assert UNITS & set(name.split("_")), f"{name} does not say its unit"


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_held_somewhere(name: str) -> None:
    """A bound that no code looks at would be a promise without a keeper."""
    assert any(re.search(rf"\b{name}\b", text) for text in SOURCES.values())


@pytest.mark.parametrize("name", [name for name in BOUNDS if name.endswith("_MAX")])
def test_a_bound_is_a_positive_number(name: str) -> None:
    """No bound is switched off by zero, None or infinity."""
    assert 0 < getattr(limits, name) < 2**63
