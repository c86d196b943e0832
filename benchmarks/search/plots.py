"""Pictures of the results, for docs/images."""

from __future__ import annotations

import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.search.corpus import SHARES
from benchmarks.search.latency import SAME_RECALL
from benchmarks.search.peers import MANNERS, OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from benchmarks.search.latency import Tried
    from benchmarks.search.peers import Asked
    from benchmarks.search.recall import Cell

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
# Told apart by those who don't see all colours alike, too.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
GREY: Final = "#8a8a8a"


def available() -> bool:
    """Whether what draws is installed."""
    return find_spec("matplotlib") is not None


def recall(cells: Sequence[Cell]) -> None:
    """Draw the recall of the worst filter at each selectivity."""
    figure, panels = _panels(2, "search: recall@10 by what a filter lets through, worst filter")
    for panel, on_topic in zip(panels, (True, False), strict=True):
        for space, halved, colour in _lines(cells):
            points = {
                share: min(
                    statistics.mean(cell.recalls)
                    for cell in cells
                    if (cell.space, cell.halved, cell.on_topic, cell.share)
                    == (space, halved, on_topic, share)
                )
                for share in SHARES
                if any(cell.share == share for cell in cells)
            }
            label = f"{space}, half deleted" if halved else space
            style = "--o" if halved else "-o"
            panel.plot(list(points), list(points.values()), style, color=colour, label=label)
        panel.axhline(0.99, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_title("on topic" if on_topic else "off topic", fontsize=10)
        panel.set_ylim(0.9, 1.005)
        panel.set_xlabel("share of the rows that pass the filter")
    panels[0].set_ylabel("recall@10")
    panels[0].legend(fontsize=8)
    _save(figure, "search-recall.png")


def _lines(cells: Sequence[Cell]) -> list[tuple[str, bool, str]]:
    spaces = list(dict.fromkeys(cell.space for cell in cells))
    return [
        (space, halved, colour)
        for space, colour in zip(spaces, (BLUE, ORANGE), strict=False)
        for halved in (False, True)
    ]


def peers(asked: Sequence[Asked]) -> None:
    """Draw recall against time for each store, as documented, in the largest table."""
    largest = max(one.rows for one in asked)
    shown = [one for one in asked if one.rows == largest and one.manner == MANNERS[0].name]
    figure, panels = _panels(2, f"one tenant of {largest:,} messages: what is found, and how fast")
    stores = list(dict.fromkeys(one.store for one in shown))
    for panel, on_topic in zip(panels, (True, False), strict=True):
        for store, colour in zip(stores, (BLUE, ORANGE, GREEN, RED), strict=False):
            points = [one for one in shown if (one.store, one.on_topic) == (store, on_topic)]
            label = "pgcontext" if store == OURS else store
            panel.scatter(
                [one.milliseconds for one in points],
                [one.recall for one in points],
                color=colour,
                label=label,
                marker="o" if store == OURS else "s",
            )
            for one in points:
                at = (one.milliseconds, one.recall)
                panel.annotate(
                    one.share, at, fontsize=7, xytext=(4, -9), textcoords="offset points"
                )
        panel.set_xscale("log")
        panel.set_title("on topic" if on_topic else "off topic", fontsize=10)
        panel.set_ylim(-0.08, 1.05)
        panel.set_xlabel("p50, ms")
    panels[0].set_ylabel("recall@10")
    panels[0].legend(fontsize=8, loc="lower right")
    _save(figure, "search-peers.png")


def sizes(tried: Sequence[Tried]) -> None:
    """Draw the time of a search as tenants get larger, beside the best by hand."""
    figure, panels = _panels(2, "search beside the fastest written by hand that finds as much")
    for panel, on_topic in zip(panels, (True, False), strict=True):
        some = [one for one in tried if one.on_topic == on_topic]
        ours = {one.size: one for one in some if one.family == "ours"}
        panel.plot(
            list(ours), [one.milliseconds for one in ours.values()], "-o", color=BLUE, label="store"
        )
        for family, colour in (("exact", ORANGE), ("signatures", GREEN), ("HNSW", RED)):
            best = {
                size: min(times)
                for size in ours
                if (times := _equal(some, family, size, ours[size].recall))
            }
            panel.plot(list(best), list(best.values()), "--s", color=colour, label=family)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title("on topic" if on_topic else "off topic", fontsize=10)
        panel.set_xlabel("messages of the tenant")
    panels[0].set_ylabel("p50, ms")
    panels[0].legend(fontsize=8)
    _save(figure, "search-sizes.png")


def _equal(tried: Sequence[Tried], family: str, size: int, recall_: float) -> list[float]:
    return [
        one.milliseconds
        for one in tried
        if (one.family, one.size) == (family, size) and one.recall >= recall_ - SAME_RECALL
    ]


def _panels(count: int, title: str) -> tuple[Any, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, count, sharey=True)
    figure.suptitle(title, fontsize=11)
    for panel in panels:
        panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure, panels


def _save(figure: Any, name: str) -> None:  # noqa: ANN401 (matplotlib is not installed everywhere)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110)
