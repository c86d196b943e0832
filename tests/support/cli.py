"""Runs the command line: inside the test where it can, as a process of its own where it must."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pgcontext.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

SHARED: Final = Path(__file__).parents[3] / "shared" / "data"
SAMPLE: Final = Path(__file__).parents[2] / "src" / "pgcontext" / "samples" / "conversations.jsonl"
FERRY: Final = "7bf0ea80-48e4-5ebf-90bf-b43bbcdadd91"


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The JSON it printed."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The error it printed as JSON."""
        error: dict[str, str] = json.loads(self.err)["error"]
        return error


class Cli:
    """The `pgcontext` command, on one database.

    Args:
        patch: sets the environment for the length of the test.
        url: of the database.
    """

    def __init__(self, patch: pytest.MonkeyPatch, url: str | None) -> None:
        self.patch = patch
        if url is not None:
            patch.setenv("DATABASE_URL", url)
        for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM"):
            patch.delenv(name, raising=False)

    def __call__(self, *arguments: object) -> Result:
        """Run a command in this process and catch what it prints and how it ends."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        self.patch.setattr(sys, "argv", ["pgcontext", *map(str, arguments)])
        code: Any = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        return Result(int(code), _text(out), _text(err))

    def ok(self, *arguments: object) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments)
        assert result.code == 0, result.err
        return result

    def json(self, *arguments: object) -> Any:
        """Run a command that must succeed, with --json, and return what it says."""
        return self.ok(*arguments, "--json").value

    def process(
        self,
        *arguments: object,
        stdin: bytes | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> Result:
        """Run a command as a process of its own."""
        done = subprocess.run(
            command(*arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            preexec_fn=preexec,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: object, **streams: Any) -> subprocess.Popen[bytes]:
        """Start a command as a process that the test goes on beside."""
        return subprocess.Popen(command(*arguments), env=dict(os.environ), **streams)


def command(*arguments: object) -> list[str]:
    """Return what starts the command line in a process of its own."""
    return [sys.executable, "-W", "error", "-m", "pgcontext.cli", *map(str, arguments)]


def jsonl(path: Path, *values: object) -> Path:
    """Write values as JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    binary = stream.buffer
    assert isinstance(binary, io.BytesIO)
    return binary.getvalue().decode()
