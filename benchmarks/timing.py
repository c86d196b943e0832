"""Times calls side by side, so that what slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[[], Awaitable[object]]
    Side = tuple[str, Call]  # what it is, and how it is done

# PostgreSQL plans a prepared statement anew for its first five executions.
WARM_UP_ROUNDS: Final = 20


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the result.

    Attributes:
        what: was measured.
        against: what it is compared with.
        ours: its median, in `unit`.
        theirs: the other median.
        target: what `ours / theirs` should not exceed; None for what is only reported.
        floor: what it should reach, where more is better.
        unit: of both medians.
    """

    what: str
    against: str
    ours: float
    theirs: float
    target: float | None = None
    floor: float | None = None
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        """How many times the other one."""
        return self.ours / self.theirs

    @property
    def missed(self) -> bool:
        """Whether it has a target and is beyond it."""
        return (self.target is not None and self.ratio > self.target) or (
            self.floor is not None and self.ratio < self.floor
        )


async def interleaved(rounds: int, *calls: Call) -> list[float]:
    """Make every call once a round, in turn, and return the median of each in milliseconds."""
    times: list[list[float]] = [[] for _ in calls]
    for round_ in range(-WARM_UP_ROUNDS, rounds):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            await call()
            if round_ >= 0:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) * 1_000 for taken in times]


async def compare(
    rounds: int, ours: Side, theirs: Side, *, target: float | None = None
) -> Comparison:
    """Time two calls."""
    ours_ms, theirs_ms = await interleaved(rounds, ours[1], theirs[1])
    return Comparison(
        what=ours[0], against=theirs[0], ours=ours_ms, theirs=theirs_ms, target=target
    )
