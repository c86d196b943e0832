"""Plays the transcripts of a page, and compares what is printed with what the page says."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.cli import Result

BLOCK: Final = re.compile(r"(?ms)^```console\n(.*?)^```$")
# A UUID, or the end of one that tables show. Ids of forks are new in each run.
ID: Final = re.compile(r"\b(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=\w*\d)[0-9a-f]{8})\b")
# What differs from run to run, or from server to server.
VARYING: Final = (
    (re.compile(r"in [\d.,]+ s( \([\d,]+ a second\))?"), "in some time"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "some time"),
    (re.compile(r'"((?:server|pgvector)_version|dimensions|url|revision|head)": .*'), r"\1 is it"),
    (re.compile(r"from revision none to \d+"), "to some revision"),
    (re.compile(r'"(distance|text_score|score)": [\d.]+'), r'"\1": something'),
    (re.compile(r"--cursor \S+"), "--cursor something"),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
)


class Step(NamedTuple):
    """A command of a transcript, what the page says it prints, and what it printed."""

    command: str
    documented: str
    printed: str


def play(page: str, run: Callable[..., Result]) -> Iterator[Step]:
    """Run the commands of all console blocks in their order.

    Ids in the page stand for those that the commands before have made.
    """
    known: dict[str, str] = {}
    for command, documented in steps(page):
        arguments = [
            ID.sub(lambda found: known.get(found[0], found[0]), word)
            for word in shlex.split(command)
        ]
        result = run(*arguments[1:])
        printed = result.out + result.err
        for ours, theirs in zip(ID.findall(documented), ID.findall(printed), strict=False):
            known.setdefault(ours, theirs)
            known.setdefault(ours.replace("-", "")[-8:], theirs.replace("-", "")[-8:])
        renamed = ID.sub(lambda found: known.get(found[0], found[0]), documented)
        yield Step(command, steady(renamed), steady(printed))


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Yield each command of the page with what follows it in its block."""
    for block in BLOCK.findall(page):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            command, _, documented = part.partition("\n")
            yield command, documented


def steady(text: str) -> str:
    """Leave out what may differ."""
    for pattern, replacement in VARYING:
        text = pattern.sub(replacement, text)
    return text.strip("\n")
