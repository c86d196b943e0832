"""Hands events to the Lambda function's handler: `with_function.py EVENT EVENT [REQUESTS]`.

The events are JSON of requests over HTTP, answered in turn: each once, or REQUESTS in all. Then
the memory of the process is printed as it was after a tenth of them and at the end, in bytes, where
the system tells it.
"""

import json
import sys
from pathlib import Path

from handlers.aws_lambda import handler

PAGE_BYTES = 4096  # of every Linux that Lambda has
STATISTICS = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return the memory that the process holds; 0 where the system doesn't tell."""
    return int(STATISTICS.read_text().split()[1]) * PAGE_BYTES if STATISTICS.exists() else 0


def main(first: str, second: str, requests: int = 2) -> None:
    """Answer the events, and end as an environment does that is told to."""
    events = (json.loads(first), json.loads(second))
    early = 0
    for number in range(requests):
        answer = handler(events[number % 2])
        assert answer["statusCode"] < 300, answer  # noqa: PLR2004 (all that is well)
        if number == requests // 10:
            early = resident_bytes()
    if requests > len(events):
        sys.stdout.write(f"{early} {resident_bytes()}\n")
    handler.close()


main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
