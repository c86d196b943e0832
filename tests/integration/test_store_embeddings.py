import itertools
from array import array
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from pgcontext import (
    ContextStore,
    DimensionMismatchError,
    InvalidInputError,
    LimitExceededError,
    limits,
)
from tests.support import DIMENSIONS
from tests.support.chats import axis, offline, user

ID = UUID("01890000-0000-7000-8000-000000000001")
VALUES = [round(0.1 * number - 0.35, 3) for number in range(DIMENSIONS)]

FORMS: dict[str, Callable[[list[float]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array of floats": lambda values: array("f", values),
    "array of doubles": lambda values: array("d", values),
    "numpy float64": np.array,
    "numpy float32": lambda values: np.array(values, dtype=np.float32),
    "numpy float16": lambda values: np.array(values, dtype=np.float16),
    "numpy big-endian": lambda values: np.array(values, dtype=">f4"),
    "numpy strided": lambda values: np.array([values, values]).T.copy()[:, 0],
    "numpy read-only": lambda values: np.frombuffer(np.array(values).tobytes()),
    "list of numpy numbers": lambda values: [np.float32(value) for value in values],
    "memoryview": lambda values: memoryview(array("d", values)),
}


@pytest.mark.parametrize("form", FORMS)
async def test_any_sequence_of_floats_is_an_embedding(store: ContextStore, form: str) -> None:
    """Given on append and given as query, each form means the same vector."""
    context = await store.create()
    made = FORMS[form]
    await store.append(context.id, [user("far", embedding=axis(0)), user("near", embedding=VALUES)])
    await store.append(context.id, user("same", embedding=made(VALUES)))
    hits = await store.search(made(VALUES), context_id=context.id)
    assert {hit.message.content for hit in hits[:2]} == {"near", "same"}
    assert hits[0].distance == pytest.approx(0, abs=1e-3)
    assert hits[1].distance == pytest.approx(0, abs=1e-3)


async def test_whole_numbers_are_floats_too(store: ContextStore) -> None:
    """Integers in a list are numbers like any other."""
    context = await store.create()
    vector = [1] + [0] * (DIMENSIONS - 1)
    await store.append(context.id, user(embedding=vector))
    (hit,) = await store.search(np.array(vector), context_id=context.id)
    assert hit.distance == pytest.approx(0)


async def test_the_model_of_an_embedding_is_kept_and_the_embedding_stays_out_of_the_mapping(
    store: ContextStore,
) -> None:
    """Both are the store's fields."""
    context = await store.create()
    (message,) = await store.append(context.id, user("x", embedding=VALUES, embedding_model="mini"))
    assert message.embedding_model == "mini"
    assert message.as_dict() == {"role": "user", "content": "x"}
    assert not message.embedding_pending
    (read,) = await store.history(context.id)
    assert read.embedding_model == "mini"


async def test_embeddings_keep_the_precision_of_float32(
    store: ContextStore, connection: Any
) -> None:
    """What the database holds is the nearest float32 of each number."""
    context = await store.create()
    vector = [1 / 3, 1e-30, -6e4, 0.1, 12345.6789, 1.0, -0.0, 1e-4][:DIMENSIONS]
    vector += [0.5] * (DIMENSIONS - len(vector))
    await store.append(context.id, user(embedding=vector))
    text = await connection.fetchval("SELECT embedding::text FROM messages")
    stored = np.array([float(part) for part in text.strip("[]").split(",")], dtype=np.float32)
    assert np.array_equal(stored, np.array(vector, dtype=np.float32))


@pytest.mark.parametrize("length", [65_504.0, 2.0**-24])
async def test_the_longest_and_the_shortest_vector_are_found(
    store: ContextStore, length: float
) -> None:
    """Only the direction counts: what the index can hold is found, in a context and without."""
    context = await store.create()
    near, far = [length] * DIMENSIONS, [length, *[0.0] * (DIMENSIONS - 1)]
    await store.append(context.id, [user("far", embedding=far), user("near", embedding=near)])
    for scope in (context.id, None):
        hits = await store.search(near, context_id=scope)
        assert [hit.message.content for hit in hits] == ["near", "far"]
        assert hits[0].distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("length", [1, DIMENSIONS - 1, DIMENSIONS + 1, 1536])
async def test_another_number_of_dimensions_is_refused(length: int) -> None:
    """The sentence says what was given and what the database takes."""
    vector = [0.5] * length
    for attempt in (
        offline().append(ID, user(embedding=vector)),
        offline().search(vector),
        offline().search(np.array(vector), context_id=ID),
    ):
        with pytest.raises(DimensionMismatchError, match="dimensions") as caught:
            await attempt
        assert f"{length:,}" in str(caught.value)
        assert str(DIMENSIONS) in str(caught.value)


def with_one(value: Any) -> list[Any]:
    """Make an embedding with one value that doesn't belong."""
    return [value] + [0.5] * (DIMENSIONS - 1)


BAD: list[Any] = [
    with_one(float("nan")),
    with_one(float("inf")),
    with_one(float("-inf")),
    with_one(1e39),
    with_one(-65_536.0),
    with_one(10**400),
    with_one("0.5"),
    with_one(None),
    with_one([0.5]),
    with_one(1j),
    with_one(value=True),
    [0.0] * DIMENSIONS,
    [-0.0] * DIMENSIONS,
    [1e-60] * DIMENSIONS,
    [2.0**-25] * DIMENSIONS,
    [],
    {},
    dict.fromkeys(range(DIMENSIONS), 0.5),
    set(range(DIMENSIONS)),
    7,
    0.5,
    True,
    b"\0" * DIMENSIONS,
    np.zeros(DIMENSIONS),
    np.full(DIMENSIONS, np.nan, dtype=np.float32),
    np.full(DIMENSIONS, np.inf),
    np.full(DIMENSIONS, 1e300),
    np.ones((1, DIMENSIONS)),
    np.ones((DIMENSIONS, 1)),
    np.array(0.5),
    np.array(["0.5"] * DIMENSIONS),
    np.array([True] * DIMENSIONS),
    np.ones(DIMENSIONS, dtype=complex),
    itertools.repeat(0.5),
]


@pytest.mark.parametrize("vector", BAD, ids=lambda value: repr(value)[:40])
async def test_what_is_no_embedding_is_refused(vector: Any) -> None:
    """Not a number, infinite, beyond float32, without direction or no vector at all."""
    with pytest.raises(InvalidInputError):
        await offline().append(ID, user(embedding=vector))
    with pytest.raises(InvalidInputError):
        await offline().search(vector)


@pytest.mark.parametrize("vector", ["[1,2,3]", "text"])
async def test_text_is_no_embedding(vector: str) -> None:
    """In a message text can't be meant as a vector; as a query it is text."""
    with pytest.raises(InvalidInputError):
        await offline().append(ID, user(embedding=vector))


async def test_a_vector_of_any_length_is_refused_in_no_time() -> None:
    """A million numbers are too many, and the sentence stays short."""
    with pytest.raises(InvalidInputError) as caught:
        await offline().append(ID, user(embedding=[0.5] * 1_000_000))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("model", [7, b"m", "nul \0", "lone \ud800"])
async def test_an_embedding_model_is_a_name(model: Any) -> None:
    """Text that the database can hold."""
    with pytest.raises(InvalidInputError, match="embedding_model"):
        await offline().append(ID, user(embedding=VALUES, embedding_model=model))


async def test_the_name_of_an_embedding_model_has_a_bound() -> None:
    """In characters."""
    name = "m" * (limits.MODEL_CHARS_MAX + 1)
    with pytest.raises(LimitExceededError):
        await offline().append(ID, user(embedding=VALUES, embedding_model=name))


async def test_a_database_of_other_dimensions_is_told_apart(
    store: ContextStore, make_store: Any
) -> None:
    """A setting that doesn't fit the database is a DimensionMismatchError too, in one sentence."""
    other = make_store(dimensions=DIMENSIONS + 1)
    context = await other.create()
    with pytest.raises(DimensionMismatchError):
        await other.append(context.id, user(embedding=[0.5] * (DIMENSIONS + 1)))
    assert (await store.get(context.id)).latest_version == 0
