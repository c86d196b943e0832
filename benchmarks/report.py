"""The table of results, for a terminal and for docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from benchmarks.timing import Comparison

PAGE: Final = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- {section}: make bench writes from here -->\n"
END: Final = "<!-- {section}: to here -->\n"
HEADER: Final = ("measured", "median", "against", "median", "ratio", "target", "")


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a Markdown table."""
    return aligned([HEADER, *(_row(comparison) for comparison in comparisons)])


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table with aligned columns; its first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _row(comparison: Comparison) -> tuple[str, ...]:
    target = _target(comparison)
    verdict = "" if not target else "missed" if comparison.missed else "met"
    return (
        comparison.what,
        f"{number(comparison.ours)} {comparison.unit}",
        comparison.against,
        f"{number(comparison.theirs)} {comparison.unit}",
        f"{comparison.ratio:.2f}",
        target,
        verdict,
    )


def _target(comparison: Comparison) -> str:
    if comparison.target is not None:
        return f"<= {comparison.target:g}"
    return "" if comparison.floor is None else f">= {comparison.floor:g}"


def number(value: float) -> str:
    """Return three digits of it, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


async def machine(connection: asyncpg.Connection) -> str:
    """Say what it was measured on."""
    names = ("server_version", "fsync", "wal_sync_method", "shared_buffers")
    server = {name: await connection.fetchval(f"SHOW {name}") for name in names}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    jit = await connection.fetchval("SELECT pg_jit_available()")
    pgvector = await connection.fetchval(
        "SELECT extversion FROM pg_extension WHERE extname='vector'"
    )
    load = os.getloadavg()[0]
    return f"""\
- {datetime.now(UTC):%Y-%m-%d}; {_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, \
{platform.system()}; load before the run {load:.1f}
- {platform.python_implementation()} {platform.python_version()}, asyncpg {version("asyncpg")}, \
msgspec {version("msgspec")}
- PostgreSQL {server["server_version"]} with pgvector {pgvector}, over a Unix socket, with the \
settings it comes with: fsync {server["fsync"]} ({server["wal_sync_method"]}), \
shared_buffers {server["shared_buffers"]}, JIT {"on" if jit else "not available"}
"""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(text: str, section: str, page: Path = PAGE) -> None:
    """Put a result in its place in the documentation."""
    begin, end = BEGIN.format(section=section), END.format(section=section)
    before, found, rest = page.read_text("utf-8").partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        msg = f"{page.name} has no place for the results of {section}."
        raise ValueError(msg)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")
