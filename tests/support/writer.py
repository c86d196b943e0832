"""A process of its own that appends to one context: python writer.py CONTEXT NAME BATCHES.

Prints a line of JSON for each batch that was acknowledged: its versions and contents.
"""

import asyncio
import json
import sys
from uuid import UUID

from pgcontext import ContextStore


async def write(context_id: UUID, name: str, batches: int) -> None:
    async with ContextStore.from_env() as store:
        for batch in range(batches):
            size = 2 + batch % 2
            written = await store.append(
                context_id,
                [
                    {"role": "user", "content": f"{name}/{batch}/{i}/{size}", "token_count": i}
                    for i in range(size)
                ],
            )
            print(json.dumps([(m.version, m.content) for m in written]), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(write(UUID(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
