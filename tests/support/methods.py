"""The store's methods, so that a new one is forgotten by no test that goes through them all."""

from __future__ import annotations

import inspect
from typing import Final

from pgcontext import ContextStore

ASKING: Final = frozenset(
    name
    for name, method in inspect.getmembers(ContextStore, inspect.isfunction)
    if not name.startswith("_")
    and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
) - {"aclose"}
