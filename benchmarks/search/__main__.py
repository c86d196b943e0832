"""`python -m benchmarks.search`: measure, print, write docs/benchmarks-search.md and draw."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import msgspec

from benchmarks import report
from benchmarks.search import growth, latency, peers, plots, quality, recall, sizing
from benchmarks.search.corpus import Sized
from benchmarks.search.vectors import RECORDED, Hard, RealLike
from benchmarks.server import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from benchmarks.timing import Comparison

PAGE: Final = report.PAGE.with_name("benchmarks-search.md")
PARTS: Final = ("recall", "sizes", "growth", "quality", "peers", "appends")


class Scale(msgspec.Struct, frozen=True):
    """How much to measure.

    Attributes:
        recall_rows: of the tables that recall is measured in.
        recall_queries: of each filter, on topic and off topic.
        sizes: of the tenants that are compared with hand-written statements.
        small: of the tenant that grows.
        large: what it grows to.
        peers: sizes of the tables that other stores are compared in.
        rounds: of each comparison.
    """

    recall_rows: int
    recall_queries: int
    sizes: tuple[int, ...]
    small: int
    large: int
    peers: tuple[int, ...]
    rounds: int


# What a database of this size is given: a sixth of this machine's memory.
SHARED_BUFFERS: Final = "4GB"
FULL: Final = Scale(
    recall_rows=200_000,
    recall_queries=10,
    sizes=(1_000, 10_000, 100_000, 500_000),
    small=200_000,
    large=1_000_000,
    peers=(10_000, 100_000),
    rounds=60,
)
QUICK: Final = Scale(
    recall_rows=5_000,
    recall_queries=2,
    sizes=(1_000, 3_000),
    small=2_000,
    large=6_000,
    peers=(1_000,),
    rounds=5,
)


class Run:
    """One run on one server: what was asked for, one part after the other."""

    def __init__(self, url: str, scale: Scale, arguments: argparse.Namespace) -> None:
        self._url = url
        self._scale = scale
        self._parts: list[str] = arguments.only or list(PARTS)
        self._quick: bool = arguments.quick
        self._space = RealLike()
        self.comparisons: list[Comparison] = []

    async def everything(self) -> None:
        """Measure the parts; each writes its tables and pictures when it is done."""
        for part in self._parts:
            before = len(self.comparisons)
            detail = await getattr(self, f"_{part}")()
            if detail:
                print(f"\n{detail}", flush=True)
            found = self.comparisons[before:]
            if found and not self._quick:
                facts = await self._facts()
                text = f"{facts}\n\n{report.table(found)}\n{detail}"
                report.write(text, f"search {part}", PAGE)

    async def _facts(self) -> str:
        connection = await asyncpg.connect(self._url)
        try:
            return await report.machine(connection)
        finally:
            await connection.close()

    async def _recall(self) -> str:
        scale = self._scale
        cells = await recall.measure(
            self._url, [self._space, Hard()], scale.recall_rows, scale.recall_queries
        )
        self._add(recall.compare(cells))
        return recall.table(cells) + (plots.recall(cells) if self._draws() else "")

    async def _sizes(self) -> str:
        corpus = Sized(self._space, self._scale.sizes, f"tenants_{sum(self._scale.sizes)}")
        beside = latency.Beside(self._url, corpus, self._scale.rounds)
        await self._add_from(beside.run())
        return beside.table() + (plots.sizes(beside.tried) if self._draws() else "")

    async def _growth(self) -> str:
        scale = self._scale
        small, large = (growth.alone(self._space, size) for size in (scale.small, scale.large))
        await self._add_from(growth.growth(self._url, small, large, scale.rounds))
        await self._add_from(growth.lineage(self._url, self._space, scale.rounds))
        return ""

    async def _quality(self) -> str:
        comparisons, tables = await quality.measure(self._url, quick=self._quick)
        self._add(comparisons)
        return tables

    async def _peers(self) -> str:
        if self._quick and not peers.installed():
            return "Other stores are left out: --quick installs nothing."
        peers.install()
        asked = await peers.measure(self._url, self._space, self._scale.peers)
        self._add(peers.compare(asked))
        return peers.table(asked) + (plots.peers(asked) if self._draws() else "")

    async def _appends(self) -> str:
        corpus = growth.alone(self._space, self._scale.large)
        await self._add_from(sizing.appends(self._url, corpus, 5 * self._scale.rounds))
        return await sizing.table(self._url, corpus)

    def _draws(self) -> bool:
        return not self._quick and plots.available()

    def _add(self, comparisons: Iterable[Comparison]) -> None:
        for comparison in comparisons:
            self.comparisons.append(comparison)
            print(
                f"{comparison.what}: {comparison.ratio:.3g} of {comparison.against} "
                f"({comparison.ours:.3g} and {comparison.theirs:.3g} {comparison.unit})",
                flush=True,
            )

    async def _add_from(self, comparisons: AsyncIterator[Comparison]) -> None:
        async for comparison in comparisons:
            self._add([comparison])


def main() -> int:
    """Run everything and return the exit code."""
    arguments = _arguments()
    if not RECORDED.exists():
        print("No recorded embeddings beside the project: made-up ones of the same spectrum.")
    with running(arguments.keep, shared_buffers=SHARED_BUFFERS) as url:
        run = Run(url, QUICK if arguments.quick else FULL, arguments)
        asyncio.run(run.everything())
    print(f"\n{report.table(run.comparisons)}")
    missed = [comparison.what for comparison in run.comparisons if comparison.missed]
    print(f"Missed: {'; '.join(missed)}." if missed else "Every target is met.")
    return int(arguments.strict and bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth of the messages; nothing is written"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the databases there for the next run"
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
