"""A process that appends to one context until it is killed: mortal.py CONTEXT NAME.

Writes a line of JSON for each batch before it is sent, and one for its acknowledgement.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from uuid import UUID

from pgcontext import ContextStore


async def write(context_id: UUID, name: str) -> None:
    async with ContextStore.from_env() as store:
        for batch in itertools.count():
            contents = [f"{name}/{batch}/{part}" for part in range(1 + batch % 3)]
            print(json.dumps([contents, None]), flush=True)  # noqa: T201
            written = await store.append(
                context_id,
                [{"role": "user", "content": text, "token_count": 1} for text in contents],
            )
            print(json.dumps([contents, [m.version for m in written]]), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(write(UUID(sys.argv[1]), sys.argv[2]))
