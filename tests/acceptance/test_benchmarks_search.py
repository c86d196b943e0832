import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks-search.md"
PARTS = ("recall", "sizes", "growth", "appends")


def test_the_benchmark_of_search_runs_small_and_finds_everything(tmp_path: Path) -> None:
    """Each part runs on a few thousand messages; nothing is missed, and the page stays as it is."""
    before = PAGE.read_bytes()
    only = [word for part in PARTS for word in ("--only", part)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.search", "--quick", *only],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = done.stdout.rpartition("| measured")[2]
    for what in (
        r"recall@10, the worst of \d+ filters and topics .*\bmet",
        r"searches that return k hits where k exist .*\bmet",
        r"search 3,000 messages, off topic \(recall (1|0\.99)",
        r"search 6,000 messages, on topic \(recall (1|0\.99)",
        r"search in a context, 1,000 messages in 20 forks of forks",
        r"append with an embedding, 6,000 messages .* embed=\"later\"",
    ):
        assert re.search(rf"(?m)^\| {what}", measured), (what, measured)
    assert "index messages_embedding_idx (hnsw)" in done.stdout
    assert PAGE.read_bytes() == before


def test_the_page_has_a_place_for_every_part() -> None:
    """What a full run writes has its place, or the run would end without a result."""
    from benchmarks.report import BEGIN, END
    from benchmarks.search.__main__ import PARTS as ALL

    page = PAGE.read_text("utf-8")
    for part in ALL:
        section = f"search {part}"
        assert page.count(BEGIN.format(section=section)) == 1
        assert page.index(BEGIN.format(section=section)) < page.index(END.format(section=section))
