"""What the database's functions make of distances: how deep to look, and whom to believe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

JUDGED = 10
CLOSE = np.linspace(0.1, 0.12, JUDGED)


async def depth(
    connection: asyncpg.Connection,
    apart: list[int],
    distances: Sequence[float | None],
    *,
    complete: bool = True,
) -> int:
    """How many of these candidates are to be measured, these distances known."""
    found: int = await connection.fetchval(
        "SELECT pgcontext_depth($1, $2, $3, $4)", apart, distances, JUDGED, complete
    )
    return found


async def stands_out(
    connection: asyncpg.Connection, distances: Sequence[float | None]
) -> bool | None:
    """Whether a graph that found these is believed."""
    found: bool | None = await connection.fetchval(
        "SELECT pgcontext_stands_out($1, $2)", distances, JUDGED
    )
    return found


def along_a_line(rows: int, *, spread: float) -> tuple[list[int], list[float]]:
    """Distances that grow with how far apart signatures are, more or less."""
    apart = np.arange(rows) // 4
    noise = np.random.default_rng(1).normal(scale=spread, size=rows)
    return apart.tolist(), (0.2 + apart / 400 + noise).tolist()


async def test_where_distances_follow_signatures_few_are_measured(
    connection: asyncpg.Connection,
) -> None:
    """The closer they do, the fewer; measured so many, no more are needed."""
    needed = {}
    for spread in (0.01, 0.1):
        apart, distances = along_a_line(1_600, spread=spread)
        needed[spread] = await depth(connection, apart, distances[:200])
        enough = await depth(connection, apart, distances[: needed[spread]])
        assert enough <= needed[spread] * 2
    assert needed[0.01] == 200
    assert 200 < needed[0.1] <= 1_600


async def test_what_follows_the_list_is_looked_at_if_its_end_is_likely(
    connection: asyncpg.Connection,
) -> None:
    """Where signatures tell nothing, all are measured, and more; else the list is long enough."""
    apart, distances = [7] * 400, np.random.default_rng(2).uniform(0.5, 1, size=400).tolist()
    assert await depth(connection, apart, distances[:200]) >= 400
    assert await depth(connection, apart, distances, complete=False) > 400
    apart, distances = along_a_line(400, spread=0.01)
    assert await depth(connection, apart, distances, complete=False) == 400


async def test_texts_said_again_and_again_are_measured_once(connection: asyncpg.Connection) -> None:
    """They tell nothing of what else there is, unless nothing can be nearer."""
    apart = list(range(1_600))
    assert await depth(connection, apart, [0.5] * 200) > 200
    assert await depth(connection, apart, [0.0] * 200) == 200


@pytest.mark.parametrize("known", [0, 1, 5])
async def test_fewer_than_are_wanted_are_all_there_is(
    connection: asyncpg.Connection, known: int
) -> None:
    """Nothing fails where there is nothing to compare."""
    distances: list[float | None] = [0.1 * number for number in range(1, known + 1)]
    assert await depth(connection, [1] * known, distances) >= known


async def test_what_is_at_no_distance_is_passed_over(connection: asyncpg.Connection) -> None:
    """It counts among those measured, and never among the best."""
    apart, distances = along_a_line(800, spread=0.01)
    zeros: list[float | None] = [None] * 20
    assert await depth(connection, apart, [*zeros, *distances[20:200]]) in range(200, 800)
    assert await depth(connection, apart, [None] * 200) > 200
    crowd = [*CLOSE, *np.linspace(0.2, 0.9, 500)]
    assert await stands_out(connection, [*crowd, *zeros])
    assert not await stands_out(connection, [*zeros, *crowd])  # the best came too late


@pytest.mark.parametrize(
    ("distances", "believed"),
    [
        ([*CLOSE, *np.linspace(0.2, 0.9, 500)], True),
        ([*np.linspace(0.2, 0.9, 500), *CLOSE], False),
        ([*CLOSE, *np.linspace(0.8, 0.9, 500)], False),
        ([0.0] * JUDGED + [0.9] * 500, False),
        ([0.9] * 600, False),
        ([0.0] * 600, False),
        ([*CLOSE, *np.linspace(0.2, 0.9, 300)], None),
        ([], None),
    ],
    ids=[
        *("thins out towards the best", "the best came last", "a crowd far away"),
        *("copies of the query", "all as far", "all the query", "too few for a crowd", "none"),
    ],
)
async def test_a_graph_is_believed_that_went_where_it_thins_out(
    connection: asyncpg.Connection, distances: Sequence[float | None], *, believed: bool | None
) -> None:
    """The best first, and few that are nearly as near; anything else is for the scan."""
    assert await stands_out(connection, distances) is believed
