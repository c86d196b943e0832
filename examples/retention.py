"""Delete, restore, expire, purge, erase: how conversations end.

    python examples/retention.py

Prints:
    hidden: ['My name is Ada.', 'Thank you.']
    restored: ['My name is Ada.', 'My number is 555 0100.', 'Thank you.']
    erased: ['My name is Ada.', 'Thank you.'], in the fork too: ['My name is Ada.']
    deleted: found no more, restored: 2 messages
    purged: 2 contexts and their messages, for good
"""

import asyncio
from datetime import UTC, datetime, timedelta

from pgcontext import ContextNotFoundError, ContextStore

# A tenant of its own, since purge looks at all that a tenant has deleted.
TENANT = "6f1d1f7e-4f6c-4a0e-9d53-6b8f2f0f3a12"


async def contents(store: ContextStore, context_id: object) -> list[str | None]:
    """Say what a context shows."""
    return [message.content for message in await store.history(str(context_id))]


async def main() -> None:
    """Walk one conversation through all that may happen to it."""
    async with ContextStore(tenant_id=TENANT) as store:
        chat = await store.create(name="hotline")
        words = ["My name is Ada.", "My number is 555 0100.", "Thank you."]
        await store.append(chat.id, [{"role": "user", "content": text} for text in words])
        fork = await store.fork(chat.id, at_version=2)

        # Hidden messages keep their versions, and come back when they are restored.
        await store.delete_messages(chat.id, [2])
        print("hidden:", await contents(store, chat.id))
        await store.restore_messages(chat.id, [2])
        print("restored:", await contents(store, chat.id))

        # The right to be forgotten: gone from the rows, from search and from every fork.
        await store.erase(chat.id, [2])
        print(
            f"erased: {await contents(store, chat.id)}, "
            f"in the fork too: {await contents(store, fork.id)}"
        )

        await store.delete(chat.id)
        try:
            await store.history(chat.id)
        except ContextNotFoundError:
            context = await store.restore(chat.id)
            print(f"deleted: found no more, restored: {context.message_count} messages")

        # What is deleted, or has expired, is removed when you say so: here at once, in a nightly
        # job after timedelta(days=30). What a live fork still shows is kept.
        await store.update(fork.id, expires_at=datetime.now(UTC) - timedelta(minutes=1))
        await store.delete(chat.id)
        report = await store.purge(older_than=timedelta(0))
        print(f"purged: {report.contexts} contexts and their messages, for good")


asyncio.run(main())
