"""Runs the Python blocks of a Markdown page, as a reader would who types them in one by one.

    python tests/support/page.py docs/guide.md

Blocks marked ```python share one namespace and one event loop, and may `await` at the top level.
Where a block marked ```text follows directly, it is what the block before it prints.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FENCED = re.compile(r"^```python\n(.*?)^```\n(?:\n+```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, the line it starts at, and what it prints if the page says so."""

    code: str
    line: int
    prints: str | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the Python blocks of a page."""
    for found in FENCED.finditer(text):
        yield Block(found[1], text.count("\n", 0, found.start(1)), found[2])


def run(path: Path) -> None:
    """Run a page; a block that fails raises with the page's own line in the traceback."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in blocks(path.read_text("utf-8")):
            source = "\n" * block.line + block.code
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(source, str(path), "exec", flags=flags, dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                result = eval(code, namespace)  # noqa: S307 (the project's own pages)
                if inspect.iscoroutine(result):
                    runner.run(result)
            if block.prints is not None and printed.getvalue().strip() != block.prints.strip():
                msg = f"{path}:{block.line}: this prints\n{printed.getvalue()}"
                raise AssertionError(msg)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
