"""The description is what the code does: the file, the routes and the running application agree."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import jsonschema_rs
import pytest
from starlette.routing import Route

from pgcontext import ContextStore
from pgcontext.http import create_app, openapi
from pgcontext.http.app import DOCUMENT, Endpoint
from pgcontext.http.operations import OPERATIONS
from pgcontext.http.problems import KINDS, URN
from tests.support import DIMENSIONS

if TYPE_CHECKING:
    from tests.support.asgi import Client

SHIPPED: Final[dict[str, Any]] = json.loads(DOCUMENT.read_bytes())
# What of the store is no route of its own: making one, closing it, reading page by page.
NO_ROUTES: Final = {
    *("aclose", "embedder", "for_tenant", "from_env", "iter_history", "settings", "tenant_id"),
}


def test_the_shipped_description_is_what_the_code_makes() -> None:
    """After a change of the routes: python -m pgcontext.http.openapi."""
    assert DOCUMENT.read_text("utf-8") == openapi.text()


def test_the_description_and_the_routes_are_the_same(store: ContextStore) -> None:
    """Each path of the application is described, with just the methods it takes, and no other."""
    app = create_app(store)
    routed = {
        route.path: {method.lower() for method in route.endpoint._by_method}
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.endpoint, Endpoint)
    }
    assert routed == {path: set(methods) for path, methods in SHIPPED["paths"].items()}


def test_every_method_of_the_store_has_one_route() -> None:
    """Named as the method; the store gets none that can't be reached."""
    methods = {name for name in dir(ContextStore) if not name.startswith("_")} - NO_ROUTES
    named = [operation.name for operation in OPERATIONS if operation.scope is not None]
    assert sorted(name.removesuffix("_contexts") for name in named) == sorted(methods)


async def test_the_description_is_served(anybody: Client) -> None:
    """To everybody, as it is shipped: what it says is no secret."""
    answer = await anybody("GET", "/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.value == SHIPPED


def operations() -> list[Any]:
    return [
        pytest.param(path, method, described, id=described["operationId"])
        for path, methods in SHIPPED["paths"].items()
        for method, described in methods.items()
    ]


def schema_of(media: dict[str, Any]) -> dict[str, Any]:
    """A schema that stands by itself, with the components it refers to."""
    return {**media["schema"], "components": SHIPPED["components"]}


@pytest.mark.parametrize(("path", "method", "described"), operations())
def test_every_example_fits_its_schema(path: str, method: str, described: dict[str, Any]) -> None:
    """Of bodies and of answers; there is one wherever there is a schema of ours."""
    media = [
        response["content"]["application/json"]
        for status, response in described["responses"].items()
        if status.startswith("2")
    ]
    if "requestBody" in described:
        media.append(described["requestBody"]["content"]["application/json"])
    assert media
    for one in media:
        assert jsonschema_rs.is_valid(schema_of(one), one["example"])
        assert not jsonschema_rs.is_valid(schema_of(one), [one["example"]])


@pytest.mark.parametrize(("path", "method", "described"), operations())
def test_every_operation_says_who_may(path: str, method: str, described: dict[str, Any]) -> None:
    """A key is asked for everywhere but at the two that tell how the service is."""
    is_open = path in {"/healthz", "/readyz"}
    assert described["security"] == ([] if is_open else [{"key": []}])
    assert ({"401", "403"} <= set(described["responses"])) is not is_open
    assert described["summary"]
    for parameter in described["parameters"]:
        if parameter["in"] == "query":
            assert parameter["description"], parameter["name"]


def test_every_problem_that_is_described_exists() -> None:
    """And every one that exists is described, but for those of paths that are not there."""
    named = set(re.findall(rf"{URN}([a-z-]+)", json.dumps(SHIPPED["paths"])))
    known = {kind.name for _, kind in KINDS}
    assert named == known - {"route-not-found", "method-not-allowed"}


async def test_the_examples_work(admin: Client) -> None:
    """Sent one after the other, as they stand in the description."""
    example = {
        described["operationId"]: described["requestBody"]["content"]["application/json"]["example"]
        for methods in SHIPPED["paths"].values()
        for described in methods.values()
        if "requestBody" in described
    }
    made = (await admin("POST", "/v1/contexts", example["create"])).value
    path = f"/v1/contexts/{made['id']}"
    appended = await admin("POST", f"{path}/messages", example["append"])
    fork = await admin("POST", f"{path}/fork", example["fork"])
    merge = {**example["merge"], "into": fork.value["id"]}
    answers = [
        appended,
        fork,
        await admin("PATCH", path, example["update"]),
        await admin("POST", f"{path}/messages/delete", example["delete_messages"]),
        await admin("POST", f"{path}/messages/restore", example["restore_messages"]),
        await admin("POST", "/v1/search", example["search"]),
        await admin("POST", f"{path}/merge", merge),
        await admin("POST", f"{path}/erase", example["erase"]),
        await admin("POST", "/v1/purge", example["purge"]),
    ]
    assert [answer.status for answer in answers] == [201, 201, *[200] * 7]
    assert DIMENSIONS  # the examples need no embedding
