import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import page

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if any(page.blocks(path.read_text("utf-8")))
]


def run(path: Path, database_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in a process and a folder of their own."""
    return subprocess.run(
        [sys.executable, "-W", "error", page.__file__, str(path)],
        cwd=folder,
        env=os.environ | {"DATABASE_URL": database_url, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_examples_of_a_page_run(path: Path, database_url: str, tmp_path: Path) -> None:
    """Every Python block of the documentation does what the page says, on an empty database."""
    done = run(path, database_url, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_a_program() -> None:
    """The pages are found, and the first of them shows code."""
    assert PAGES[0].name == "README.md"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```python\nawait missing()\n```\n", "NameError"),
        ("```python\nimport asyncio\nawait asyncio.sleep(0)\n1 / 0\n```\n", "line 4"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "AssertionError"),
        ("```python\nprint('a')\n```\n\n```text\nb\n```\n", "this prints"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, sentence: str, tmp_path: Path) -> None:
    """The runner can see a broken example, and says where it stands."""
    path = tmp_path / "page.md"
    path.write_text(text)
    done = run(path, "", tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_a_page_that_is_right_passes(tmp_path: Path) -> None:
    """Names and the event loop are shared within a page; what is printed may be shown."""
    path = tmp_path / "page.md"
    path.write_text(
        "# Page\n\n```python\nimport asyncio\nlock = asyncio.Lock()\nasync with lock:\n    x = 1\n"
        "```\n\nText.\n\n```python\nasync with lock:\n    print(x)\n```\n\n```text\n1\n```\n\n"
        "```sh\nexit 1\n```\n"
    )
    done = run(path, "", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
