"""Example conversations for development: two tenants, forks of forks, deletes, fixed ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import msgspec

from pgcontext.cli.output import opened
from pgcontext.errors import ContextNotFoundError

if TYPE_CHECKING:
    from pgcontext import Context, ContextStore

GARDEN: Final = UUID(int=0)  # the default tenant, so that nothing need be said to see it
BICYCLES: Final = UUID("5eed0000-0000-7000-8000-000000000002")


class Planted(msgspec.Struct, frozen=True):
    """What is there now.

    Attributes:
        tenants: whose contexts.
        contexts: how many.
        made: how many were not there before.
    """

    tenants: tuple[UUID, ...]
    contexts: int
    made: int


class Seed(NamedTuple):
    """One context: what it says, where it was forked, what is hidden in it."""

    number: int
    name: str
    messages: tuple[dict[str, Any], ...]
    parent: int | None = None
    fork_version: int | None = None
    hidden: tuple[int, ...] = ()
    is_deleted: bool = False

    @property
    def id(self) -> UUID:
        """The fixed id."""
        return UUID(f"5eed0000-0000-7000-8000-{self.number:012}")


def _system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _result(call_id: str, name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}


SEEDS: Final[dict[UUID, tuple[Seed, ...]]] = {
    GARDEN: (
        Seed(
            101,
            "Tomatoes with spots",
            (
                _system("You help gardeners. Ask before you advise anything poisonous."),
                _user("My tomato leaves have brown rings. What is it?"),
                _call("call_1", "look_up_disease", '{"plant": "tomato", "sign": "brown rings"}'),
                _result("call_1", "look_up_disease", '{"name": "early blight", "sure": 0.8}'),
                _assistant("That looks like early blight. Take off the lowest leaves first."),
                _user("wrong window, sorry: milk, eggs, bread"),
                _user("All of them? And is it too late to spray?"),
                _assistant("Only those with rings. For spraying it depends on what you allow."),
            ),
            hidden=(6,),
        ),
        Seed(
            102,
            "Tomatoes with spots, without spraying",
            (
                _user("No spraying at all, please. What else?"),
                _assistant("Mulch, water at the roots in the morning, and give them more room."),
            ),
            parent=101,
            fork_version=5,
        ),
        Seed(
            103,
            "Tomatoes with spots, next year",
            (
                _user("And what do I do differently next year?"),
                _assistant("Plant them where no potato or tomato stood for three years."),
            ),
            parent=102,
            fork_version=7,
        ),
        Seed(
            104,
            "A conversation that was thrown away",
            (_user("test"), _assistant("This is a test.")),
            is_deleted=True,
        ),
    ),
    BICYCLES: (
        Seed(
            201,
            "Order 7741: wrong saddle",
            (
                _system("You answer for a bicycle shop. Refund at most 50 euros yourself."),
                _user("I ordered the leather saddle and got a gel one. Order 7741."),
                _call("call_1", "get_order", '{"order": 7741}'),
                _result("call_1", "get_order", '{"saddle": "leather", "paid": 89.0}'),
                _assistant("I'm sorry. Shall we send the leather one, or do you keep the gel one?"),
            ),
        ),
        Seed(
            202,
            "Order 7741: keeps it",
            (
                _user("I keep it if it gets cheaper."),
                _call("call_2", "refund", '{"order": 7741, "euros": 30}'),
                _result("call_2", "refund", '{"done": true}'),
                _assistant("30 euros are on their way back to you."),
            ),
            parent=201,
            fork_version=5,
            hidden=(3, 4),
        ),
    ),
}


async def plant() -> Planted:
    """Write the examples that are not there, and bring changed ones back, but not deleted ones."""
    made = 0
    async with opened(None) as store:
        for tenant, seeds in SEEDS.items():
            for seed in seeds:
                made += await _plant(store.for_tenant(tenant), seed)
    return Planted(tuple(SEEDS), sum(map(len, SEEDS.values())), made)


async def _plant(store: ContextStore, seed: Seed) -> bool:
    """Write one example; also goes on where an earlier run stopped in the middle of it."""
    found = await _find(store, seed)
    context = found or await _make(store, seed)
    if context.deleted_at is None:
        # The key makes this a no-op the second time.
        await store.append(seed.id, seed.messages, idempotency_key="seed")
        if seed.hidden:
            await store.delete_messages(seed.id, seed.hidden)
        if seed.is_deleted:
            await store.delete(seed.id)
    return found is None


async def _find(store: ContextStore, seed: Seed) -> Context | None:
    try:
        return await store.get(seed.id, include_deleted=True)
    except ContextNotFoundError:
        return None


async def _make(store: ContextStore, seed: Seed) -> Context:
    metadata = {"seed": True}
    if seed.parent is None:
        return await store.create(id=seed.id, name=seed.name, metadata=metadata)
    parent = seed._replace(number=seed.parent)
    return await store.fork(
        parent.id, at_version=seed.fork_version, id=seed.id, name=seed.name, metadata=metadata
    )
