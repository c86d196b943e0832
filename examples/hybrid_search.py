"""Find messages by words and by meaning together, with what was said around them.

    python examples/hybrid_search.py

The model here knows three topics and nothing else, so that the example runs without a network or
a key. With the embedded PostgreSQL a small model is there without a line of this; for a server's
see docs/embeddings.md.

Prints:
    by words: nothing
    by both:
        user: My bicycle came with one pedal.
      > assistant: I can refund 60 euros.
        user: Fine, do that.
      found by vector
    by both, with an order's number:
      > user: The order is VN-20931, by the way.
      found by vector and text
"""

import asyncio

from pgcontext import CallableEmbedder, ContextStore, Hit, Settings

DIMENSIONS = Settings.from_env().dimensions
TOPICS = (
    {"refund", "euros", "money", "pay"},
    {"bicycle", "bike", "pedal", "wheel"},
    {"order", "number", "by", "way"},
)


def encode(texts: list[str]) -> list[list[float]]:
    """Stand in for a model: texts are alike that are about the same topics."""
    vectors = [[0.01] * DIMENSIONS for _ in texts]  # never all zeros: that has no direction
    for vector, text in zip(vectors, texts, strict=True):
        words = set(text.lower().replace(".", " ").split())
        for axis, topic in enumerate(TOPICS):
            vector[axis] += len(words & topic)
    return vectors


async def main() -> None:
    """Ask in words that nobody used, then by something that has no meaning at all."""
    async with ContextStore(embedder=CallableEmbedder("topics", encode)) as store:
        chat = await store.create(name="One pedal")
        await store.append(
            chat.id,
            [
                {"role": "user", "content": "My bicycle came with one pedal."},
                {"role": "assistant", "content": "I can refund 60 euros."},
                {"role": "user", "content": "Fine, do that."},
                {"role": "assistant", "content": "Done. Enjoy your ride."},
                {"role": "user", "content": "The order is VN-20931, by the way."},
            ],
        )
        query = "Did we pay them their money back?"
        hits = await store.search(query, context_id=chat.id, mode="text")
        print("by words:", [hit.message.content for hit in hits] or "nothing")

        # mode="hybrid" is what is done anyway where there is an embedder.
        [hit] = await store.search(query, context_id=chat.id, limit=1, neighbors=1)
        print("by both:")
        show(hit)
        [hit] = await store.search("VN-20931", context_id=chat.id, mode="hybrid", limit=1)
        print("by both, with an order's number:")
        show(hit)


def show(hit: Hit) -> None:
    """Print a hit among its neighbors, and what found it."""
    for message in sorted([*hit.neighbors, hit.message], key=lambda message: message.version):
        mark = ">" if message.id == hit.message.id else " "
        print(f"  {mark} {message.role}: {message.content}")
    print("  found by", " and ".join(hit.found_by))


asyncio.run(main())
