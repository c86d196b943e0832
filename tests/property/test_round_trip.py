"""What was appended comes back from `as_dict()` exactly, or was refused and nothing was written."""

from __future__ import annotations

import asyncio
import enum
import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgcontext import ContextStore, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

CONVERSATIONS: Final = Path(__file__).parents[3] / "shared" / "data" / "tau_airline_public.json"
STORE_FIELDS: Final = {"id", "model", "token_count", "embedding", "embedding_model"}
EXAMPLES: Final = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# PostgreSQL's text holds every character but NUL, and lone surrogates are no characters.
text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)
numbers = (
    st.integers(-(2**63), 2**64)
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from((1e300, -1e300, 5e-324, 1.0, -0.0, 0.1, 2**53 + 1, float(2**70)))
)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
parts = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": text})
    | st.fixed_dictionaries({"type": st.just("image_url"), "image_url": values}),
    min_size=1,
    max_size=3,
)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": text,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": text, "arguments": text}),
        }
    ),
    max_size=2,
)
known = {
    "content": st.none() | text | parts,
    "name": st.none() | text,
    "tool_calls": st.none() | tool_calls,
    "tool_call_id": st.none() | text,
}
# Names that the tables and models use too: in a mapping they are the caller's own.
ours = st.sampled_from(
    ("payload", "version", "deleted_at", "context_id", "tool_name", "metadata", "extra", "replayed")
)
extras = st.dictionaries(
    (text | ours).filter(lambda key: key not in STORE_FIELDS | known.keys() | {"role"}),
    values,
    max_size=4,
)
mappings = st.builds(
    lambda role, said, extra: {"role": role} | extra | said,
    st.sampled_from(("user", "assistant", "system", "tool", "developer")),
    st.fixed_dictionaries({}, optional=known),
    extras,
)


class Colour(enum.IntEnum):
    RED = 1


@dataclass
class Thing:
    size: int = 1


NOT_JSON: Final[dict[str, Any]] = {
    "tuple": (1, 2),
    "set": {1},
    "frozenset": frozenset({1}),
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "datetime": datetime(2024, 1, 1, tzinfo=UTC),
    "date": date(2024, 1, 1),
    "uuid": UUID(int=1),
    "decimal": Decimal("1.0"),
    "fraction": Fraction(1, 2),
    "complex": 1j,
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "integer key": {1: "x"},
    "null key": {None: "x"},
    "boolean key": {True: "x"},
    "tuple key": {(1, 2): "x"},
    "object": object(),
    "dataclass": Thing(),
    "enumeration": Colour.RED,
    "function": len,
    "generator": (x for x in range(3)),
    "range": range(3),
    "NUL": "a\x00b",
    "NUL in a key": {"a\x00b": 1},
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\udfff": 1},
}


def exact(value: Any) -> Any:
    """Give a value a form in which 1, 1.0 and True differ.

    The sign of a float zero is the one thing that jsonb does not keep.
    """
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return type(value).__name__, repr(value + 0.0 if type(value) is float else value)


@pytest.fixture
def on_a_loop(database_url: str) -> Iterator[tuple[asyncio.Runner, ContextStore]]:
    """A store and the one event loop that it lives on, for tests that Hypothesis repeats."""
    with asyncio.Runner() as runner:
        store = ContextStore(database_url)
        yield runner, store
        runner.run(store.aclose())


async def written_and_read(store: ContextStore, batch: list[dict[str, Any]]) -> list[Any]:
    context = await store.create()
    written = await store.append(context.id, batch)
    read = await store.history(context.id)
    assert [m.as_dict() for m in written] == [m.as_dict() for m in read]
    return [message.as_dict() for message in read]


def test_any_message_comes_back_exactly(
    on_a_loop: tuple[asyncio.Runner, ContextStore],
) -> None:
    """Key for key, type for type, whatever JSON can hold and however large or odd it is."""
    runner, store = on_a_loop

    @EXAMPLES
    @given(st.lists(mappings, min_size=1, max_size=5))
    @example([{"role": "user"}])
    @example([{"role": "assistant", "content": None, "tool_calls": None, "name": None}])
    @example([{"role": "assistant", "content": "", "tool_calls": [], "refusal": None}])
    @example([{"role": "tool", "content": None, "tool_call_id": "", "name": ""}])
    @example([{"role": "user", "content": []}])
    @example([{"role": "user", "content": "x", "big": [2**64, -(2**63) - 1, 10**400, 1e300, -0.0]}])
    @example([{"role": "user", "content": "x", "": {"": {"": None}}}])
    @example([{"role": "user", "payload": {"payload": 1}, "tool_name": "t", "tool_calls": None}])
    def check(batch: list[dict[str, Any]]) -> None:
        before = exact(batch)
        assert exact(runner.run(written_and_read(store, batch))) == before
        assert exact(batch) == before, "the caller's own mapping was changed"

    check()


@pytest.mark.parametrize("name", NOT_JSON)
async def test_what_json_cannot_hold_is_refused_and_nothing_written(
    store: ContextStore, name: str
) -> None:
    """Wherever it stands in a batch, such a value is InvalidInputError, never converted."""
    value = NOT_JSON[name]
    context = await store.create()
    batches: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "fine"}, {"role": "user", "content": "x", "extra": value}],
        [{"role": "user", "content": "x", "extra": {"deep": [{"deeper": value}]}}],
        [{"role": "user", "content": [{"type": "text", "text": "x", "more": value}]}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "c", "more": value}]}],
    ]
    for batch in batches:
        with pytest.raises(InvalidInputError):
            await store.append(context.id, batch)
    assert await store.get(context.id) == context
    assert await store.history(context.id, include_deleted=True) == []


@pytest.mark.parametrize("key", [1, None, True, 1.5, b"role", ("role",)])
async def test_a_key_that_is_no_text_is_refused(store: ContextStore, key: Any) -> None:
    """A message's own keys are text too."""
    context = await store.create()
    with pytest.raises(InvalidInputError):
        await store.append(context.id, {"role": "user", "content": "x", key: "y"})
    assert await store.get(context.id) == context


async def test_a_value_that_contains_itself_is_refused(store: ContextStore) -> None:
    """A cycle is neither followed for ever nor a traceback."""
    cycle: dict[str, Any] = {}
    cycle["again"] = [cycle]
    context = await store.create()
    with pytest.raises(InvalidInputError):
        await store.append(context.id, {"role": "user", "content": "x", "extra": cycle})
    assert await store.get(context.id) == context


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason=f"{CONVERSATIONS.name} is not there")
async def test_every_recorded_message_comes_back_exactly(store: ContextStore) -> None:
    """Real agent runs, with null contents, tool calls, results and names, survive unchanged."""
    runs = json.loads(CONVERSATIONS.read_text("utf-8"))
    messages = 0
    for run in runs:
        context = await store.create()
        await store.append(context.id, run["traj"])
        back = [m.as_dict() async for m in store.iter_history(context.id)]
        assert exact(back) == exact(run["traj"])
        messages += len(back)
    assert messages == sum(len(run["traj"]) for run in runs) > 2_000
