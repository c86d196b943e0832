"""A span for each operation, where the process traces with OpenTelemetry.

Nothing is imported for it: whoever traces has loaded OpenTelemetry's API already, and where it is
not loaded nobody would see a span. A span has the operation's name, how often it was tried, and
the kind of its error; never an argument, a statement's text or content.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

API: Final = "opentelemetry.trace"
NO_SPAN: Final = nullcontext()


def span(name: str) -> AbstractContextManager[Any]:
    """Return a context manager for one operation, `pgcontext.append`; its value may be None."""
    api = sys.modules.get(API)
    return NO_SPAN if api is None else _traced(api, name)


def retried(current: Any, attempts: int) -> None:  # noqa: ANN401
    """Write down on a span how many tries there were."""
    if current is not None:
        current.set_attribute("pgcontext.attempts", attempts)


@contextmanager
def _traced(api: Any, name: str) -> Generator[Any]:  # noqa: ANN401
    # Source: OpenTelemetry semantic conventions for database client spans.
    attributes = {"db.system.name": "postgresql", "db.operation.name": name.rpartition(".")[2]}
    with api.get_tracer("pgcontext").start_as_current_span(
        name, kind=api.SpanKind.CLIENT, attributes=attributes, record_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            raise
