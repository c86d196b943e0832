"""The transcripts of docs/cli.md, run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.cli import SAMPLE, Cli, Result
from tests.support.transcripts import play, steps

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_transcripts_of_the_page_are_true(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each command prints what the page says, but for ids of forks, times and versions."""
    shutil.copy(SAMPLE, tmp_path / "conversations.jsonl")
    monkeypatch.chdir(tmp_path)
    cli = Cli(monkeypatch, empty_database_url)
    played = list(play(PAGE.read_text("utf-8"), cli))
    assert len(played) >= 15
    for command, documented, printed in played:
        assert printed == documented, command


FORKED = """
```console
$ pgcontext fork x
Into 0badc0de.
$ pgcontext show 0badc0de
This is 0badc0de, 2 messages.
```
"""


@pytest.mark.parametrize(
    ("printed", "true"),
    [
        (["Into 5eedf00d.", "This is 5eedf00d, 2 messages."], True),
        (["Into 5eedf00d.", "This is 5eedf00d, 3 messages."], False),
        (["Into 5eedf00d.", "This is 0ddba115, 2 messages."], False),
        (["Into 5eedf00d.", ""], False),
    ],
)
def test_a_transcript_that_is_wrong_is_noticed(printed: list[str], *, true: bool) -> None:
    """Another number, another id, nothing at all: the comparison sees each."""
    ran: list[tuple[str, ...]] = []

    def run(*arguments: str) -> Result:
        ran.append(arguments)
        return Result(0, printed[len(ran) - 1] + "\n", "")

    played = list(play(FORKED, run))
    assert ran == [("fork", "x"), ("show", "5eedf00d")]
    assert all(step.documented == step.printed for step in played) is true


def test_every_command_line_of_the_page_is_ours() -> None:
    """Blocks hold the pgcontext command alone: nothing that a test would have to skip."""
    assert {command.split()[0] for command, _ in steps(PAGE.read_text("utf-8"))} == {"pgcontext"}
