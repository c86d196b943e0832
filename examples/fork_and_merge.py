"""Try two ways at once, compare them, and keep one.

    python examples/fork_and_merge.py

Prints:
    both start from version 2, and no message was copied
    formal adds: ['Dear Sir or Madam, we regret the delay.']
    friendly adds: ['Sorry about the wait!', 'Here is a voucher.']
    kept: ['Write to the customer.', 'Which tone?', 'Sorry about the wait!', 'Here is a voucher.']
    the other way is a conflict now: the context is at version 4, not at 2
    draft
    ├── formal
    └── friendly
"""

import asyncio

from pgcontext import ContextStore, VersionConflictError


async def main() -> None:
    """Fork a draft, go on in both forks, merge one of them back."""
    async with ContextStore() as store:
        draft = await store.create(name="draft")
        await store.append(
            draft.id,
            [
                {"role": "user", "content": "Write to the customer."},
                {"role": "assistant", "content": "Which tone?"},
            ],
        )
        formal = await store.fork(draft.id, name="formal")
        friendly = await store.fork(draft.id, name="friendly")
        await store.append(
            formal.id, {"role": "assistant", "content": "Dear Sir or Madam, we regret the delay."}
        )
        await store.append(
            friendly.id,
            [
                {"role": "assistant", "content": "Sorry about the wait!"},
                {"role": "assistant", "content": "Here is a voucher."},
            ],
        )

        diff = await store.diff(formal.id, friendly.id)
        print(f"both start from version {diff.version}, and no message was copied")
        print("formal adds:", [message.content for message in diff.only_a])
        print("friendly adds:", [message.content for message in diff.only_b])

        await store.merge(friendly.id, into=draft.id)
        print("kept:", [message.content for message in await store.history(draft.id)])

        # The draft has moved on, so merging the other way asks for a decision: rebase=True would
        # append it behind.
        try:
            await store.merge(formal.id, into=draft.id)
        except VersionConflictError as error:
            print(
                f"the other way is a conflict now: the context is at version {error.actual}, "
                f"not at {error.expected}"
            )

        print(draft.name)
        forks = sorted(await store.forks(draft.id), key=lambda fork: fork.created_at)
        for fork in forks:
            print("└──" if fork is forks[-1] else "├──", fork.name)


asyncio.run(main())
