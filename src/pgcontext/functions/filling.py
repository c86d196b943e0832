"""How the DDL of the database's functions gets its names and numbers.

PostgreSQL's own text is full of `{`, `}` and `%`, so neither `format` nor `%` can fill it in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def filled(ddl: str, values: Mapping[str, object]) -> str:
    """Return the DDL with each `{name}` of `values` replaced by its value.

    In the order of `values`: what one of them brings in may name those that come after it.
    """
    for name, value in values.items():
        ddl = ddl.replace("{" + name + "}", str(value))
    return ddl.strip()
