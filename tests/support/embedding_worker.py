"""A process of its own that embeds: embedding_worker.py embed|move MODEL SECONDS [CLAIM_SECONDS].

Five messages at a time, each call as long as told. Prints the texts of each call before it.
"""

from __future__ import annotations

import asyncio
import json
import sys

from pgcontext import ContextStore, limits
from pgcontext.moving import Moving
from tests.support.embedders import Words


class Telling(Words):
    async def embed(self, texts: list[str]) -> list[list[float]]:
        print(json.dumps(texts), flush=True)  # noqa: T201
        return await super().embed(texts)


async def main(task: str, model: str, seconds: float, claim_seconds: float = 300.0) -> None:
    limits.EMBED_BATCH_MESSAGES_MAX = 5  # type: ignore[misc]
    embedder = Telling(model, seconds=seconds)
    async with ContextStore.from_env(embedder=embedder, claim_seconds=claim_seconds) as store:
        if task == "move":
            await Moving.of(store).run()
        else:
            while await store.embed_pending():
                pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
