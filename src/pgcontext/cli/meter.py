"""Counts what a piece of work costs: the statements that were really sent, and the time it took."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from pgcontext.pool import statement_logger

if TYPE_CHECKING:
    from collections.abc import Generator


class Cost(msgspec.Struct):
    """What one step cost.

    Attributes:
        step: its name.
        statements: how many were sent.
        milliseconds: by the wall clock, this side of the connection included.
    """

    step: str
    statements: int = 0
    milliseconds: float = 0.0


class Meter(logging.Handler):
    """Listens to what the pool says about each statement it has sent."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.costs: list[Cost] = []
        self._sent = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (as logging calls it)
        """Count a statement."""
        self._sent += 1

    @contextmanager
    def listening(self) -> Generator[None]:
        """Listen inside; the logger is as before afterwards."""
        level, propagate = statement_logger.level, statement_logger.propagate
        statement_logger.addHandler(self)
        statement_logger.setLevel(logging.DEBUG)
        statement_logger.propagate = False
        try:
            yield
        finally:
            statement_logger.removeHandler(self)
            statement_logger.setLevel(level)
            statement_logger.propagate = propagate

    def begin(self, step: str) -> None:
        """Begin a step; what is measured from now on is its cost."""
        self.costs.append(Cost(step))

    @contextmanager
    def measured(self) -> Generator[Cost]:
        """Yield what happens inside costs, complete when it is over; add it to the step's cost."""
        step = self.costs[-1]
        piece = Cost(step.step)
        sent, started = self._sent, time.perf_counter()
        yield piece
        piece.milliseconds = (time.perf_counter() - started) * 1_000
        piece.statements = self._sent - sent
        step.milliseconds += piece.milliseconds
        step.statements += piece.statements
