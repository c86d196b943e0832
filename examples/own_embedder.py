"""Search by meaning with an embedder of your own, here a function; now, or later by a job.

    python examples/own_embedder.py

Prints:
    The tide is high at noon. <- high tide
    owed: True
    filled in: 1
    Butter the bread first. <- bread and butter
"""

import asyncio
import zlib

from pgcontext import CallableEmbedder, ContextStore, Settings

DIMENSIONS = Settings.from_env().dimensions


def encode(texts: list[str]) -> list[list[float]]:
    """Stand in for a model: texts are alike that share words."""
    vectors = [[0.01] * DIMENSIONS for _ in texts]
    for vector, text in zip(vectors, texts, strict=True):
        for word in text.lower().strip(".").split():
            vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return vectors


async def main() -> None:
    """Append and search; then once more, with the embedding made by another hand."""
    async with ContextStore(embedder=CallableEmbedder("shared-words", encode)) as store:
        chat = await store.create(name="Harbour")

        async def find(words: str) -> None:
            hits = await store.search(words, context_id=chat.id, mode="vector", limit=1)
            print(hits[0].message.content, "<-", words)

        tide = {"role": "user", "content": "The tide is high at noon."}
        ferry = {"role": "user", "content": "The ferry sails."}
        await store.append(chat.id, [tide, ferry])
        await find("high tide")

        butter = {"role": "user", "content": "Butter the bread first."}
        [later] = await store.append(chat.id, butter, embed="later")
        print("owed:", later.embedding_pending)
        # What `pgcontext embed` and the scheduled job do. They use the embedder of the settings.
        print("filled in:", await store.embed_pending())
        await find("bread and butter")


asyncio.run(main())
