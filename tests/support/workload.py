"""A recorded workload: who writes what, what was acknowledged, and whether the database agrees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

from pgcontext import ContextNotFoundError, PoolTimeoutError, UnavailableError
from tests.support.promises import query, view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from pgcontext import ContextStore, Message

UNKNOWN: Final = (UnavailableError, PoolTimeoutError)
CONTEXTS_MAX: Final = 12  # of one writer at a time


class Portrait(NamedTuple):
    """What the database says of a context, and what it shows."""

    deleted: bool
    latest_version: int
    message_count: int
    total_tokens: int
    shown: list[tuple[int, str]]


@dataclass(frozen=True)
class State:
    """What a context must look like.

    Attributes:
        said: the content of every version, hidden ones too.
        hidden: versions that the context hid itself.
        gone: versions that an ancestor had hidden when the context was forked.
        deleted: the context is.
    """

    said: tuple[str, ...] = ()
    hidden: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    deleted: bool = False

    @property
    def portrait(self) -> Portrait:
        """What the database must say of it; every message has one token."""
        count = len(self.shown)
        return Portrait(self.deleted, len(self.said), count, count, self.shown)

    @property
    def shown(self) -> list[tuple[int, str]]:
        """Versions and contents that a reader sees."""
        unseen = self.hidden | self.gone
        return [(n, said) for n, said in enumerate(self.said, 1) if n not in unseen]


@dataclass
class Owned:
    """A context that one writer changes.

    Attributes:
        state: after what was acknowledged; None if not even its making was.
        maybe: after an operation whose outcome the writer was not told; it is the last one.
    """

    id: UUID
    state: State | None
    maybe: State | None = None


@dataclass
class Batch:
    """What was appended to the context that all share; `versions` if it was acknowledged."""

    contents: list[str]
    versions: list[int] | None = None


@dataclass
class Writer:
    """One client that does one thing after the other, and keeps the log of it."""

    name: str
    random: Random
    store: ContextStore
    shared: UUID
    contexts: list[Owned] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    acknowledged: int = 0
    unknown: int = 0
    replayed: int = 0
    _said: int = 0

    async def step(self) -> None:
        """Do one operation, and write down what is known of its outcome."""
        usable = [
            one for one in self.contexts[-CONTEXTS_MAX:] if one.state is not None and not one.maybe
        ]
        if self.random.random() < 0.15:
            await self._share()
        elif len(usable) < 2 or self.random.random() < 0.05:
            await self._make()
        else:
            await self._change(self.random.choice(usable))

    async def _known(self, call: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        try:
            result = await call()
        except UNKNOWN:
            self.unknown += 1
            return False, None
        self.acknowledged += 1
        return True, result

    async def _share(self) -> None:
        batch = Batch([self._content() for _ in range(self.random.randint(1, 3))])
        self.batches.append(batch)
        known, messages = await self._known(lambda: self._append(self.shared, batch.contents))
        if known:
            batch.versions = [message.version for message in messages]

    async def _make(self) -> None:
        owned = Owned(uuid4(), None)
        self.contexts.append(owned)
        known, _ = await self._known(lambda: self.store.create(id=owned.id))
        _settle(owned, State(), known=known)

    async def _change(self, owned: Owned) -> None:
        state = owned.state
        assert state is not None
        if state.deleted:
            known, _ = await self._known(lambda: self.store.restore(owned.id))
            _settle(owned, replace(state, deleted=False), known=known)
        elif self.random.random() < 0.5 or not state.shown:
            await self._say(owned, state)
        else:
            change = self.random.choice([self._fork, self._hide, self._show, self._delete])
            await change(owned, state)

    async def _say(self, owned: Owned, state: State) -> None:
        """Append, with a key or without; with one the call may be repeated until it is known."""
        contents = [self._content() for _ in range(self.random.randint(1, 3))]
        key = contents[0] if self.random.random() < 0.5 else None
        known, messages = await self._known(lambda: self._append(owned.id, contents, key))
        for _ in range(20):
            if known or key is None:
                break
            known, messages = await self._known(lambda: self._append(owned.id, contents, key))
            self.replayed += known and messages[0].replayed
        after = replace(state, said=(*state.said, *contents))
        if known:
            first = len(state.said) + 1
            said = [(message.version, message.content) for message in messages]
            assert said == list(enumerate(contents, first))
        _settle(owned, after, known=known)

    async def _fork(self, owned: Owned, state: State) -> None:
        version = self.random.randint(0, len(state.said))
        fork = Owned(uuid4(), None)
        self.contexts.append(fork)
        known, _ = await self._known(
            lambda: self.store.fork(owned.id, at_version=version, id=fork.id)
        )
        gone = frozenset(n for n in state.hidden | state.gone if n <= version)
        _settle(fork, State(said=state.said[:version], gone=gone), known=known)

    async def _hide(self, owned: Owned, state: State) -> None:
        version, _ = self.random.choice(state.shown)
        known, _ = await self._known(lambda: self.store.delete_messages(owned.id, [version]))
        _settle(owned, replace(state, hidden=state.hidden | {version}), known=known)

    async def _show(self, owned: Owned, state: State) -> None:
        if not state.hidden:
            return
        version = self.random.choice(sorted(state.hidden))
        known, _ = await self._known(lambda: self.store.restore_messages(owned.id, [version]))
        _settle(owned, replace(state, hidden=state.hidden - {version}), known=known)

    async def _delete(self, owned: Owned, state: State) -> None:
        known, _ = await self._known(lambda: self.store.delete(owned.id))
        _settle(owned, replace(state, deleted=True), known=known)

    async def _append(
        self, context_id: UUID, contents: list[str], key: str | None = None
    ) -> list[Message]:
        messages = [{"role": "user", "content": said, "token_count": 1} for said in contents]
        return await self.store.append(context_id, messages, idempotency_key=key)

    def _content(self) -> str:
        """Make a text that nobody says twice."""
        self._said += 1
        return f"{self.name}/{self._said}"


def _settle(owned: Owned, after: State, *, known: bool) -> None:
    if known:
        owned.state = after
    else:
        owned.maybe = after


async def assert_log_and_database_agree(
    store: ContextStore, database_url: str, writers: list[Writer]
) -> None:
    """Hold the whole database against what the writers were told."""
    owned = [one for writer in writers for one in writer.contexts]
    for one in owned:
        possible = [state and state.portrait for state in (one.state, one.maybe)]
        if one.maybe is None:
            possible.pop()
        assert await _portrait(store, one.id) in possible, one
    rows = await query(
        database_url, "SELECT context_id, version, content FROM messages ORDER BY 1, 2"
    )
    contents = [row["content"] for row in rows]
    assert len(contents) == len(set(contents)), "something was written twice"
    shared = [row for row in rows if row["context_id"] == writers[0].shared]
    assert [row["version"] for row in shared] == list(range(1, len(shared) + 1))
    places = {row["content"]: row["version"] for row in shared}
    for batch in (batch for writer in writers for batch in writer.batches):
        found = [places.pop(content, None) for content in batch.contents]
        absent = [None] * len(found)
        whole = found[0] is not None and found == list(range(found[0], found[0] + len(found)))
        assert found == batch.versions if batch.versions else whole or found == absent, batch
    assert not places


async def _portrait(store: ContextStore, context_id: UUID) -> Portrait | None:
    """Read all that a context says and shows; one that is deleted is restored for it."""
    try:
        context = await store.get(context_id, include_deleted=True)
    except ContextNotFoundError:
        return None
    if context.deleted_at is not None:
        await store.restore(context_id)
    return Portrait(
        deleted=context.deleted_at is not None,
        latest_version=context.latest_version,
        message_count=context.message_count,
        total_tokens=context.total_tokens,
        shown=[(m.version, m.content or "") for m in await view(store, context_id)],
    )
