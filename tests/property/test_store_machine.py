"""The store on a real PostgreSQL, held after every step against a model of eighty lines.

`PGCONTEXT_PROPERTY_STEPS=20000` walks further, on other paths each time; a failure prints how to
walk the same path again.
"""

from __future__ import annotations

import ast
import asyncio
import faulthandler
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tests.support.model
from pgcontext import (
    ContextStore,
    ContextStoreError,
    IdempotencyConflictError,
    LimitExceededError,
    VersionConflictError,
)
from tests.support import DIMENSIONS
from tests.support.embedders import Constant, with_embedder
from tests.support.model import Chat, Key, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from pgcontext import Context, Hit, Message

STEPS_ENOUGH: Final = 2_000
STEPS: Final = int(os.environ.get("PGCONTEXT_PROPERTY_STEPS", str(STEPS_ENOUGH)))
STEPS_PER_EXAMPLE: Final = 60
LIVING_MAX: Final = 6  # of each tenant: after each step all of them are read
CONTEXTS_MAX: Final = 12
MODEL_LINES_MAX: Final = 80
# What a walk has to have done, and to have been refused, or it has proven little.
METHODS: Final = (
    *("append", "fork", "merge", "delete", "restore", "delete_messages", "restore_messages"),
    "erase",
)
EMBEDDING_MODEL: Final = "drawn"
WORDS: Final = ("amber", "birch", "cobalt", "dune", "ember", "falcon")
STORE_FIELDS: Final = {"token_count", "embedding"}  # what a mapping tells the store, not the reader

# What happens is drawn as plain numbers and related to what exists when the rule runs.
sides = st.integers(0, 1)
picks = st.integers(0, 2**16)
texts = st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)
tokens = st.integers(0, 9)
embeddings = st.none() | st.lists(
    st.integers(-3, 3), min_size=DIMENSIONS, max_size=DIMENSIONS
).filter(any)
calls = st.sampled_from(("call_0", "call_1", "call_2"))


@st.composite
def plain_messages(draw: st.DrawFn) -> list[dict[str, Any]]:
    role = draw(st.sampled_from(("user", "user", "assistant", "system", "developer")))
    mapping = {"role": role, "content": draw(texts), "token_count": draw(tokens)}
    embedding = draw(embeddings)
    return [mapping | ({} if embedding is None else {"embedding": embedding})]


@st.composite
def tool_rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """An assistant's calls and most of the results, in any order, now and then one too many."""
    called = draw(st.lists(calls, min_size=1, max_size=2, unique=True))
    answered = draw(st.permutations(called))[draw(st.sampled_from((0, 0, 0, 1))) :]
    functions = [
        {"id": call, "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        for call in called
    ]
    asked = {
        "role": "assistant",
        "content": None,
        "tool_calls": functions,
        "token_count": draw(tokens),
    }
    results = [
        {
            "role": "tool",
            "tool_call_id": call,
            "name": "look_up",
            "content": draw(texts),
            "token_count": draw(tokens),
        }
        for call in answered
    ]
    return [asked, *results]


batches = st.lists(plain_messages() | plain_messages() | tool_rounds(), min_size=1, max_size=3).map(
    lambda turns: [message for turn in turns for message in turn]
)


@dataclass
class Side:
    """One tenant: its store, its model, and what was seen of it so far."""

    store: ContextStore
    model: Model = field(default_factory=Model)
    gone: list[UUID] = field(default_factory=list)  # purged
    revisions: dict[UUID, int] = field(default_factory=dict)
    message_ids: dict[Key, UUID] = field(default_factory=dict)
    keyed: list[tuple[UUID, str, list[dict[str, Any]], list[Message]]] = field(default_factory=list)

    def living(self) -> list[UUID]:
        return [context_id for context_id, chat in self.model.items() if not chat.deleted]

    def full(self) -> bool:
        return len(self.living()) >= LIVING_MAX or len(self.model) >= CONTEXTS_MAX

    def pick(self, number: int) -> UUID:
        """Pick a context: mostly a living one, now and then one that is deleted or not there."""
        deleted = [context_id for context_id, chat in self.model.items() if chat.deleted]
        others = [*deleted, *self.gone[-1:], uuid4()]
        among = others if number % 16 == 15 else self.living()
        return among[number // 16 % len(among)]

    def pick_last(self, number: int) -> UUID:
        """Pick a context that is about to go: a living one only while there are others."""
        return self.pick(number if len(self.living()) > 2 else number | 15)

    def relative(self, context_id: UUID, number: int) -> UUID:
        """Pick a context, mostly of the family of `context_id`."""
        chats = self.model
        if context_id not in chats or number % 8 == 7:
            return self.pick(number // 8)
        root = chats[context_id].lineage[0]
        family = [other for other, chat in chats.items() if chat.lineage[0] == root]
        return family[number // 8 % len(family)]

    def versions(self, context_id: UUID, numbers: Iterable[int]) -> list[int]:
        """Pick versions: mostly of messages that are there, hidden or not."""
        chat = self.model.get(context_id, Chat([]))
        there = [version for version, _ in self.known(context_id)]
        return [
            there[number // 16 % len(there)]
            if there and number % 16 != 15
            else number % (chat.latest + 2) + 1
            for number in numbers
        ]

    def known(self, context_id: UUID) -> list[Key]:
        """Return what a view holds, hidden or not."""
        chat = self.model.get(context_id, Chat([]))
        return sorted(key for key in chat.view if key in self.model.said)

    def shown(self, context_id: UUID) -> list[Key]:
        """What the head of a context shows, also of a deleted one."""
        view = self.model[context_id].view.items()
        return sorted(key for key, shown in view if shown and key in self.model.said)

    def said(self, keys: Iterable[Key]) -> list[tuple[int, UUID, dict[str, Any], int]]:
        """What the model expects to read, in the form of `read`."""
        return [
            (*key, bare(self.model.said[key]), self.model.said[key]["token_count"]) for key in keys
        ]

    def read(self, messages: Iterable[Message]) -> list[tuple[int, UUID, dict[str, Any], int]]:
        """What was read, without what only the store can know; a message's id never changes."""
        found = list(messages)
        for message in found:
            key = message.version, message.context_id
            assert self.message_ids.setdefault(key, message.id) == message.id
        return [(m.version, m.context_id, m.as_dict(), m.token_count) for m in found]


def bare(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in STORE_FIELDS}


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def words(mapping: dict[str, Any]) -> set[str]:
    return set((mapping["content"] or "").split())


class StoreMachine(RuleBasedStateMachine):
    """Two tenants of one database, every method, and a model of each tenant."""

    steps: ClassVar[int] = 0  # of all examples together
    outcomes: ClassVar[Counter[tuple[str, str]]] = Counter()  # by method, of those that can refuse

    runner: ClassVar[asyncio.Runner]
    root: ClassVar[ContextStore]

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.sides: list[Side] = []

    # -- what happens ---------------------------------------------------------------------------

    @initialize()
    def two_tenants(self) -> None:
        self.sides = [Side(self.root.for_tenant(uuid4())) for _ in range(2)]
        for side in self.sides:
            self.step(side, self._create, [{"role": "user", "content": "amber", "token_count": 1}])

    @rule(side=sides, batch=batches)
    def create(self, side: int, batch: list[dict[str, Any]]) -> None:
        self.step(self.sides[side], self._create, batch)

    async def _create(self, side: Side, batch: list[dict[str, Any]]) -> None:
        if side.full():
            await self._purge(side)
            return
        context = await side.store.create(name="a talk", metadata={"serial": self.serial})
        side.model[context.id] = Chat([context.id])
        await self._append(side, context.id, batch, None)

    @rule(side=sides, pick=picks, batch=batches, key=st.none() | st.sampled_from("kl"))
    def append(self, side: int, pick: int, batch: list[dict[str, Any]], key: str | None) -> None:
        self.step(self.sides[side], self._append, self.sides[side].pick(pick), batch, key)

    async def _append(
        self, side: Side, context_id: UUID, batch: list[dict[str, Any]], key: str | None
    ) -> None:
        numbered = [self.number(mapping) for mapping in batch]
        if any(context_id == used_id and key == used for used_id, used, _, _ in side.keyed):
            key = None
        call = side.store.append(context_id, numbered, idempotency_key=key)
        written = await self.agree(
            side, context_id, lambda: side.model.append(context_id, numbered), call
        )
        if written is not None:
            first = side.model[context_id].latest - len(numbered)
            assert written == await side.store.history(context_id, after=first)
            if key is not None:
                side.keyed.append((context_id, key, numbered, written))

    @rule(side=sides, pick=picks, off=st.integers(-1, 1), batch=batches)
    def append_at_a_version(
        self, side: int, pick: int, off: int, batch: list[dict[str, Any]]
    ) -> None:
        self.step(self.sides[side], self._append_at, self.sides[side].pick(pick), off, batch)

    async def _append_at(
        self, side: Side, context_id: UUID, off: int, batch: list[dict[str, Any]]
    ) -> None:
        latest = side.model.get(context_id, Chat([])).latest
        expected = max(0, latest + off)

        def append() -> None:
            side.model.find(context_id)
            if expected != latest:
                raise VersionConflictError(expected, latest)
            side.model.append(context_id, batch)

        call = side.store.append(context_id, batch, expected_version=expected)
        await self.agree(side, context_id, append, call)

    @precondition(lambda self: any(side.keyed for side in self.sides))
    @rule(pick=picks, same=st.booleans())
    def append_again_with_the_same_key(self, pick: int, same: bool) -> None:
        among = [side for side in self.sides if side.keyed]
        self.step(among[pick % len(among)], self._append_again, pick // 2, same)

    async def _append_again(self, side: Side, pick: int, same: bool) -> None:
        context_id, key, batch, written = side.keyed[pick % len(side.keyed)]
        if any((m.version, context_id) not in side.model.said for m in written):
            return  # purged or erased: another test says what then
        if same:
            call = side.store.append(context_id, batch, idempotency_key=key)
            again = await self.agree(side, context_id, lambda: side.model.find(context_id), call)
            assert again is None or side.read(again) == side.read(written)
            assert again is None or all(message.replayed for message in again)
        else:

            def conflict() -> None:
                side.model.find(context_id)
                raise IdempotencyConflictError("other messages")

            other = [self.number(mapping) for mapping in batch]
            await self.agree(
                side,
                context_id,
                conflict,
                side.store.append(context_id, other, idempotency_key=key),
            )

    @rule(side=sides, pick=picks, at=picks)
    def fork(self, side: int, pick: int, at: int) -> None:
        self.step(self.sides[side], self._fork, self.sides[side].pick(pick), at)

    async def _fork(self, side: Side, context_id: UUID, number: int) -> None:
        if side.full():
            await self._purge(side)
            return
        latest = side.model.get(context_id, Chat([])).latest
        at = (
            latest if number % 4 == 0 else number // 4 % (latest + 2)
        )  # now and then beyond the end
        new = uuid4()
        call = side.store.fork(
            context_id, at_version=None if number % 8 == 0 else at, id=new, name="a fork"
        )
        forked = await self.agree(
            side, context_id, lambda: side.model.fork(context_id, new, at), call
        )
        if forked is not None:
            assert (forked.parent_id, forked.fork_version) == (context_id, at)
            assert forked.fork_revision == side.revisions[context_id]

    @rule(side=sides, pick=picks, numbers=st.lists(picks, min_size=1, max_size=4))
    def delete_messages(self, side: int, pick: int, numbers: list[int]) -> None:
        self.step(self.sides[side], self._hide, self.sides[side].pick(pick), numbers, shown=False)

    @rule(side=sides, pick=picks, numbers=st.lists(picks, min_size=1, max_size=4))
    def restore_messages(self, side: int, pick: int, numbers: list[int]) -> None:
        self.step(self.sides[side], self._hide, self.sides[side].pick(pick), numbers, shown=True)

    async def _hide(self, side: Side, context_id: UUID, numbers: list[int], *, shown: bool) -> None:
        versions = side.versions(context_id, numbers)

        def hide() -> None:
            for key in side.model.find(context_id, versions):
                side.model[context_id].view[key] = shown

        method = side.store.restore_messages if shown else side.store.delete_messages
        changed = await self.agree(side, context_id, hide, method(context_id, versions))
        for message in changed or ():
            assert message.version in versions
            assert (message.deleted_at is None) == shown
        if numbers[0] % 2:  # a fork at the very revision of the change
            await self._fork(side, context_id, 0)

    @rule(side=sides, pick=picks)
    def delete(self, side: int, pick: int) -> None:
        self.step(self.sides[side], self._delete, self.sides[side].pick_last(pick))

    async def _delete(self, side: Side, context_id: UUID) -> None:
        def delete() -> None:
            side.model.find(context_id)
            side.model[context_id].deleted = True

        deleted = await self.agree(side, context_id, delete, side.store.delete(context_id))
        assert deleted is None or deleted.deleted_at is not None

    @rule(side=sides, pick=picks)
    def restore(self, side: int, pick: int) -> None:
        deleted = [x for x, chat in self.sides[side].model.items() if chat.deleted]
        some = pick % 8 == 7 or not deleted
        context_id = self.sides[side].pick(pick) if some else deleted[pick // 8 % len(deleted)]
        self.step(self.sides[side], self._restore, context_id)

    async def _restore(self, side: Side, context_id: UUID) -> None:
        def restore() -> None:
            side.model.find(context_id, deleted=True)
            side.model[context_id].deleted = False

        restored = await self.agree(side, context_id, restore, side.store.restore(context_id))
        assert restored is None or restored.deleted_at is None

    @rule(side=sides, pick=picks, other=picks, rebase=st.booleans())
    def merge(self, side: int, pick: int, other: int, rebase: bool) -> None:
        source = self.sides[side].pick(pick)
        into = self.sides[side].relative(source, other)
        self.step(self.sides[side], self._merge, source, into, rebase)

    async def _merge(self, side: Side, source: UUID, into: UUID, rebase: bool) -> None:
        first = side.model.get(into, Chat([])).latest
        call = side.store.merge(source, into=into, rebase=rebase)
        written = await self.agree(
            side, into, lambda: side.model.merge(source, into, rebase=rebase), call
        )
        if written is not None:
            added = side.model.history(into)
            assert side.read(written) == side.said(key for key in added if key[0] > first)

    @rule(side=sides)
    def purge(self, side: int) -> None:
        self.step(self.sides[side], self._purge)

    async def _purge(self, side: Side) -> None:
        before = list(side.model)
        said = len(side.model.said)
        side.model.purge()
        report = await side.store.purge(older_than=timedelta(0))
        side.gone += [context_id for context_id in before if context_id not in side.model]
        assert report.contexts == len(before) - len(side.model)
        assert report.messages >= said - len(side.model.said)  # emptied stubs go too

    @rule(side=sides, pick=picks, numbers=st.lists(picks, min_size=1, max_size=3))
    def erase_messages(self, side: int, pick: int, numbers: list[int]) -> None:
        self.step(self.sides[side], self._erase, self.sides[side].pick(pick), numbers)

    @rule(side=sides, pick=picks)
    def erase_everything(self, side: int, pick: int) -> None:
        self.step(self.sides[side], self._erase, self.sides[side].pick_last(pick), [])

    async def _erase(self, side: Side, context_id: UUID, numbers: list[int]) -> None:
        # What was erased before may be erased again; the model no longer knows of it.
        latest = side.model.get(context_id, Chat([])).latest
        known = {version for version, _ in side.known(context_id)}
        versions = [v for v in side.versions(context_id, numbers) if v in known or v > latest]
        if numbers and not versions:
            return
        said = set(side.model.said)
        before = {other: set(side.shown(other)) for other in side.model}
        report = await self.agree(
            side,
            None,
            lambda: side.model.erase(context_id, versions),
            side.store.erase(context_id, versions or None),
        )
        if report is not None:
            gone = said - side.model.said.keys()
            assert report.messages == len(gone)
            assert report.contexts == sum(bool(shown & gone) for shown in before.values())

    # -- what is held against the model ------------------------------------------------------------

    def step(
        self, side: Side, what: Callable[..., Coroutine[Any, Any, None]], *args: Any, **more: Any
    ) -> None:
        """Do one thing, then hold everything against the model."""
        type(self).steps += 1
        self.serial += 1

        async def walk() -> None:
            await what(side, *args, **more)
            chance = random.Random(self.serial)
            for one in self.sides:
                await self.check(one, chance)

        self.runner.run(walk())

    def number(self, mapping: dict[str, Any]) -> dict[str, Any]:
        """Give a message a content of its own."""
        self.serial += 1
        return mapping | {"serial": self.serial}

    async def agree(
        self,
        side: Side,
        context_id: UUID | None,
        expect: Callable[[], Any],
        call: Coroutine[Any, Any, Any],
    ) -> Any:
        """Let the model and the store do the same; return what the store says, None if it refuses.

        Both refuse for the same reason, or neither does. Its revision grows
        just when what it shows changed.
        """
        revision = side.revisions.get(context_id) if context_id is not None else None
        before = (
            side.shown(context_id) if context_id in side.model and context_id is not None else []
        )
        refusal: ContextStoreError | None = None
        try:
            expect()
        except ContextStoreError as error:
            refusal = error
        result = None
        method = str(getattr(call, "__name__", "?"))
        self.outcomes[method, "refused" if refusal else "done"] += 1
        if refusal is None:
            result = await call
        else:
            with pytest.raises(type(refusal)) as raised:
                await call
            if isinstance(refusal, VersionConflictError):
                conflict = cast("VersionConflictError", raised.value)
                assert (conflict.expected, conflict.actual) == (refusal.expected, refusal.actual)
        if context_id is not None and revision is not None and context_id in side.model:
            context = await side.store.get(context_id, include_deleted=True)
            assert (context.revision > revision) or side.shown(context_id) == before
            side.revisions[context_id] = context.revision
        return result

    async def check(self, side: Side, chance: random.Random) -> None:
        """Hold every context of a tenant against the model, and two of them from all sides."""
        page = await side.store.list(limit=200, include_deleted=True)
        assert [context.id for context in page.items] == list(reversed(side.model))
        for context in page.items:
            self.check_context(side, context)
        living = side.living()
        shown = await side.store.list()
        assert [context.id for context in shown.items] == list(reversed(living))
        views = await asyncio.gather(*(self.view(side, context_id) for context_id in living))
        for context_id, view in zip(living, views, strict=True):
            assert view == side.said(side.model.history(context_id))
        for context_id in chance.sample(living, min(2, len(living))):
            other = chance.choice(living)
            await asyncio.gather(
                self.check_history(side, context_id, chance),
                self.check_window(side, context_id, chance),
                self.check_family(side, context_id),
                self.check_diff(side, context_id, other),
                self.check_text_search(side, context_id, chance),
                self.check_vector_search(side, context_id, chance),
                self.check_hybrid_search(side, context_id, chance),
            )
        await self.check_tenant_search(side, chance)

    def check_context(self, side: Side, context: Context) -> None:
        chat = side.model[context.id]
        shown = side.shown(context.id)
        assert (context.deleted_at is not None) == chat.deleted
        assert context.latest_version == chat.latest
        assert context.message_count == len(shown)
        assert context.total_tokens == sum(side.model.said[key]["token_count"] for key in shown)
        assert ([context.parent_id] if context.parent_id else []) == chat.lineage[-2:-1]
        assert (context.fork_version or 0) == chat.fork_version
        assert context.revision >= side.revisions.get(context.id, 0)
        side.revisions[context.id] = context.revision

    async def view(
        self, side: Side, context_id: UUID
    ) -> list[tuple[int, UUID, dict[str, Any], int]]:
        return side.read([message async for message in side.store.iter_history(context_id)])

    async def check_history(self, side: Side, context_id: UUID, chance: random.Random) -> None:
        """Any cut through the view, hidden messages included or not, in pages of any size."""
        latest = side.model[context_id].latest
        at, before, after = (chance.choice([None, chance.randint(0, latest + 1)]) for _ in range(3))
        roles = chance.choice([None, ["user"], ["assistant", "tool"]])
        hidden, limit = chance.random() < 0.5, chance.randint(1, 9)
        cut = [
            key
            for key in (side.known(context_id) if hidden else side.model.history(context_id))
            if (at is None or key[0] <= at)
            and (before is None or key[0] < before)
            and (after is None or key[0] > after)
            and (roles is None or side.model.said[key]["role"] in roles)
        ]
        found = await side.store.history(
            context_id,
            at_version=at,
            before=before,
            after=after,
            limit=limit,
            roles=roles,
            include_deleted=hidden,
        )
        assert side.read(found) == side.said(cut[-limit:] if after is None else cut[:limit])
        view = side.model[context_id].view
        assert all((m.deleted_at is None) == view[m.version, m.context_id] for m in found)
        if not hidden:
            paged = side.store.iter_history(
                context_id, at_version=at, before=before, after=after, roles=roles, page_size=limit
            )
            assert side.read([message async for message in paged]) == side.said(cut)

    async def check_window(self, side: Side, context_id: UUID, chance: random.Random) -> None:
        everything = sum(
            side.model.said[key]["token_count"] for key in side.model.history(context_id)
        )
        budget = chance.randint(1, everything + 2)
        at = chance.choice([None, chance.randint(0, side.model[context_id].latest)])
        try:
            keys, truncated = side.model.window(context_id, budget, 2**63 if at is None else at)
        except LimitExceededError:
            with pytest.raises(LimitExceededError):
                await side.store.window(context_id, max_tokens=budget, at_version=at)
            return
        window = await side.store.window(context_id, max_tokens=budget, at_version=at)
        assert side.read(window.messages) == side.said(keys)
        assert window.total_tokens == sum(side.model.said[key]["token_count"] for key in keys)
        assert window.truncated == truncated

    async def check_family(self, side: Side, context_id: UUID) -> None:
        chats = side.model
        assert [x.id for x in await side.store.lineage(context_id)] == chats[context_id].lineage
        below = {
            x for x, chat in chats.items() if context_id in chat.lineage[:-1] and not chat.deleted
        }
        assert {x.id for x in await side.store.forks(context_id, recursive=True)} == below
        forks = await side.store.forks(context_id)
        assert sorted(x.id for x in forks) == sorted(
            x for x in below if chats[x].lineage[-2] == context_id
        )

    async def check_diff(self, side: Side, a: UUID, b: UUID) -> None:
        ancestor_id, version, only_a, only_b = side.model.diff(a, b)
        diff = await side.store.diff(a, b)
        assert (diff.ancestor_id, diff.version) == (ancestor_id, version)
        assert side.read(diff.only_a) == side.said(only_a)
        assert side.read(diff.only_b) == side.said(only_b)

    async def check_text_search(self, side: Side, context_id: UUID, chance: random.Random) -> None:
        """Every message with one of the words, each with what is shown before and after it."""
        asked, around = chance.sample(WORDS, 2), chance.randint(0, 2)
        hits = await side.store.search(
            " ".join(asked), context_id=context_id, mode="text", limit=200, neighbors=around
        )
        view = side.model.history(context_id)
        self.check_hits(
            side, hits, [k for k in view if words(side.model.said[k]) & set(asked)], limit=200
        )
        for hit in hits:
            assert (hit.found_by, hit.distance) == (("text",), None)
            place = view.index((hit.message.version, hit.message.context_id))
            before, after = view[max(0, place - around) : place], view[place + 1 :][:around]
            assert side.read(hit.neighbors) == side.said(before + after)

    async def check_vector_search(
        self, side: Side, context_id: UUID, chance: random.Random
    ) -> None:
        """The k nearest by exact distance, nearest first, as far back as `at_version` lets see."""
        query = [chance.randint(1, 3) * chance.choice((-1, 1)) for _ in range(DIMENSIONS)]
        limit = chance.randint(1, 9)
        at = chance.choice([None, chance.randint(0, side.model[context_id].latest)])
        hits = await side.store.search(query, context_id=context_id, limit=limit, at_version=at)
        vectors = {
            key: side.model.said[key]["embedding"]
            for key in side.model.history(context_id, 2**63 if at is None else at)
            if "embedding" in side.model.said[key]
        }
        distances = {key: distance(query, vector) for key, vector in vectors.items()}
        found = [hit.distance for hit in hits]
        assert found == pytest.approx(sorted(distances.values())[:limit], abs=1e-5)
        keys = [(hit.message.version, hit.message.context_id) for hit in hits]
        assert found == pytest.approx([distances[key] for key in keys], abs=1e-5)
        self.check_hits(side, hits, keys, limit=limit)

    async def check_hybrid_search(
        self, side: Side, context_id: UUID, chance: random.Random
    ) -> None:
        """Whatever has an embedding or one of the words, and which of these it was found by."""
        query = [float(chance.choice((-2, -1, 1, 2))) for _ in range(DIMENSIONS)]
        store = with_embedder(side.store, Constant(query, EMBEDDING_MODEL))
        asked, limit = chance.sample(WORDS, 2), chance.choice((3, 200))
        hits = await store.search(" ".join(asked), context_id=context_id, limit=limit)
        said = {key: side.model.said[key] for key in side.model.history(context_id)}
        by = {
            key: ("vector",) * ("embedding" in mapping)
            + ("text",) * bool(words(mapping) & set(asked))
            for key, mapping in said.items()
        }
        self.check_hits(side, hits, [key for key, found_by in by.items() if found_by], limit=limit)
        for hit in hits:
            key = hit.message.version, hit.message.context_id
            assert hit.found_by == by[key]
            if "vector" in by[key]:
                exact = distance(query, said[key]["embedding"])
                assert hit.distance == pytest.approx(exact, abs=1e-5)

    async def check_tenant_search(self, side: Side, chance: random.Random) -> None:
        """Without a context: what the heads of the living owners show."""
        model = side.model
        live = [k for k in model.said if not model[k[1]].deleted and model[k[1]].view[k]]
        asked = chance.choice(WORDS)
        hits = await side.store.search(asked, mode="text", limit=200)
        self.check_hits(side, hits, [k for k in live if asked in words(model.said[k])], limit=200)
        query, limit = [chance.choice((-2, -1, 1, 2)) for _ in range(DIMENSIONS)], 5
        hits = await side.store.search(query, limit=limit)
        self.check_hits(side, hits, [k for k in live if "embedding" in model.said[k]], limit=limit)

    def check_hits(self, side: Side, hits: list[Hit], keys: list[Key], *, limit: int) -> None:
        """The hits are messages of `keys`, each once, as many as there are, the best first."""
        found = side.read(hit.message for hit in hits)
        assert len(found) == min(limit, len(keys))
        assert len({(version, owner) for version, owner, _, _ in found}) == len(found)
        expected = side.said(keys)
        assert all(message in expected for message in found)
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)


def test_the_store_behaves_as_its_model(database_url: str) -> None:
    """Whatever two tenants do in whatever order, every view, counter and search is the model's."""
    StoreMachine.steps, StoreMachine.outcomes = 0, Counter()
    # Many steps, or a failure that is made small, take longer than a test that hangs may.
    faulthandler.cancel_dump_traceback_later()
    with asyncio.Runner() as runner:
        StoreMachine.runner = runner
        StoreMachine.root = ContextStore.from_env(url=database_url, embedding_model=EMBEDDING_MODEL)
        try:
            run_state_machine_as_test(
                StoreMachine,
                settings=settings(
                    max_examples=17 * STEPS // (10 * STEPS_PER_EXAMPLE),  # some are cut short
                    stateful_step_count=STEPS_PER_EXAMPLE,
                    derandomize=STEPS == STEPS_ENOUGH,
                    database=None,
                    deadline=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(StoreMachine.root.aclose())
    assert StoreMachine.steps >= STEPS
    for method in METHODS:
        for outcome in ("done", "refused"):
            assert StoreMachine.outcomes[method, outcome], f"no {method} was {outcome}"


def test_the_model_is_small_enough_to_be_believed() -> None:
    """The model has at most eighty lines of code, or it would need a proof of its own."""
    source = Path(tests.support.model.__file__ or "").read_text("utf-8")
    lines = [line.strip() for line in source.splitlines()]
    code = [line for line in lines if line and not line.startswith("#")]
    docstring = len((ast.get_docstring(ast.parse(source)) or "").splitlines())
    assert len(code) - docstring <= MODEL_LINES_MAX
