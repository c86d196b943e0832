"""Every SQL text of the package, by name, as tests of statements go through them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import TYPE_CHECKING, Final

from pgcontext import statements

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG: Final = re.compile(r"\s*-- pgcontext\.\w+\n")


def all_statements() -> dict[str, str]:
    """Name and text of each statement in `pgcontext.statements`, whichever module it stands in."""
    modules = [
        importlib.import_module(f"{statements.__name__}.{module.name}")
        for module in pkgutil.iter_modules(statements.__path__)
    ]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and TAG.match(value)
    }


def recursive_ctes(text: str) -> Iterator[str]:
    """Yield the body of each recursive CTE: those that name themselves."""
    for found in re.finditer(r"\b(\w+) AS (?:NOT MATERIALIZED |MATERIALIZED )?\(", text):
        body = _in_parentheses(text, found.end() - 1)
        if re.search(rf"\b(?:FROM|JOIN)\s+{found[1]}\b", body):
            yield body


def _in_parentheses(text: str, start: int) -> str:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return text[start : place + 1]
    raise AssertionError(text[start : start + 80])
