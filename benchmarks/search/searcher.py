"""A client of its own, to see what it takes: its memory before and after, and its server's."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from pgcontext import ContextStore
from pgcontext.settings import Settings

SEARCHES = 200


def kilobytes(process: int | str, name: str) -> int:
    """Return what the system says of a process's memory."""
    status = Path(f"/proc/{process}/status").read_text("utf-8")
    return int(re.findall(rf"(?m)^{name}:\s+(\d+) kB", status)[0])


async def main() -> None:
    """Search, and print three numbers of kilobytes."""
    imported = kilobytes("self", "VmRSS")
    query = [float(number) for number in sys.argv[1].split()]
    settings = Settings.from_env(dimensions=len(query))
    async with ContextStore(settings=settings) as store:
        for _ in range(SEARCHES):
            await store.search(query, mode="vector")
        print(imported, kilobytes("self", "VmHWM"), of_server())


def of_server() -> int:
    """Return what the server process of this database has for itself, the largest if many."""
    processes = (path for path in Path("/proc").iterdir() if path.name.isdigit())
    return max(kilobytes(path.name, "RssAnon") for path in processes if is_server_of_ours(path))


def is_server_of_ours(process: Path) -> bool:
    """Whether it is a server process, of this database, with a client."""
    database = os.environ["DATABASE_URL"].partition("?")[0].rpartition("/")[2]
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False  # gone meanwhile
    return command.startswith(b"postgres: ") and f" {database} ".encode() in command


if __name__ == "__main__":
    asyncio.run(main())
