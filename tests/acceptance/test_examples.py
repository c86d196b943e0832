import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import page

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def documented(source: str) -> str:
    """Read what an example says that it prints."""
    shown = re.search(r'\nPrints:\n(.+?)\n"""', source, re.DOTALL)
    assert shown, "the docstring has no Prints:"
    return textwrap.dedent(shown[1])


def run(path: Path, database_url: str) -> str:
    """Run an example as a reader would, with every warning an error; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env=os.environ | {"DATABASE_URL": database_url, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(path: Path, database_url: str) -> None:
    """Twice on one database: an example may be run again."""
    expected = documented(path.read_text("utf-8"))
    for _ in range(2):
        assert run(path, database_url) == expected


def meaning(source: str) -> str:
    """Reduce a program to what it does: layout and docstrings don't count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.AsyncFunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


def test_the_readme_shows_the_quick_start() -> None:
    """The first program of the README, and what it prints, are those of the example."""
    source = (ROOT / "examples" / "quickstart.py").read_text("utf-8")
    shown = next(page.blocks((ROOT / "README.md").read_text("utf-8")))
    assert meaning(shown.code) == meaning(source)
    assert (shown.prints or "").strip() == documented(source)
