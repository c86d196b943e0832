"""Whole processes: what an import costs, and how the command line takes in a file."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.conversations import conversation
from benchmarks.server import run
from benchmarks.timing import Comparison
from pgcontext.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPORT_ROUNDS: Final = 20
IMPORT_TARGET: Final = 1.25
LARGER_FILE: Final = 10
# Where the recorded agent runs are if somebody has them beside the project.
RECORDED: Final = Path(__file__).parents[2] / "shared" / "data" / "tau_airline_public.json"
# A process's own peak counts from its parent's: so the parent is a small one.
WITH_PEAK: Final = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], check=True, stdout=subprocess.PIPE)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.stdout.write(done.stdout.decode().strip() + "\\n" + str(peak) + "\\n")
"""


def import_time(rounds: int = IMPORT_ROUNDS) -> Iterator[Comparison]:
    """Compare `import pgcontext` with `import asyncpg`, both over an interpreter that ends."""
    _seconds("import pgcontext")  # leaves compiled modules behind
    pgcontext, driver, nothing = (
        statistics.median(taken)
        for taken in zip(
            *(
                [_seconds(f"import {name}") for name in ("pgcontext", "asyncpg", "sys")]
                for _ in range(rounds)
            ),
            strict=True,
        )
    )
    yield Comparison(
        what="python -c 'import pgcontext', beyond an empty program",
        against="import asyncpg",
        ours=(pgcontext - nothing) * 1_000,
        theirs=(driver - nothing) * 1_000,
        target=IMPORT_TARGET,
    )
    yield Comparison(
        what="… the whole process",
        against="import asyncpg",
        ours=pgcontext * 1_000,
        theirs=driver * 1_000,
        target=IMPORT_TARGET,
    )


def _seconds(code: str) -> float:
    started = time.perf_counter()
    run([sys.executable, "-c", code])
    return time.perf_counter() - started


class FileImports:
    """Takes a file of conversations in, and one `LARGER_FILE` times as long."""

    def __init__(self, url: str, file: Path = RECORDED) -> None:
        self._url = url
        self._recorded = file.exists()
        self._runs: list[dict[str, Any]] = (
            json.loads(file.read_text("utf-8")) if self._recorded else _made_up()
        )

    def run(self) -> Iterator[Comparison]:
        """Measure both, each into a tenant of its own."""
        with tempfile.TemporaryDirectory() as folder:
            results = [
                self._import(Path(folder) / f"{times}.json", times) for times in (1, LARGER_FILE)
            ]
        (small, small_peak), (large, large_peak) = results
        conversations = [tally["conversations"] for tally in (small, large)]
        names = [f"{count:,} conversations" for count in conversations]
        kind = "recorded" if self._recorded else "made-up"
        yield Comparison(
            what=f"pgcontext import of {kind} runs, peak memory, {names[1]}",
            against=names[0],
            ours=large_peak,
            theirs=small_peak,
            target=1.1,
            unit="MB",
        )
        yield Comparison(
            what="… messages a second",
            against=names[0],
            ours=large["messages"] / large["seconds"],
            theirs=small["messages"] / small["seconds"],
            unit="messages/s",
        )

    def _import(self, file: Path, times: int) -> tuple[dict[str, Any], float]:
        """Import the runs so many times over, as different trials; return its tally and peak MB."""
        with file.open("w", encoding="utf-8") as target:
            json.dump(
                [
                    run_ | {"trial": f"{run_['trial']}.{copy}"}
                    for copy in range(times)
                    for run_ in self._runs
                ],
                target,
            )
        output = run(
            [
                *(sys.executable, "-c", WITH_PEAK),
                *(sys.executable, "-m", "pgcontext.cli", "import", str(file), "--json"),
                *("--tenant", str(uuid7())),
            ],
            DATABASE_URL=self._url,
        )
        tally, _, peak = output.strip().rpartition("\n")
        kilobytes = int(peak) / (1024 if sys.platform == "darwin" else 1)
        return json.loads(tally), kilobytes / 1024


def _made_up() -> list[dict[str, Any]]:
    """Make as many runs as were recorded."""
    messages = list(conversation(7))[:27]
    return [{"task_id": task, "trial": 0, "traj": messages} for task in range(100)]
