"""The OpenAPI 3.1 description, made of the operations and of the types they take and give.

`python -m pgcontext.http.openapi` writes openapi.json, which is shipped and served as it is: a
request never makes it.
"""

from __future__ import annotations

import inspect
import re
from http import HTTPStatus
from typing import Any, Final

import msgspec

from pgcontext import limits
from pgcontext.errors import (
    InvalidInputError,
    LimitExceededError,
    PoolTimeoutError,
    SchemaMismatchError,
    UnavailableError,
)
from pgcontext.http.app import DOCUMENT
from pgcontext.http.bodies import AS_JSON, IDEMPOTENCY_KEY, Nothing
from pgcontext.http.examples import REPLIES, REQUESTS
from pgcontext.http.operations import OPERATIONS, Operation
from pgcontext.http.problems import (
    MEDIA_TYPE,
    URN,
    ForbiddenError,
    Problem,
    RequestTimeoutError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    kind_of,
)

Json = dict[str, Any]

REFERENCE: Final = "#/components/schemas/{name}"
DESCRIPTION: Final = """\
Conversations for LLM applications: contexts with ordered messages, forks that copy nothing, token \
windows and search. Every error is a problem (RFC 9457); branch on its `type`."""
KEY_HEADER: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Makes a repeated request safe: it answers what the first one wrote, with "
    "`replayed` set.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": limits.IDEMPOTENCY_KEY_CHARS_MAX,
        "pattern": f"^{IDEMPOTENCY_KEY.pattern}$",
    },
}
PATH_ID: Final[Json] = {
    "name": "context_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}
HEADERS: Final[dict[int, Json]] = {
    HTTPStatus.UNAUTHORIZED: {
        "WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}},
    },
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}},
    },
}


def document() -> Json:
    """Return the whole description."""
    types = [kind for operation in OPERATIONS for kind in (operation.body, operation.reply)]
    queries = [operation.query for operation in OPERATIONS]
    _, components = msgspec.json.schema_components(
        [Problem, *types, *queries], ref_template=REFERENCE
    )
    for schema in components.values():
        _describe(schema)
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        entry = _operation(operation, components)
        paths.setdefault(operation.path, {})[operation.method.lower()] = entry
    only_queries = {query.__name__ for query in queries} | {Nothing.__name__}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pgcontext", "version": "1", "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {
                name: schema for name, schema in components.items() if name not in only_queries
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, made with `pgcontext keys create`.",
                }
            },
        },
    }


def _operation(operation: Operation, components: dict[str, Json]) -> Json:
    summary = (inspect.getdoc(operation.call) or "").strip()
    entry: Json = {
        "operationId": operation.name,
        "summary": summary.removesuffix("."),
        "parameters": _parameters(operation, components),
        "responses": _responses(operation),
        "security": [] if operation.scope is None else [{"key": []}],
    }
    if operation.scope is not None:
        entry["description"] = f"Needs the scope `{operation.scope}`."
    if operation.body is not Nothing:
        media: Json = {"schema": _reference(operation.body)}
        media["example"] = REQUESTS[operation.name]
        msgspec.convert(media["example"], operation.body)  # so that no example is a wrong one
        entry["requestBody"] = {"required": True, "content": {"application/json": media}}
    return entry


def _parameters(operation: Operation, components: dict[str, Json]) -> list[Json]:
    parameters = [PATH_ID] if "{context_id}" in operation.path else []
    schema = components.get(operation.query.__name__, {})
    for name, described in schema.get("properties", {}).items():
        form = {key: value for key, value in described.items() if key != "description"}
        parameter: Json = {"name": name, "in": "query"}
        if name in schema.get("required", ()):
            parameter["required"] = True
        if "description" in described:
            parameter["description"] = described["description"]
        form = _without_null(form)
        if name in AS_JSON:
            parameter["content"] = {"application/json": {"schema": form}}
        else:
            parameter["schema"] = form
        parameters.append(parameter)
    return [*parameters, KEY_HEADER] if operation.takes_key else parameters


def _without_null(form: Json) -> Json:
    """Return the schema of a query parameter: one that is null is left out."""
    if "anyOf" not in form:
        return form
    kept: Json = next(option for option in form["anyOf"] if option != {"type": "null"})
    return kept


def _responses(operation: Operation) -> Json:
    described: Json = {
        str(operation.status): {
            "description": HTTPStatus(operation.status).phrase,
            "content": {
                "application/json": {
                    "schema": _reference(operation.reply),
                    "example": msgspec.to_builtins(REPLIES[operation.reply]),
                }
            },
        }
    }
    by_status: dict[int, list[str]] = {}
    for error in _errors(operation):
        kind = kind_of(error)
        line = f"`{URN}{kind.name}`: {kind.title}"
        if line not in (lines := by_status.setdefault(kind.status, [])):
            lines.append(line)
    for status, lines in sorted(by_status.items()):
        described[str(status)] = {
            "description": "\n".join(lines),
            "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
        }
        if status in HEADERS:
            described[str(status)]["headers"] = HEADERS[status]
    return described


def _errors(operation: Operation) -> list[type[Exception]]:
    """Return what an operation may raise, with what every operation of its kind may."""
    errors = [*operation.errors, Exception]
    if operation.name != "healthz":
        errors += [UnavailableError, PoolTimeoutError, SchemaMismatchError]
    if operation.scope is not None:
        errors += [UnauthorizedError, ForbiddenError, InvalidInputError, LimitExceededError]
    if operation.body is not Nothing:
        errors += [UnsupportedMediaTypeError, RequestTimeoutError]
    return errors


def _reference(kind: Any) -> Json:  # noqa: ANN401 (a type, perhaps of a generic)
    schema, _ = msgspec.json.schema_components([kind], ref_template=REFERENCE)
    found: Json = schema[0]
    return found


def _describe(schema: Json) -> None:
    """Give each field what the docstring says of it, and the whole only what it says first."""
    text = inspect.cleandoc(schema.get("description", ""))
    about, _, fields = text.partition("Attributes:")
    if about:
        schema["description"] = about.strip()
    for name, said in re.findall(r"(?ms)^    (\w+): (.*?)(?=^    \w+: |\Z)", fields):
        if name in schema.get("properties", {}):
            schema["properties"][name]["description"] = " ".join(said.split())


def text() -> str:
    """Return the description as the file has it."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=2).decode() + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text(), "utf-8")
