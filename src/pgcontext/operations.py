"""The store's methods by name, called with JSON and answered in JSON: direct calls and queues.

A call is flat: `{"operation": "append", "context_id": …, "messages": […]}`. Beside `operation` it
has the arguments of the method of that name, and `tenant_id` where it isn't the store's own. The
answer is what the method returns, as JSON; a refusal is `{"error": {"type", "detail"}}`.

Nobody is asked for a key here: who may call is decided by whoever hands the call over.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from pgcontext.errors import ContextStoreError, InvalidInputError, VersionConflictError
from pgcontext.store import ContextStore

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATIONS: Final = frozenset(
    {
        "append",
        "create",
        "delete",
        "delete_messages",
        "diff",
        "embed_pending",
        "erase",
        "fork",
        "forks",
        "get",
        "history",
        "lineage",
        "list",
        "merge",
        "purge",
        "restore",
        "restore_messages",
        "search",
        "update",
        "window",
    }
)
"""The methods that can be called: all that give one answer, so `iter_history` is not among them."""


async def call(store: ContextStore, request: object) -> Any:  # noqa: ANN401 (JSON)
    """Call the method that a request names, and return what it returns as JSON.

    Args:
        store: whose method, unless the request names another tenant.
        request: a JSON object; moments are RFC 3339 text, `older_than` is a number of seconds.

    Raises:
        InvalidInputError: there is no such operation, or an argument is missing, unknown or wrong.
        ContextStoreError: whatever the method raises.
    """
    if not isinstance(request, Mapping):
        msg = "A call must be a JSON object with an operation."
        raise InvalidInputError(msg)
    arguments = dict(cast("Mapping[str, Any]", request))
    name = arguments.pop("operation", None)
    if not isinstance(name, str) or name not in OPERATIONS:
        msg = f"operation must be one of: {', '.join(sorted(OPERATIONS))}."
        raise InvalidInputError(msg)
    tenant_id = arguments.pop("tenant_id", None)
    if tenant_id is not None:
        store = store.for_tenant(tenant_id)
    _check_names(name, arguments)
    for argument in _IN_JSON.keys() & arguments.keys():
        arguments[argument] = _IN_JSON[argument](arguments[argument], argument)
    return msgspec.to_builtins(await getattr(store, name)(**arguments))


def refusal(error: ContextStoreError) -> dict[str, dict[str, Any]]:
    """Return an error as JSON: its class as `type`, its sentence as `detail`.

    A version conflict says `expected` and `actual` too, which a caller needs to go on.
    """
    public = next(kind for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
    said: dict[str, Any] = {"type": public.__name__, "detail": str(error)}
    if isinstance(error, VersionConflictError):
        said |= {"expected": error.expected, "actual": error.actual}
    return {"error": said}


@cache
def _parameters(name: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of a method's parameters, and which of them have no default."""
    parameters = list(inspect.signature(getattr(ContextStore, name)).parameters.values())[1:]
    required = {each.name for each in parameters if each.default is inspect.Parameter.empty}
    return tuple(each.name for each in parameters), frozenset(required)


def _check_names(name: str, arguments: dict[str, Any]) -> None:
    known, required = _parameters(name)
    unknown = sorted(arguments.keys() - set(known))
    if unknown:
        msg = f"{name} takes {', '.join(known)}; not {', '.join(map(repr, unknown))[:200]}."
        raise InvalidInputError(msg)
    missing = [each for each in known if each in required and each not in arguments]
    if missing:
        msg = f"{name} needs {', '.join(missing)}."
        raise InvalidInputError(msg)


def _moment(value: object, name: str) -> datetime | None:
    if value is None:
        return None
    try:
        return msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        msg = f"{name} must be a moment with its zone, such as 2030-01-31T12:00:00Z."
        raise InvalidInputError(msg) from None


def _duration(value: object, name: str) -> timedelta:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number of seconds."
        raise InvalidInputError(msg)
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):  # beyond the calendar, or not a number
        msg = f"{name} must be a number of seconds, at most 100 years."
        raise InvalidInputError(msg) from None


# Arguments that JSON has no type for, by name: no two methods mean different things by one.
_IN_JSON: Final[dict[str, Callable[[object, str], object]]] = {
    "expires_at": _moment,
    "older_than": _duration,
    "since": _moment,
    "until": _moment,
}
