"""Checks of what callers hand in. Each returns the value as the statements take it, or raises.

No message repeats a value that could be content; they name the argument and what it accepts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from numbers import Real
from typing import Any, cast
from uuid import UUID

import msgspec

from pgcontext import limits
from pgcontext.errors import DimensionMismatchError, InvalidInputError, LimitExceededError

# Above this, a float without fraction is written with an exponent, and PostgreSQL would give it
# back as an integer.
_FLOAT_PLAIN_MAX = 1e15
# The index keeps embeddings as 16-bit floats: larger is refused there, smaller becomes zero.
# Source: IEEE 754 binary16.
_HALF_MAX = 65_504.0
_HALF_MIN = 2.0**-24
_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)
_ROLES = frozenset({"user", "assistant", "system", "tool", "developer"})


def uuid(value: object, name: str) -> UUID:
    """Accept a UUID or its text form."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            pass
    msg = f"{name} must be a UUID."
    raise InvalidInputError(msg)


def integer(value: object, name: str, *, least: int, most: int) -> int:
    """Accept a whole number from `least` to `most`; above is a LimitExceededError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        msg = f"{name} must be a whole number, {least} or more."
        raise InvalidInputError(msg)
    if value > most:
        msg = f"{name} must be at most {most:,}."
        raise LimitExceededError(msg)
    return value


def version(value: object, name: str, *, least: int = 0) -> int | None:
    """Accept a version or None."""
    if value is None:
        return None
    return integer(value, name, least=least, most=limits.VERSION_MAX)


def versions(values: object) -> list[int]:
    """Accept one version or an iterable of them."""
    if isinstance(values, int):
        values = [values]
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        msg = "versions must be whole numbers, 1 or more."
        raise InvalidInputError(msg)
    given = list(islice(cast("Iterable[object]", values), limits.VERSIONS_PER_CALL_MAX + 1))
    if not given:
        msg = "versions must not be empty."
        raise InvalidInputError(msg)
    if len(given) > limits.VERSIONS_PER_CALL_MAX:
        msg = f"At most {limits.VERSIONS_PER_CALL_MAX:,} versions are accepted at once."
        raise LimitExceededError(msg)
    return sorted(
        {integer(value, "a version", least=1, most=limits.VERSION_MAX) for value in given}
    )


def text(value: object, name: str, *, chars_max: int) -> str:
    """Accept text that PostgreSQL can hold."""
    if not isinstance(value, str):
        msg = f"{name} must be text."
        raise InvalidInputError(msg)
    if len(value) > chars_max:
        msg = f"{name} must have at most {chars_max:,} characters."
        raise LimitExceededError(msg)
    storable(value, name)
    return value


def optional_text(value: object, name: str, *, chars_max: int) -> str | None:
    """Accept text or None."""
    return None if value is None else text(value, name, chars_max=chars_max)


def storable(value: str, name: str) -> int:
    """Return the text's length in UTF-8 bytes, or raise when PostgreSQL could not hold it."""
    if "\0" in value:
        msg = f"{name} has a NUL character, which PostgreSQL cannot store; remove it."
        raise InvalidInputError(msg)
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        msg = f"{name} has half of a surrogate pair, which is not valid Unicode; remove it."
        raise InvalidInputError(msg) from None


def role(value: object) -> str:
    """Accept one of the five roles."""
    if isinstance(value, str) and value in _ROLES:
        return value
    msg = "role must be one of: user, assistant, system, tool, developer."
    raise InvalidInputError(msg)


def roles(values: object) -> list[str] | None:
    """Accept a role, several, or None for all."""
    if values is None:
        return None
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, Iterable):
        msg = "roles must be names of roles."
        raise InvalidInputError(msg)
    given = list(islice(cast("Iterable[object]", values), limits.ROLES_PER_CALL_MAX + 1))
    if len(given) > limits.ROLES_PER_CALL_MAX:
        msg = f"At most {limits.ROLES_PER_CALL_MAX} roles are accepted at once."
        raise LimitExceededError(msg)
    return sorted({role(value) for value in given})


def moment(value: object, name: str) -> datetime | None:
    """Accept a point in time with its zone, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        msg = f"{name} must be a datetime with a time zone."
        raise InvalidInputError(msg)
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        moment = _NEVER
    # The driver would make infinity of the calendar's two ends, and give them back without zone.
    if not _ALWAYS < moment < _NEVER:
        msg = f"{name} must be within the years 1 to 9999 in UTC; for never, leave it out."
        raise InvalidInputError(msg)
    return moment


def boolean(value: object, name: str) -> bool:
    """Accept True or False and nothing that merely looks like one."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False."
        raise InvalidInputError(msg)
    return value


def number(value: object, name: str, *, least: float, most: float) -> float:
    """Accept a finite number in a range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number."
        raise InvalidInputError(msg)
    if not least <= value <= most:
        msg = f"{name} must be from {least:g} to {most:g}."
        raise InvalidInputError(msg)
    return float(value)


def json_object(value: object, name: str, *, bytes_max: int) -> str | None:
    """Accept a JSON object and return its text; None stays None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        msg = f"{name} must be a JSON object (a mapping)."
        raise InvalidInputError(msg)
    mapping = dict(cast("Mapping[object, object]", value))
    encoded = msgspec.json.encode(json_value(mapping, name))
    if len(encoded) > bytes_max:
        msg = f"{name} must have at most {bytes_max:,} bytes as JSON."
        raise LimitExceededError(msg)
    return encoded.decode()


def json_value(value: Any, name: str, depth: int = 0) -> Any:  # noqa: ANN401
    """Return a value that encodes to exactly this one, or raise when JSON or jsonb can't hold it.

    Strict on purpose: a tuple would come back as a list and a date as text, so they are refused.
    Numbers whose JSON text jsonb would change are put in a text form that it keeps.
    """
    kind = cast("type[object]", type(value))
    if kind is str:
        storable(value, name)
        return value
    if value is None or kind is bool:
        return value
    if kind is int:
        return _json_int(value, name)
    if kind is float:
        return _json_float(value, name)
    if kind is list or kind is dict:
        return _json_container(value, name, depth)
    msg = (
        f"{name} has a value of type {kind.__name__}, which JSON cannot hold; "
        "accepted are text, numbers, True, False, None, lists and dicts."
    )
    raise InvalidInputError(msg)


def _json_container(value: list[Any] | dict[Any, Any], name: str, depth: int) -> Any:  # noqa: ANN401
    if depth >= limits.PAYLOAD_DEPTH_MAX:
        msg = f"{name} is nested deeper than {limits.PAYLOAD_DEPTH_MAX} levels."
        raise LimitExceededError(msg)
    if isinstance(value, list):
        return [json_value(item, name, depth + 1) for item in value]
    for key in value:
        if type(key) is not str:
            msg = f"{name} has a key that is not text, which JSON cannot hold."
            raise InvalidInputError(msg)
        storable(key, name)
    return {key: json_value(item, name, depth + 1) for key, item in value.items()}


def _json_int(value: int, name: str) -> int:
    if value.bit_length() > limits.PAYLOAD_INTEGER_BITS_MAX:
        msg = f"{name} has an integer of more than {limits.PAYLOAD_INTEGER_BITS_MAX:,} bits."
        raise LimitExceededError(msg)
    return value


def _json_float(value: float, name: str) -> float | msgspec.Raw:
    if not math.isfinite(value):
        msg = f"{name} has a number that is not finite, which JSON cannot hold."
        raise InvalidInputError(msg)
    if abs(value) < _FLOAT_PLAIN_MAX:
        return value
    return msgspec.Raw(format(value, ".1f").encode())


def embedding(value: object, *, dimensions: int, name: str = "embedding") -> str:
    """Accept a sequence of floats (numpy included) and return it as text for `vector`.

    Args:
        value: `float[dimensions]`, finite and not all zero: cosine distance is undefined there.
        dimensions: how many floats there must be.
        name: what to call it in a message.
    """
    as_list = getattr(value, "tolist", None)  # numpy and array.array, without importing either
    items: Any = value if as_list is None else as_list()
    if isinstance(items, (str, bytes, bytearray)) or not isinstance(items, Sequence):
        msg = f"{name} must be a sequence of numbers."
        raise InvalidInputError(msg)
    floats = _floats(cast("Sequence[object]", items), name)
    if len(floats) != dimensions:
        msg = (
            f"{name} has {len(floats):,} dimensions, the database has {dimensions:,} "
            "(PGCONTEXT_DIMENSIONS)."
        )
        raise DimensionMismatchError(msg)
    low, high = min(floats), max(floats)
    # A NaN may hide from comparisons, but not from a sum.
    if not (math.isfinite(sum(floats)) and low >= -_HALF_MAX and high <= _HALF_MAX):
        msg = f"{name} must have finite numbers from -{_HALF_MAX:,.0f} to {_HALF_MAX:,.0f} only."
        raise InvalidInputError(msg)
    if low > -_HALF_MIN and high < _HALF_MIN:
        msg = f"{name} must not be all zeros: it has no direction to compare."
        raise InvalidInputError(msg)
    return msgspec.json.encode(floats).decode()


def _floats(items: Sequence[object], name: str) -> list[float]:
    """Convert what nearly always is a list of floats at once, and anything else one by one."""
    try:
        return msgspec.convert(items, list[float])
    except (msgspec.ValidationError, OverflowError):
        return [_component(item, name) for item in items]


def _component(item: object, name: str) -> float:
    if type(item) is not bool and isinstance(item, Real):
        try:
            return float(item)
        except OverflowError:
            return math.inf
    msg = f"{name} must be a flat sequence of numbers."
    raise InvalidInputError(msg)


def cursor_of(created_at: datetime, context_id: UUID) -> str:
    """Make the opaque cursor that continues a listing after this context."""
    raw = f"{created_at.isoformat()} {context_id}".encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def cursor(value: object) -> tuple[datetime | None, UUID | None]:
    """Take a cursor apart; None is the start."""
    if value is None:
        return None, None
    try:
        assert isinstance(value, str)  # noqa: S101 (one way out for all that is malformed)
        raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
        created_at, _, context_id = raw.decode().partition(" ")
        moment_seen = moment(datetime.fromisoformat(created_at), "cursor")
        return moment_seen, UUID(context_id)
    except (AssertionError, ValueError):
        msg = "cursor must be the next_cursor of an earlier page."
        raise InvalidInputError(msg) from None
