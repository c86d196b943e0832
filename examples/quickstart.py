"""Append, search, fork, window: the first program of the README.

    python examples/quickstart.py

Prints:
    {'role': 'user', 'content': 'A flight to Lisbon on Friday, please.'}
    {'role': 'assistant', 'content': 'Would a train do as well?'}
"""

import asyncio

from pgcontext import ContextStore


async def main() -> None:
    """Hold a conversation, then try another way from its first message."""
    async with ContextStore() as store:
        chat = await store.create(name="Lisbon")
        await store.append(
            chat.id,
            [
                {"role": "user", "content": "A flight to Lisbon on Friday, please."},
                {"role": "assistant", "content": "There is one at 9:40 for 120 euros."},
            ],
        )
        [hit] = await store.search("flights to Lisbon", context_id=chat.id, limit=1)
        fork = await store.fork(chat.id, at_version=hit.message.version)
        await store.append(fork.id, {"role": "assistant", "content": "Would a train do as well?"})
        window = await store.window(fork.id, max_tokens=8_000)
        print(*[message.as_dict() for message in window.messages], sep="\n")


asyncio.run(main())
