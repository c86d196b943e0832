"""`python -m benchmarks`: measure, print, and write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from benchmarks import edge, report
from benchmarks.methods import FULL, QUICK, Bench, Scale
from benchmarks.processes import RECORDED, FileImports, import_time
from benchmarks.server import running

if TYPE_CHECKING:
    from benchmarks.timing import Comparison


def main() -> int:
    """Run everything and return the exit code."""
    arguments = _arguments()
    scale = QUICK if arguments.quick else FULL
    comparisons: list[Comparison] = []
    with running(arguments.keep) as url:
        facts = asyncio.run(_facts(url))
        print(facts, flush=True)
        at_edge = _edge(url, edge.QUICK if arguments.quick else edge.FULL)
        if not arguments.edge:
            asyncio.run(_measure(url, scale, comparisons))
            files = FileImports(url, arguments.input)
            for comparison in (*files.run(), *import_time()):
                _add(comparison, comparisons)
    for section, measured in (("measured", comparisons), ("edge", at_edge)):
        if measured:
            print(f"\n{report.table(measured)}")
            if not arguments.quick:
                report.write(f"{facts}\n\n{report.table(measured)}", section)
    missed = [comparison.what for comparison in comparisons + at_edge if comparison.missed]
    print(f"Missed: {'; '.join(missed)}." if missed else "Every target is met.")
    return int(arguments.strict and bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a twentieth of the messages; nothing is written"
    )
    parser.add_argument(
        "--edge", action="store_true", help="only cold starts, HTTP, a far database, many callers"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the database there for the next run"
    )
    parser.add_argument(
        "--input", type=Path, default=RECORDED, metavar="FILE", help="agent runs of tau-bench"
    )
    return parser.parse_args()


async def _facts(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return await report.machine(connection)
    finally:
        await connection.close()


async def _measure(url: str, scale: Scale, comparisons: list[Comparison]) -> None:
    async for comparison in Bench(url, scale).run():
        _add(comparison, comparisons)


def _edge(url: str, scale: edge.EdgeScale) -> list[Comparison]:
    """Measure first in an empty database: what is compared here doesn't depend on its size."""
    bench = edge.Edge(url, scale)
    comparisons: list[Comparison] = []

    async def in_process() -> None:
        async for comparison in bench.run():
            _add(comparison, comparisons)

    asyncio.run(in_process())
    for comparison in bench.processes():
        _add(comparison, comparisons)
    return comparisons


def _add(comparison: Comparison, comparisons: list[Comparison]) -> None:
    comparisons.append(comparison)
    print(
        f"{comparison.what}: {comparison.ratio:.2f} of {comparison.against} "
        f"({comparison.ours:.3g} and {comparison.theirs:.3g} {comparison.unit})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
