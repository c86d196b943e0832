"""A process of its own in which many coroutines use every method: mixed_work.py NAME COUNT ROUNDS.

Each has contexts of its own, so it knows what every answer must be. Prints one line of JSON:
how many operations were done, and what was wrong with which.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pgcontext import ContextNotFoundError, ContextStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from uuid import UUID

    from pgcontext import Message

T = TypeVar("T")


class Worker:
    """Goes through the same story again and again, each time with words that nobody else uses."""

    def __init__(self, store: ContextStore, name: str) -> None:
        self.store = store
        self.name = name
        self.operations = 0
        self.wrong: list[str] = []

    async def work(self, rounds: int) -> None:
        for number in range(rounds):
            try:
                await self._story(f"{self.name}x{number}")
            except Exception as error:  # noqa: BLE001  (the test judges)
                self.wrong.append(f"{type(error).__name__}: {error}")

    async def _do(self, call: Awaitable[T]) -> T:
        self.operations += 1
        return await call

    def _same(self, actual: object, expected: object) -> None:
        if actual != expected:
            self.wrong.append(f"{actual} instead of {expected}")

    def _said(self, messages: Sequence[Message], *expected: tuple[int, str]) -> None:
        self._same([(m.version, m.content) for m in messages], list(expected))

    async def _story(self, word: str) -> None:
        """Some forty calls that end with the context gone from every view."""
        do, store = self._do, self.store
        root = (await do(store.create(name=word, metadata={"word": word}))).id
        self._same((await do(store.get(root))).name, word)
        one, two, three = [(n, f"{word} number {n}") for n in (1, 2, 3)]
        self._said(await do(store.append(root, [message(*one), message(*two)])), one, two)
        for again in (False, True):
            written = await do(store.append(root, message(*three), idempotency_key=word))
            self._said(written, three)
            self._same(written[0].replayed, again)
        await self._read(root, word, one, two, three)
        await self._fork(root, word, one, two, three)
        updated = await do(store.update(root, name="renamed", metadata={"word": word, "new": 1}))
        self._same((updated.name, updated.metadata), ("renamed", {"word": word, "new": 1}))
        listed = await do(store.list(metadata={"new": 1, "word": word}))
        self._same([context.id for context in listed.items], [root])
        self._said(await do(store.delete_messages(root, [2])), two)
        self._said((await do(store.history(root)))[:2], one, three)
        self._said(await do(store.restore_messages(root, [2])), two)
        await do(store.delete(root))
        try:
            await do(store.history(root))
            self._same("found", "not found")
        except ContextNotFoundError:
            pass
        self._same((await do(store.restore(root))).id, root)
        await self._embed(word)
        await do(store.purge(older_than=timedelta(days=1)))
        self._same((await do(store.erase(root))).messages, 4)

    async def _read(self, root: UUID, word: str, *said: tuple[int, str]) -> None:
        do, store = self._do, self.store
        self._said(await do(store.history(root)), *said)
        self._said(await do(store.history(root, after=1, limit=1)), said[1])
        self._said(await do(self._all(root)), *said)
        self._said((await do(store.window(root, max_tokens=2))).messages, *said[1:])
        for scope in (None, root):
            hits = await do(store.search(word, context_id=scope, mode="text"))
            self._same(sorted(hit.message.content or "" for hit in hits), [m[1] for m in said])
            hits = await do(store.search(word, context_id=scope, mode="hybrid", neighbors=1))
            both = [hit.message.content or "" for hit in hits if "text" in hit.found_by]
            self._same(sorted(both), [m[1] for m in said])
        hits = await do(store.search(vector(said[1][0]), context_id=root, limit=1))
        self._said([hit.message for hit in hits], said[1])
        self._same(len(await do(store.search(vector(1), limit=1))), 1)

    async def _fork(self, root: UUID, word: str, *said: tuple[int, str]) -> None:
        do, store = self._do, self.store
        fork = (await do(store.fork(root, at_version=2, name=word))).id
        mine = (3, f"{word} forked")
        self._said(await do(store.append(fork, message(*mine))), mine)
        self._said(await do(store.history(fork)), *said[:2], mine)
        self._same([c.id for c in await do(store.lineage(fork))], [root, fork])
        self._same([c.id for c in await do(store.forks(root))], [fork])
        diff = await do(store.diff(root, fork))
        self._same((diff.ancestor_id, diff.version), (root, 2))
        self._said([*diff.only_a, *diff.only_b], said[2], mine)
        self._said(await do(store.merge(fork, into=root, rebase=True)), (4, mine[1]))

    async def _embed(self, word: str) -> None:
        do, store = self._do, self.store
        context_id = (await do(store.create(name=word))).id
        later = {"role": "user", "content": f"{word} later", "token_count": 1}
        written = await do(store.append(context_id, later, embed="later"))
        self._same([message.embedding_pending for message in written], [True])
        await do(store.embed_pending())
        self._same((await do(store.erase(context_id))).messages, 1)

    async def _all(self, context_id: UUID) -> list[Message]:
        return [message async for message in self.store.iter_history(context_id, page_size=2)]


class Numbers:
    """An embedder to which all texts are one."""

    model = "numbers"

    async def embed(self, texts: list[str]) -> list[list[float]]:
        return [vector(1) for _ in texts]


def message(version: int, content: str) -> dict[str, Any]:
    embedded = {"embedding": vector(version), "embedding_model": Numbers.model}
    return {"role": "user", "content": content, "token_count": 1, **embedded}


def vector(number: int) -> list[float]:
    return [float(place == number) + 0.01 for place in range(8)]


async def main(name: str, count: int, rounds: int) -> None:
    async with ContextStore.from_env(acquire_seconds=60, embedder=Numbers()) as store:
        workers = [Worker(store, f"{name}q{number}") for number in range(count)]
        await asyncio.gather(*(worker.work(rounds) for worker in workers))
    wrong = [sentence for worker in workers for sentence in worker.wrong]
    operations = sum(worker.operations for worker in workers)
    print(json.dumps({"operations": operations, "wrong": wrong}))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
