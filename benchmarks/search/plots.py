"""Pictures of the results, in docs/images; each function returns what shows its picture."""

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


def recall(cells: Sequence[Cell]) -> str:
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
    return _saved(figure, "search-recall.png", "Recall of the worst filter at each selectivity")


def _lines(cells: Sequence[Cell]) -> list[tuple[str, bool, str]]:
    spaces = list(dict.fromkeys(cell.space for cell in cells))
    return [
        (space, halved, colour)
        for space, colour in zip(spaces, (BLUE, ORANGE), strict=False)
        for halved in (False, True)
    ]


def peers(asked: Sequence[Asked]) -> str:
    """Draw what each store finds in the largest table, as documented, and how long it takes."""
    largest = max(one.rows for one in asked)
    shown = [one for one in asked if one.rows == largest and one.manner == MANNERS[0].name]
    title = f"stores as documented, {largest:,} messages: what is found, and how fast"
    figure, (found, took) = _panels(2, title, rows=2)
    stores = list(dict.fromkeys(one.store for one in shown))
    for above, below, on_topic in zip(found, took, (True, False), strict=True):
        for store, colour in zip(stores, (BLUE, ORANGE, GREEN, RED), strict=False):
            points = [one for one in shown if (one.store, one.on_topic) == (store, on_topic)]
            shares = [one.share for one in points]
            style = {"color": colour, "marker": "o" if store == OURS else "s", "label": store}
            above.plot(shares, [one.recall for one in points], **style)
            below.plot(shares, [one.milliseconds for one in points], **style)
        above.set_title("on topic" if on_topic else "off topic", fontsize=10)
        above.set_ylim(-0.05, 1.05)
        below.set_yscale("log")
        below.set_xlabel("what is searched")
    found[0].set_ylabel("recall@10")
    took[0].set_ylabel("p50, ms")
    took[0].legend(fontsize=8)
    return _saved(figure, "search-peers.png", "Recall and time of four stores by what is searched")


def sizes(tried: Sequence[Tried]) -> str:
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
    return _saved(
        figure,
        "search-sizes.png",
        "Time of a search by the size of the tenant, beside statements by hand",
    )


def _equal(tried: Sequence[Tried], family: str, size: int, recall_: float) -> list[float]:
    return [
        one.milliseconds
        for one in tried
        if (one.family, one.size) == (family, size) and one.recall >= recall_ - SAME_RECALL
    ]


def _panels(count: int, title: str, *, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, count, sharey="row")
    figure.suptitle(title, fontsize=11)
    for panel in panels.flat:
        panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure, panels


def _saved(figure: Any, name: str, meaning: str) -> str:  # noqa: ANN401 (of matplotlib)
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110)
    return f"\n![{meaning}]({IMAGES.name}/{name})\n"
